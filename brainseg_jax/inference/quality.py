"""Confidence of a mask: the agreement of a network with itself, and the Dice to expect.

`agreement` needs no reference mask. `ExpectedDice` learns which Dice corresponds to which agreement, from cases with a
reference mask that the network was not trained on. It is valid for similar scans that are predicted in the same way.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from brainseg_jax.inference.postprocess import PostProcess, largest_component
from brainseg_jax.metrics import dice

LOW, HIGH = 0.1, 0.9  # thresholds; experiments/failure_detection.py compares others
MIN_PATIENTS = 20  # minimum number of patients for an interval
INTERVAL = 0.9  # fraction of the cases with a Dice within the interval
SIMILAR = 0.5  # a removed component is reported from this fraction of the mask's size on
DETECTOR = f"Dice between the masks at probabilities {LOW} and {HIGH}"
NO_MASK = "an empty mask has no expected Dice: the target may be absent or missed"
_VERSION = 1
_FOLDS = 20  # maximum number of folds; up to this number of patients it is leave-one-out


def agreement(probability: np.ndarray, mask: np.ndarray, post: PostProcess) -> float | None:
    """Returns the Dice between the masks at a low and at a high threshold, in [0, 1]; 1 is the most certain.

    It needs no additional prediction.

    Args:
      probability: probability of a target, [S, H, W].
      mask: the predicted mask, [S, H, W] bool.
      post: post-processing of the mask, also applied to the two masks, see `PostProcess.on_grid`.

    Returns:
      None if the mask is empty.
    """
    if not mask.any():
        return None
    low, high = (post._replace(threshold=level)(probability) for level in (LOW, HIGH))
    return dice(low, high) if low.any() else 0.0


class Pair(NamedTuple):
    """Agreement and Dice of a case with a reference mask, and its patient."""

    agreement: float
    dice: float
    patient: str


class Expected(NamedTuple):
    """The expected Dice, and an interval that contains the Dice in nine of ten cases; all in [0, 1]."""

    dice: float
    low: float
    high: float

    def __str__(self) -> str:
        """Text of at most 48 characters."""
        return f"expected Dice {self.dice:.2f} (90 % interval {self.low:.2f} to {self.high:.2f})"


class Removed(NamedTuple):
    """A component that post-processing removed although it is not much smaller than the mask.

    Attributes:
      fraction: its size, as a fraction of the mask's.
      first: index of its first slice.
      last: index of its last slice.
    """

    fraction: float
    first: int
    last: int


class Quality(NamedTuple):
    """The confidence of a mask without a reference: `agreement` and expected Dice; None where undefined.

    `removed` is the largest removed component, if it has at least the fraction `SIMILAR` of the mask's size. The
    network is then sure of two regions, and the expected Dice does not tell whether the mask is the right one.
    """

    agreement: float | None
    expected: Expected | None
    removed: Removed | None = None

    def __str__(self) -> str:
        """Text for messages."""
        if self.agreement is None:
            return NO_MASK
        return str(self.expected or f"agreement {self.agreement:.2f}, expected Dice unknown")


@dataclasses.dataclass(frozen=True, eq=False)
class ExpectedDice:
    """The expected Dice of a mask, as a function of its agreement.

    Attributes:
      targets: name -> pairs of cases with known Dice, from `MIN_PATIENTS` or more patients.
      source: describes these cases.
    """

    targets: dict[str, tuple[Pair, ...]]
    source: str
    _curves: dict = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __call__(self, target: str, value: float | None, *, without: str | None = None) -> Expected | None:
        """Returns the expected Dice of a mask.

        Args:
          target: name of the target.
          value: agreement of the mask.
          without: a patient to leave out, for masks of cases with known Dice.

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
        """Identifier that changes with the cases."""
        return hashlib.sha256(repr(self.to_json()).encode(errors="surrogateescape")).hexdigest()[:12]

    def to_json(self) -> dict:
        """Returns the content of `expected_dice.json`."""
        return {"version": _VERSION, "detector": DETECTOR, "source": self.source, "targets": self.targets}

    @classmethod
    def from_json(cls, content: dict) -> "ExpectedDice":
        """Inverse of `to_json`. Raises ValueError if the content is invalid."""
        try:
            if (content["version"], content["detector"]) != (_VERSION, DETECTOR):
                raise ValueError(f"it has version {content['version']} and detector {content['detector']!r}")
            targets = {
                name: tuple(Pair(float(value), float(dice), str(patient)) for value, dice, patient in pairs)
                for name, pairs in content["targets"].items()
            }
            source = str(content["source"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        for name, pairs in targets.items():
            if (patients := len({pair.patient for pair in pairs})) < MIN_PATIENTS:
                raise ValueError(f"it has {patients} patients for {name}; at least {MIN_PATIENTS} are needed")
            if any(not 0.0 <= number <= 1.0 for pair in pairs for number in pair[:2]):
                raise ValueError(f"a value for {name} is outside of [0, 1]")
        return cls(targets, source)


def rate(
    probability: np.ndarray,
    masks: np.ndarray,
    posts: Sequence[PostProcess],
    names: Sequence[str],
    expected: ExpectedDice | None,
) -> tuple[Quality, ...]:
    """Returns the confidence of the masks of a scan.

    Args:
      probability: [S, H, W, K].
      masks: [S, H, W, K] bool.
      posts: post-processing of each target, see `agreement`.
      names: names of the K targets.
      expected: None if unknown.
    """
    qualities = []
    for k, (name, post) in enumerate(zip(names, posts, strict=True)):
        value = agreement(probability[..., k], masks[..., k], post)
        removed = _removed(probability[..., k] >= post.threshold, masks, k)
        qualities.append(Quality(value, expected(name, value) if expected else None, removed))
    return tuple(qualities)


def _removed(reached: np.ndarray, masks: np.ndarray, k: int) -> Removed | None:
    """See `Quality.removed`; `reached` [S, H, W] bool are the voxels of target k before components were removed."""
    size = int(masks[..., k].sum())
    largest = largest_component(reached & ~masks.any(axis=-1))
    if not size or largest is None or largest.size < SIMILAR * size:
        return None
    return Removed(largest.size / size, largest.first, largest.last)


class Curve:
    """Expected Dice and its interval as functions of the agreement.

    The expected Dice is a monotone regression (`increasing`): it never falls as the agreement rises. Below the lowest
    known agreement, it goes linearly to 0 at agreement 0. The interval is that of CV+, the jackknife+ with folds
    (Barber et al. 2021, doi.org/10.1214/20-AOS1965): it uses errors of curves that were fitted without the patient.
    Each error is divided by the usual error at its agreement, so the interval is wide where errors are large.
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
        predicted = np.array([np.interp(v, *self._without[k]) for v, k in zip(values, self._folds, strict=True)])
        errors = np.abs(dice_of - predicted)
        self._mean_error = max(float(errors.mean()), 1e-3)
        knots, negative = increasing(values, -errors)
        self._error = knots, -negative
        self._ratios = errors / self._usual_error(values)

    def __call__(self, value: float) -> Expected:
        """Returns the expected Dice at an agreement."""
        expected = float(np.interp(value, *self._dice))
        centers = np.array([np.interp(value, *curve) for curve in self._without])[self._folds]
        widths = self._ratios * self._usual_error(value)
        count = len(widths)
        rank = min(count, math.ceil((count + 1) * INTERVAL))
        low, high = np.sort(centers - widths)[count - rank], np.sort(centers + widths)[rank - 1]
        return Expected(expected, float(np.clip(low, 0.0, expected)), float(np.clip(high, expected, 1.0)))

    def _usual_error(self, values: np.ndarray | float) -> np.ndarray | float:
        """Averages mean error and its monotone regression: a few neighboring cases can have tiny errors by chance."""
        return 0.5 * self._mean_error + 0.5 * np.interp(values, *self._error)


def _folds(values: np.ndarray, patients: Sequence[str]) -> np.ndarray:
    """Returns the fold of each case, [n] int. A patient has one fold; each fold has low and high agreements."""
    first = {patient: values[patients.index(patient)] for patient in patients}
    ordered = sorted(first, key=lambda patient: (first[patient], patient))
    fold_of = {patient: k % _FOLDS for k, patient in enumerate(ordered)}
    return np.array([fold_of[patient] for patient in patients])


def _from_origin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the curve of `increasing` with the point (0, 0) in front, for `np.interp`."""
    knots, heights = increasing(x, y)
    return np.append(0.0, knots), np.append(0.0, heights)


def increasing(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Monotone regression by least squares: pool adjacent violators (Ayer 1955, doi.org/10.1214/aoms/1177728423).

    `scipy.optimize.isotonic_regression` gives the same means, but its import costs `predict` a third of a second.

    Args:
      x: [n].
      y: [n].

    Returns:
      the mean of x and of y in each block of equal fitted values, both ascending. Linear interpolation between them
      (`np.interp`) avoids steps (Oron and Flournoy 2017, doi.org/10.1080/19466315.2017.1286256).
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
