"""A number beside each mask: how sure a network is of it, and the Dice that masks of this kind had.

`agreement` needs no reference mask. Which Dice goes with which agreement is learned from cases with a reference mask
that the network was not trained on (`ExpectedDice`). It holds for scans like those, predicted in the same way.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from brainseg_jax.inference.postprocess import PostProcess
from brainseg_jax.metrics import dice

LOW, HIGH = 0.1, 0.9  # probabilities; experiments/failure_detection.py compares others
LEAST_PATIENTS = 20  # of fewer no interval is given
INTERVAL = 0.9  # share of the cases whose Dice lies in theirs
DETECTOR = f"Dice between the masks at probabilities {LOW} and {HIGH}"
NO_MASK = "an empty mask has no expected Dice: nothing tells a missed target from a scan without one"
_VERSION = 1
_FOLDS = 20  # most that cases are divided into; with as many patients it is leave-one-out


def agreement(probability: np.ndarray, mask: np.ndarray, post: PostProcess) -> float | None:
    """The Dice between the masks at a low and at a high threshold of the probability, in [0, 1]: 1 is sure.

    It needs no further prediction.

    Args:
      probability: of a target, [S, H, W].
      mask: what is made of it, [S, H, W] bool.
      post: keeps the connected components of the two masks as it does of this one, see `PostProcess.on_grid`.

    Returns:
      None where the mask is empty.
    """
    if not mask.any():
        return None
    low, high = (post._replace(threshold=level)(probability) for level in (LOW, HIGH))
    return dice(low, high) if low.any() else 0.0


class Pair(NamedTuple):
    """A case with a reference mask: the agreement of its mask, its Dice, and whose scan it is."""

    agreement: float
    dice: float
    patient: str


class Expected(NamedTuple):
    """The Dice to expect, and an interval that holds it in nine cases of ten; all in [0, 1]."""

    dice: float
    low: float
    high: float

    def __str__(self) -> str:
        """In words, at most 48 characters."""
        return f"expected Dice {self.dice:.2f} (90 % interval {self.low:.2f} to {self.high:.2f})"


class Quality(NamedTuple):
    """What is known of a mask without a reference: `agreement`, and what is expected of it; None where it is not."""

    agreement: float | None
    expected: Expected | None

    def __str__(self) -> str:
        """In words."""
        if self.agreement is None:
            return NO_MASK
        return str(self.expected or f"agreement {self.agreement:.2f}, expected Dice not known")


@dataclasses.dataclass(frozen=True, eq=False)
class ExpectedDice:
    """The Dice to expect of a mask, from its agreement.

    Attributes:
      targets: name -> cases of known Dice, of `LEAST_PATIENTS` or more.
      source: which cases these are, in words.
    """

    targets: dict[str, tuple[Pair, ...]]
    source: str
    _curves: dict = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __call__(self, target: str, value: float | None, *, without: str | None = None) -> Expected | None:
        """What is expected of a mask.

        Args:
          target: its name.
          value: its agreement.
          without: a patient whose cases are left out, for masks of cases that are among those of known Dice.

        Returns:
          None for an empty mask.
        """
        key = target, without
        if key not in self._curves:
            pairs = [pair for pair in self.targets[target] if pair.patient != without]
            self._curves[key] = Curve(pairs)
        return None if value is None else self._curves[key](value)

    @property
    def digest(self) -> str:
        """Identifies it: other cases give another one."""
        return hashlib.sha256(repr(self.to_json()).encode(errors="surrogateescape")).hexdigest()[:12]

    def to_json(self) -> dict:
        """Content of `expected_dice.json`."""
        return {"version": _VERSION, "detector": DETECTOR, "source": self.source, "targets": self.targets}

    @classmethod
    def from_json(cls, content: dict) -> "ExpectedDice":
        """The inverse of `to_json`. Raises ValueError where the content is another one."""
        try:
            if (content["version"], content["detector"]) != (_VERSION, DETECTOR):
                raise ValueError(f"version {content['version']} of it, with the detector {content['detector']!r}")
            targets = {
                name: tuple(Pair(float(value), float(dice), str(patient)) for value, dice, patient in pairs)
                for name, pairs in content["targets"].items()
            }
            source = str(content["source"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        for name, pairs in targets.items():
            if (patients := len({pair.patient for pair in pairs})) < LEAST_PATIENTS:
                raise ValueError(f"{patients} patients for {name}, and {LEAST_PATIENTS} are the fewest")
            if any(not 0.0 <= number <= 1.0 for pair in pairs for number in pair[:2]):
                raise ValueError(f"a number outside of 0 to 1 in {name}")
        return cls(targets, source)


def rate(
    probability: np.ndarray,
    masks: np.ndarray,
    posts: Sequence[PostProcess],
    names: Sequence[str],
    expected: ExpectedDice | None,
) -> tuple[Quality, ...]:
    """What is known of the masks of a scan.

    Args:
      probability: [S, H, W, K].
      masks: [S, H, W, K] bool.
      posts: of each target, see `agreement`.
      names: of the K targets.
      expected: None where it is not known.
    """
    values = [agreement(probability[..., k], masks[..., k], post) for k, post in enumerate(posts)]
    return tuple(Quality(v, expected(name, v) if expected else None) for name, v in zip(names, values, strict=True))


class Curve:
    """Expected Dice and its interval as functions of the agreement.

    The expected Dice is monotone regression (`increasing`): it never falls while the agreement rises. Below the lowest
    known agreement it goes to 0 at agreement 0. The interval is that of CV+, the jackknife+ by folds (Barber et al.
    2021, doi.org/10.1214/20-AOS1965): it comes from the errors of curves that did not see the patient. Each error is
    divided by the one that is usual at its agreement, so the interval is wide where errors are large.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        """Fits to cases of several patients."""
        values = np.array([value for value, _, _ in pairs], np.float64)
        dice_of = np.array([dice for _, dice, _ in pairs], np.float64)
        patients = [patient for _, _, patient in pairs]
        self._dice = _from_origin(values, dice_of)
        self._folds = _folds(values, patients)
        fits = [self._folds != fold for fold in range(self._folds.max() + 1)]
        self._without = [_from_origin(values[others], dice_of[others]) for others in fits]
        known = np.array([np.interp(v, *self._without[k]) for v, k in zip(values, self._folds, strict=True)])
        errors = np.abs(dice_of - known)
        self._mean_error = max(float(errors.mean()), 1e-3)
        knots, negative = increasing(values, -errors)
        self._error = knots, -negative
        self._ratios = errors / self._usual_error(values)

    def __call__(self, value: float) -> Expected:
        """What is expected at an agreement."""
        expected = float(np.interp(value, *self._dice))
        centers = np.array([np.interp(value, *curve) for curve in self._without])[self._folds]
        widths = self._ratios * self._usual_error(value)
        count = len(widths)
        rank = min(count, math.ceil((count + 1) * INTERVAL))
        low, high = np.sort(centers - widths)[count - rank], np.sort(centers + widths)[rank - 1]
        return Expected(expected, float(np.clip(low, 0.0, expected)), float(np.clip(high, expected, 1.0)))

    def _usual_error(self, values: np.ndarray | float) -> np.ndarray | float:
        """Half the mean, and half monotone regression: a few cases in a row can have tiny errors by chance."""
        return 0.5 * self._mean_error + 0.5 * np.interp(values, *self._error)


def _folds(values: np.ndarray, patients: Sequence[str]) -> np.ndarray:
    """A fold for each case, [n] int, the same for all cases of a patient; each fold holds low and high agreements."""
    first = {patient: values[patients.index(patient)] for patient in patients}
    ordered = sorted(first, key=lambda patient: (first[patient], patient))
    fold_of = {patient: k % _FOLDS for k, patient in enumerate(ordered)}
    return np.array([fold_of[patient] for patient in patients])


def _from_origin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The curve of `increasing`, with 0 at 0 before it; for `np.interp`."""
    knots, heights = increasing(x, y)
    return np.append(0.0, knots), np.append(0.0, heights)


def increasing(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Monotone regression by least squares: pool adjacent violators (Ayer 1955, doi.org/10.1214/aoms/1177728423).

    `scipy.optimize.isotonic_regression` gives the same means. Its import takes a third of a second, which `predict`
    would spend on this alone.

    Args:
      x: [n].
      y: [n].

    Returns:
      of each block of equal fitted values the mean of x and that of y, both ascending. Between them the curve is
      straight (`np.interp`), so that it has no steps (Oron and Flournoy 2017, doi.org/10.1080/19466315.2017.1286256).
    """
    points, index, counts = np.unique(x, return_inverse=True, return_counts=True)
    blocks: list[list[float]] = []  # count, sum of x, sum of y
    for count, point, total in zip(counts, points, np.bincount(index, weights=y), strict=True):
        blocks.append([count, count * point, total])
        while len(blocks) > 1 and blocks[-2][2] * blocks[-1][0] >= blocks[-1][2] * blocks[-2][0]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    count, sum_x, sum_y = np.array(blocks).T
    return sum_x / count, sum_y / count
