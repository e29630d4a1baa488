"""Whether a scan is like those that a network was trained on, told before it is segmented."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.files import write_whole
from brainseg_jax.inference.head import CUBE, FEATURES, RINGS, Measures, find_head, measure, measure_head
from brainseg_jax.inference.unlike import KINDS, tilts
from brainseg_jax.scans.description import Description
from brainseg_jax.scans.volume import Volume

FILE = "training_scans.json"
FEWEST = 20  # patients of the training; of fewer nothing can be said
_VERSION = 1
_IGNORED = 0.03  # of the training scans may be outliers of each measure
_FARTHER = 1.5  # times the distance of the farthest training scan
_CAUGHT = 0.75  # of the unlike scans a rule has to catch, or it is not used
_APART, _HIGHEST = 0.2, 0.3  # of a rule: how far below the training scans' scores it flags, and no higher than this
_INEXACT = 0.05  # standard deviation of a percentile of a ring by the place of its pixels, of the head's median
_SHRINKAGE = 0.2  # of covariances toward their diagonal
_TURNS = [
    (axes, flips) for axes in itertools.permutations(range(3)) for flips in itertools.product((False, True), repeat=3)
]
_UPRIGHT = [((0, 1, 2), (False, False, mirrored)) for mirrored in (False, True)]  # left and right look alike


@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """A line between training scans and scans of one wrong kind (linear discriminant analysis).

    Attributes:
      kind: what the wrong scans are, in words.
      weights: [FEATURES], the score is the sum of features times weights, plus `bias`: on average 1 of training scans,
        -1 of the wrong kind.
      bias: see `weights`.
      below: scores below this are flagged: 0, halfway to the wrong kind, or more where the training scans leave room.
      scores: lowest and highest of the training scans, each judged by a rule made without its patient.
      caught: share of the wrong scans that is flagged, judged likewise.
    """

    kind: str
    weights: np.ndarray
    bias: float
    below: float
    scores: tuple[float, float]
    caught: float

    def score(self, features: np.ndarray) -> np.ndarray:
        """Of features [..., FEATURES]."""
        return features @ self.weights + self.bias


_Owned = tuple[str, np.ndarray]  # a patient, and features of one of its scans


class Limit(NamedTuple):
    """What a measure must not pass, and its lowest and highest value among the training scans."""

    limit: float
    lowest: float
    highest: float


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingScans:
    """What the scans of a training look like, in the channel that pictures show (`Description.shown`).

    Attributes:
      scans: how many there were.
      channel: the name of the channel.
      mean: their mean reduced head, [CUBE, CUBE, CUBE].
      correlation: with `mean`; lower is unlike.
      upright: by how much that correlation is higher than of any way to turn the head; lower is turned. None where
        the training scans do not tell.
      slices: how many show the head; fewer are unlike.
      center: of the profile of the head from its surface inward, [RINGS].
      precision: inverse covariance of that profile, [RINGS, RINGS].
      distance: of a profile from `center` (Mahalanobis, divided by the square root of RINGS); larger is unlike.
      rules: against wrong kinds of scans.
    """

    scans: int
    channel: str
    mean: np.ndarray
    correlation: Limit
    upright: Limit | None
    slices: Limit
    center: np.ndarray
    precision: np.ndarray
    distance: Limit
    rules: tuple[Rule, ...]

    @classmethod
    def of(cls, volumes: Iterable[Volume], patients: Sequence[str], description: Description) -> "TrainingScans | None":
        """Measures training scans, and wrong versions of them.

        Wrong are their other channels in the place of the one that is shown, and what `unlike.KINDS` makes of them.

        Args:
          volumes: of the training; one at a time is in memory.
          patients: whose volume each is.
          description: of the network.

        Returns:
          None of fewer than `FEWEST` patients in whose scans a head is found: each is compared with the others.
        """
        alike: list[tuple[str, Measures]] = []
        tilted: list[_Owned] = []
        wrong: dict[str, list[_Owned]] = {}
        for volume, patient in zip(volumes, patients, strict=True):
            shown = volume.voxels[..., description.shown]
            if (head := find_head(shown)) is None:
                continue
            alike.append((patient, measure_head(head)))
            tilted += _owned(patient, tilts(head))
            for kind, make in KINDS.items():
                wrong.setdefault(kind, []).extend(_owned(patient, make(head)))
            for index, name in enumerate(description.channels):
                other = volume.voxels[..., index]
                if not np.array_equal(other, shown) and (head_of_other := find_head(other)):
                    changed = [head_of_other.voxels, *tilts(head_of_other)]
                    wrong.setdefault(f"a {name} scan", []).extend(_owned(patient, changed))
        if len({patient for patient, _ in alike}) < FEWEST:
            return None
        owners = np.array([patient for patient, _ in alike])
        measures = [one for _, one in alike]
        mean, correlation, upright = _of_position(measures, owners)
        features = np.stack([one.features for one in measures])
        center, precision, distance = _of_profile(features[:, :RINGS], owners)
        slices = [one.slices for one in measures]
        rules = (_rule(kind, features, owners, tilted, of_kind) for kind, of_kind in wrong.items())
        return cls(
            scans=len(alike),
            channel=description.channels[description.shown],
            mean=mean,
            correlation=correlation,
            upright=upright,
            slices=Limit(min(slices) / 2, float(min(slices)), float(max(slices))),
            center=center,
            precision=precision,
            distance=distance,
            rules=tuple(rule for rule in rules if rule),
        )

    def flags(self, volume: Volume, shown: int) -> tuple[str, ...]:
        """In what a scan is unlike the training scans, in words with its value and theirs; nothing where it is like.

        Args:
          volume: any.
          shown: index of the channel that is judged, `Description.shown`.
        """
        channel = volume.voxels[..., shown]
        if channel.min() == channel.max():
            return (f"{self.channel} is {channel.flat[0]} everywhere",)
        found = measure(channel)
        if found is None:
            return (f"{self.channel} shows no head: no connected region is bright",)
        if found.slices < self.slices.limit:
            return (
                f"{found.slices} slice{'s' * (found.slices > 1)} with a head in {self.channel}; "
                f"{self.slices.lowest:g} to {self.slices.highest:g} in training",
            )
        own, turned, turn = _turned(found.cube, self.mean)
        if self.upright and own - turned < self.upright.limit:
            return (
                f"{self.channel} lies otherwise ({_in_words(turn)}): its correlation with the mean training scan is "
                f"{own:.2f}, turned {turned:.2f}",
            )
        flags = []
        if own < self.correlation.limit:
            flags.append(
                f"the shape of {self.channel}: its correlation with the mean training scan is {own:.2f}; "
                f"{self.correlation.lowest:.2f} to {self.correlation.highest:.2f} in training"
            )
        scores = [(float(rule.score(found.features)), rule) for rule in self.rules]
        if below := [(score, rule) for score, rule in scores if score < rule.below]:
            score, rule = min(below, key=lambda one: abs(one[0] + 1))  # that which it looks like most
            flags.append(
                f"the intensities of {self.channel} are like those of {rule.kind}: score {score:.2f}, "
                f"below {rule.below:.2f}; {rule.scores[0]:.2f} to {rule.scores[1]:.2f} in training"
            )
        distance = float(_distance(found.features[:RINGS], self.center, self.precision))
        if distance > self.distance.limit and not flags:
            flags.append(
                f"the intensities of {self.channel} from the surface of the head inward: distance {distance:.1f} from "
                f"the mean training scan; {self.distance.lowest:.1f} to {self.distance.highest:.1f} in training"
            )
        return tuple(flags)

    def write(self, path: Path) -> None:
        """Writes JSON, all or nothing. Raises OSError where that fails."""
        content = {"version": _VERSION, **dataclasses.asdict(self)}
        write_whole(path, lambda part: part.write_text(json.dumps(_rounded(content)) + "\n", encoding="utf-8"))

    @classmethod
    def read(cls, path: Path) -> "TrainingScans":
        """The inverse of `write`. Raises InputError where the file is damaged or of another version."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.pop("version")
            if version != _VERSION:
                raise ValueError(f"version {version}; this code reads version {_VERSION}")
            for key in ("correlation", "upright", "slices", "distance"):
                if key != "upright" or content[key] is not None:
                    content[key] = Limit(*_array(content[key], (3,), key).tolist())
            for key, shape in (("mean", (CUBE,) * 3), ("center", (RINGS,)), ("precision", (RINGS, RINGS))):
                content[key] = _array(content[key], shape, key)
            content["rules"] = tuple(map(_rule_from_json, content["rules"]))
            if type(content["scans"]) is not int or not isinstance(content["channel"], str):
                raise ValueError(f"scans {content['scans']!r} of the channel {content['channel']!r}")
            return cls(**content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            words = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(
                f"{path} cannot be read ({words}); put back a whole copy, or delete it to predict without flags"
            ) from error

    @property
    def digest(self) -> str:
        """Identifies it: other training scans flag others."""
        content = json.dumps(_rounded(dataclasses.asdict(self)))
        return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:12]


def _owned(patient: str, scans: Iterable[np.ndarray]) -> list[_Owned]:
    """The features of changed scans, [S, H, W] each, in which a head is found."""
    return [(patient, found.features) for found in map(measure, scans) if found]


def _of_position(measures: Sequence[Measures], owners: np.ndarray) -> tuple[np.ndarray, Limit, Limit | None]:
    """The mean head, and limits of the correlation with it; each scan is compared with the mean of other patients."""
    cubes = np.stack([_standard(one.cube) for one in measures])
    results = [_turned(cube, cubes[owners != owner].mean(axis=0)) for cube, owner in zip(cubes, owners, strict=True)]
    own = np.array([own for own, _, _ in results])
    margins = own - np.array([turned for _, turned, _ in results])
    median = np.median(own)
    spread = 1.4826 * np.median(np.abs(own - median))
    low = min(_near_lowest(own), median - 4 * spread) - 0.05
    lowest = _near_lowest(margins)
    upright = Limit(min(0.0, lowest), float(margins.min()), float(margins.max())) if lowest > -0.05 else None
    return cubes.mean(axis=0), Limit(float(low), float(own.min()), float(own.max())), upright


def _of_profile(profiles: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray, Limit]:
    """Center and precision of profiles, and the limit of the distance; each scan is compared with other patients."""
    distances = np.array(
        [
            _distance(profile, *_center(profiles[owners != owner]))
            for profile, owner in zip(profiles, owners, strict=True)
        ]
    )
    limit = _FARTHER * -_near_lowest(-distances)
    return *_center(profiles), Limit(float(limit), float(distances.min()), float(distances.max()))


def _center(profiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and inverse covariance, shrunk toward its diagonal, with the variance that measuring adds."""
    center = profiles.mean(axis=0)
    covariance = np.cov(profiles.T, bias=True)
    diagonal = np.diag(np.diag(covariance))
    shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * diagonal
    return center, np.linalg.inv(shrunk + _INEXACT**2 * np.eye(len(center)))


def _distance(profile: np.ndarray, center: np.ndarray, precision: np.ndarray) -> np.ndarray:
    difference = profile - center
    return np.sqrt(difference @ precision @ difference / len(difference))


def _rule(
    kind: str,
    features: np.ndarray,
    owners: np.ndarray,
    tilted: Sequence[_Owned],
    wrong: Sequence[_Owned],
) -> Rule | None:
    """The rule against a kind; None where it does not part training scans from scans of that kind."""
    others, of_others = np.stack([one for _, one in wrong]), np.array([owner for owner, _ in wrong])
    alike = np.concatenate([features, np.stack([one for _, one in tilted])])
    of_alike = np.concatenate([owners, [owner for owner, _ in tilted]])
    if len(set(of_others)) < FEWEST:
        return None
    scores, scores_of_others = np.empty(len(features)), np.empty(len(others))
    for owner in set(owners):
        weights, bias = _line(alike[of_alike != owner], others[of_others != owner])
        scores[owners == owner] = features[owners == owner] @ weights + bias
        scores_of_others[of_others == owner] = others[of_others == owner] @ weights + bias
    below = float(np.clip(_near_lowest(scores) - _APART, 0.0, _HIGHEST))
    caught = float((scores_of_others < below).mean())
    if caught < _CAUGHT:
        return None
    return Rule(kind, *_line(alike, others), below, (float(scores.min()), float(scores.max())), caught)


def _line(alike: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, float]:
    """Fisher's linear discriminant with the covariance shrunk toward its diagonal.

    Args:
      alike: features of training scans and variations of them, [M, FEATURES]; their mean has the score 1.
      others: of the wrong kind, [L, FEATURES]; their mean has the score -1.

    Returns:
      weights and bias.
    """
    centers = alike.mean(axis=0), others.mean(axis=0)
    within = np.concatenate([alike - centers[0], others - centers[1]])
    spread = within.std(axis=0) + 1e-6
    within /= spread
    covariance = (1 - _SHRINKAGE) * within.T @ within / len(within) + _SHRINKAGE * np.eye(len(spread))
    weights = np.linalg.solve(covariance, (centers[0] - centers[1]) / spread) / spread
    weights *= 2 / (weights @ (centers[0] - centers[1]))
    return weights, float(-weights @ (centers[0] + centers[1]) / 2)


def _turned(cube: np.ndarray, mean: np.ndarray) -> tuple[float, float, tuple]:
    """Correlation of a head with the mean as it lies, the highest one when turned, and that turn.

    Returns:
      its axes and flips, as they bring the head to the training scans.
    """
    cube, mean = _standard(cube), _standard(mean)
    found = {}
    for axes, flips in _TURNS:
        turned = np.flip(cube.transpose(axes), tuple(axis for axis in range(3) if flips[axis]))
        found[axes, flips] = float((turned * mean).sum())
    best = max((turn for turn in found if turn not in _UPRIGHT), key=found.__getitem__)
    return max(found[turn] for turn in _UPRIGHT), found[best], best


def _in_words(turn: tuple) -> str:
    (slices, rows, _), (flipped_slices, flipped_rows, _) = turn
    if slices != 0:
        return "its slices are not axial"
    words = ["rotated by 90 degrees"] if rows != 1 else ["upside down"] if flipped_rows else []
    return " and ".join(words + ["its slices run from crown to foot"] * flipped_slices)


def _standard(cube: np.ndarray) -> np.ndarray:
    """Mean 0, and 1 as the sum of its squares."""
    cube = cube - cube.mean()
    return cube / max(float(np.sqrt((cube**2).sum())), 1e-9)


def _near_lowest(values: np.ndarray) -> float:
    """The lowest but for outliers."""
    return float(np.sort(values)[round(_IGNORED * len(values))])


def _rule_from_json(content: dict) -> Rule:
    kind, numbers = content["kind"], ("bias", "below", "caught")
    if not isinstance(kind, str):
        raise ValueError(f"a rule of the kind {kind!r}")
    checked = {name: float(_array(content[name], (), f"{name} of the rule against {kind}")) for name in numbers}
    weights = _array(content["weights"], (FEATURES,), f"weights of the rule against {kind}")
    low, high = _array(content["scores"], (2,), f"scores of the rule against {kind}").tolist()
    return Rule(**{**content, **checked, "weights": weights, "scores": (low, high)})


def _array(values: object, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Numbers of JSON; raises ValueError, which names them, for text, other shapes, and NaN or infinity."""
    try:
        array = np.array(values)
    except ValueError:  # rows of different lengths
        array = np.array("")
    if array.shape != shape or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        found = f"{values!r}"[:60] if array.size == 1 else f"an array of shape {array.shape}"
        wanted = f"finite numbers of shape {shape}" if shape else "a finite number"
        raise ValueError(f"{name}: {found}, and {wanted} {'are' if shape else 'is'} wanted")
    return array.astype(np.float64)


def _rounded(value: object) -> object:
    """With five significant digits, as JSON takes it."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_rounded(one) for one in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return float(f"{value:.5g}") if isinstance(value, float) else value
