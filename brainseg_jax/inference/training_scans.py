"""Checks whether a scan is like the training scans of a network, before segmentation."""

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
MIN_PATIENTS = 20  # training patients; fewer give no reliable limits
_VERSION = 1
_OUTLIERS = 0.03  # fraction of the training scans that may be outliers of each measure
_DISTANCE_FACTOR = 1.5  # limit of the distance, relative to the farthest training scan
_MIN_CAUGHT = 0.75  # minimum fraction of the unlike scans that a rule must flag; other rules are dropped
# Threshold of a rule: its margin below the scores of the training scans, and its maximum.
_MARGIN, _MAX_THRESHOLD = 0.2, 0.3
# Standard deviation of a ring's percentile due to pixel positions, relative to the head's median.
_MEASUREMENT_STD = 0.05
_SHRINKAGE = 0.2  # of covariances toward their diagonal
_ORIENTATIONS = [
    (axes, flips) for axes in itertools.permutations(range(3)) for flips in itertools.product((False, True), repeat=3)
]
# Left-right mirroring counts as upright.
_UPRIGHT = [((0, 1, 2), (False, False, mirrored)) for mirrored in (False, True)]


@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """A linear discriminant between training scans and scans of one unlike kind.

    Attributes:
      kind: the unlike kind, in words.
      weights: [FEATURES]. The score is the sum of features times weights, plus `bias`. Its mean is 1 over the training
        scans and -1 over the unlike kind.
      bias: see `weights`.
      below: scores below this are flagged. It is 0, halfway to the unlike kind, or higher if the training scans permit
        it.
      scores: minimum and maximum over the training scans, each scored by a rule fitted without its patient.
      caught: fraction of the unlike scans that is flagged, computed in the same way.
    """

    kind: str
    weights: np.ndarray
    bias: float
    below: float
    scores: tuple[float, float]
    caught: float

    def score(self, features: np.ndarray) -> np.ndarray:
        """Scores of features [..., FEATURES]."""
        return features @ self.weights + self.bias


_FeaturesOfPatient = tuple[str, np.ndarray]  # a patient, and the features of one scan


class Limit(NamedTuple):
    """Limit of a measure, and its minimum and maximum over the training scans."""

    limit: float
    lowest: float
    highest: float


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingScans:
    """Statistics of the training scans, in the channel that pictures show (`Description.shown`).

    Attributes:
      scans: number of training scans.
      channel: name of the channel.
      mean: mean of their reduced heads, [CUBE, CUBE, CUBE].
      correlation: limit of the correlation of a head with `mean`; a scan below it is flagged.
      upright: limit of this correlation minus the highest one in another orientation. A scan below it is turned. None
        if the training scans do not separate the two.
      slices: limit of the number of slices that show the head; a scan with fewer is flagged.
      center: mean profile of the head from its surface inward, [RINGS].
      precision: inverse covariance of that profile, [RINGS, RINGS].
      distance: limit of the distance of a profile from `center` (Mahalanobis, divided by the square root of RINGS); a
        scan above it is flagged.
      rules: rules against unlike kinds of scans.
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
        """Measures training scans and unlike scans derived from them.

        Unlike scans are the other channels in place of the shown one, and the simulations in `unlike.KINDS`.

        Args:
          volumes: training volumes; only one at a time is in memory.
          patients: patient of each volume.
          description: description of the network.

        Returns:
          None if fewer than `MIN_PATIENTS` patients have scans with a head, since each is compared with the others.
        """
        alike: list[tuple[str, Measures]] = []
        tilted: list[_FeaturesOfPatient] = []
        unlike_scans: dict[str, list[_FeaturesOfPatient]] = {}
        for volume, patient in zip(volumes, patients, strict=True):
            shown = volume.voxels[..., description.shown]
            if (head := find_head(shown)) is None:
                continue
            alike.append((patient, measure_head(head)))
            tilted += _features_of(patient, tilts(head))
            for kind, simulate in KINDS.items():
                unlike_scans.setdefault(kind, []).extend(_features_of(patient, simulate(head)))
            for index, name in enumerate(description.channels):
                other = volume.voxels[..., index]
                if not np.array_equal(other, shown) and (head_of_other := find_head(other)):
                    changed = [head_of_other.voxels, *tilts(head_of_other)]
                    unlike_scans.setdefault(f"a {name} scan", []).extend(_features_of(patient, changed))
        if len({patient for patient, _ in alike}) < MIN_PATIENTS:
            return None
        patient_names = np.array([patient for patient, _ in alike])
        measures = [measured for _, measured in alike]
        mean, correlation, upright = _fit_head(measures, patient_names)
        features = np.stack([measured.features for measured in measures])
        center, precision, distance = _fit_profile(features[:, :RINGS], patient_names)
        slices = [measured.slices for measured in measures]
        rules = (
            _rule(kind, features, patient_names, tilted, scans_of_kind) for kind, scans_of_kind in unlike_scans.items()
        )
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
        """Describes how a scan is unlike the training scans, with its value and theirs. Empty if it is like them.

        Args:
          volume: volume of the scan.
          shown: index of the channel to check, `Description.shown`.
        """
        channel = volume.voxels[..., shown]
        if channel.min() == channel.max():
            return (f"{self.channel} is {channel.flat[0]} everywhere",)
        measures = measure(channel)
        if measures is None:
            return (f"{self.channel} shows no head: no connected region is bright",)
        if measures.slices < self.slices.limit:
            return (
                f"{measures.slices} slice{'s' * (measures.slices > 1)} with a head in {self.channel}; "
                f"{self.slices.lowest:g} to {self.slices.highest:g} in training",
            )
        correlation, turned, turn = _compare_orientations(measures.cube, self.mean)
        if self.upright and correlation - turned < self.upright.limit:
            return (
                f"{self.channel} has another orientation ({_describe_turn(turn)}): its correlation with the mean "
                f"training scan is {correlation:.2f}, turned {turned:.2f}",
            )
        flags = []
        if correlation < self.correlation.limit:
            flags.append(
                f"the shape of {self.channel}: its correlation with the mean training scan is {correlation:.2f}; "
                f"{self.correlation.lowest:.2f} to {self.correlation.highest:.2f} in training"
            )
        scores = [(float(rule.score(measures.features)), rule) for rule in self.rules]
        if below := [(score, rule) for score, rule in scores if score < rule.below]:
            score, rule = min(below, key=lambda score_and_rule: abs(score_and_rule[0] + 1))  # the most similar kind
            flags.append(
                f"the intensities of {self.channel} are like those of {rule.kind}: score {score:.2f}, "
                f"below {rule.below:.2f}; {rule.scores[0]:.2f} to {rule.scores[1]:.2f} in training"
            )
        distance = float(_distance(measures.features[:RINGS], self.center, self.precision))
        if distance > self.distance.limit and not flags:
            flags.append(
                f"the intensities of {self.channel} from the surface of the head inward: distance {distance:.1f} from "
                f"the mean training scan; {self.distance.lowest:.1f} to {self.distance.highest:.1f} in training"
            )
        return tuple(flags)

    def write(self, path: Path) -> None:
        """Writes JSON, all or nothing. Raises OSError on failure."""
        content = {"version": _VERSION, **dataclasses.asdict(self)}
        write_whole(path, lambda part: part.write_text(json.dumps(_rounded(content)) + "\n", encoding="utf-8"))

    @classmethod
    def read(cls, path: Path) -> "TrainingScans":
        """The inverse of `write`. Raises InputError if the file is damaged or of another version."""
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
                f"{path} cannot be read ({words}); restore a complete copy, or delete it to predict without flags"
            ) from error

    @property
    def digest(self) -> str:
        """Identifies the content, since the flags depend on it."""
        content = json.dumps(_rounded(dataclasses.asdict(self)))
        return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:12]


def _features_of(patient: str, scans: Iterable[np.ndarray]) -> list[_FeaturesOfPatient]:
    """The patient and the features of changed scans, [S, H, W] each. Skips scans without a head."""
    return [(patient, measures.features) for measures in map(measure, scans) if measures]


def _fit_head(measures: Sequence[Measures], patients: np.ndarray) -> tuple[np.ndarray, Limit, Limit | None]:
    """Mean head, and limits of the correlation with it. Each scan is compared with the mean of the other patients."""
    cubes = np.stack([_standard(scan.cube) for scan in measures])
    results = [
        _compare_orientations(cube, cubes[patients != patient].mean(axis=0))
        for cube, patient in zip(cubes, patients, strict=True)
    ]
    correlations = np.array([correlation for correlation, _, _ in results])
    margins = correlations - np.array([turned for _, turned, _ in results])
    median = np.median(correlations)
    spread = 1.4826 * np.median(np.abs(correlations - median))
    low = min(_robust_minimum(correlations), median - 4 * spread) - 0.05
    lowest = _robust_minimum(margins)
    upright = Limit(min(0.0, lowest), float(margins.min()), float(margins.max())) if lowest > -0.05 else None
    return cubes.mean(axis=0), Limit(float(low), float(correlations.min()), float(correlations.max())), upright


def _fit_profile(profiles: np.ndarray, patients: np.ndarray) -> tuple[np.ndarray, np.ndarray, Limit]:
    """Center and precision of profiles, and the limit of the distance. Each scan is compared with other patients."""
    distances = np.array(
        [
            _distance(profile, *_mean_and_precision(profiles[patients != patient]))
            for profile, patient in zip(profiles, patients, strict=True)
        ]
    )
    limit = _DISTANCE_FACTOR * -_robust_minimum(-distances)
    return *_mean_and_precision(profiles), Limit(float(limit), float(distances.min()), float(distances.max()))


def _mean_and_precision(profiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and inverse covariance, shrunk toward its diagonal, with the variance of the measurement added."""
    center = profiles.mean(axis=0)
    covariance = np.cov(profiles.T, bias=True)
    diagonal = np.diag(np.diag(covariance))
    shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * diagonal
    return center, np.linalg.inv(shrunk + _MEASUREMENT_STD**2 * np.eye(len(center)))


def _distance(profile: np.ndarray, center: np.ndarray, precision: np.ndarray) -> np.ndarray:
    difference = profile - center
    return np.sqrt(difference @ precision @ difference / len(difference))


def _rule(
    kind: str,
    features: np.ndarray,
    patients: np.ndarray,
    tilted: Sequence[_FeaturesOfPatient],
    unlike_scans: Sequence[_FeaturesOfPatient],
) -> Rule | None:
    """The rule against a kind. None if it does not separate training scans from scans of that kind."""
    others = np.stack([scan for _, scan in unlike_scans])
    patients_of_others = np.array([patient for patient, _ in unlike_scans])
    alike = np.concatenate([features, np.stack([scan for _, scan in tilted])])
    patients_of_alike = np.concatenate([patients, [patient for patient, _ in tilted]])
    if len(set(patients_of_others)) < MIN_PATIENTS:
        return None
    scores, scores_of_others = np.empty(len(features)), np.empty(len(others))
    for patient in set(patients):
        weights, bias = _discriminant(alike[patients_of_alike != patient], others[patients_of_others != patient])
        scores[patients == patient] = features[patients == patient] @ weights + bias
        scores_of_others[patients_of_others == patient] = others[patients_of_others == patient] @ weights + bias
    below = float(np.clip(_robust_minimum(scores) - _MARGIN, 0.0, _MAX_THRESHOLD))
    caught = float((scores_of_others < below).mean())
    if caught < _MIN_CAUGHT:
        return None
    return Rule(kind, *_discriminant(alike, others), below, (float(scores.min()), float(scores.max())), caught)


def _discriminant(alike: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, float]:
    """Fisher's linear discriminant with the covariance shrunk toward its diagonal.

    Args:
      alike: features of training scans and their tilted variants, [M, FEATURES]. Their mean has the score 1.
      others: features of the unlike kind, [L, FEATURES]. Their mean has the score -1.

    Returns:
      Weights and bias.
    """
    centers = alike.mean(axis=0), others.mean(axis=0)
    within = np.concatenate([alike - centers[0], others - centers[1]])
    spread = within.std(axis=0) + 1e-6
    within /= spread
    covariance = (1 - _SHRINKAGE) * within.T @ within / len(within) + _SHRINKAGE * np.eye(len(spread))
    weights = np.linalg.solve(covariance, (centers[0] - centers[1]) / spread) / spread
    weights *= 2 / (weights @ (centers[0] - centers[1]))
    return weights, float(-weights @ (centers[0] + centers[1]) / 2)


def _compare_orientations(cube: np.ndarray, mean: np.ndarray) -> tuple[float, float, tuple]:
    """Correlations of a head with the mean: in upright orientation, and the highest in another one.

    Returns:
      Both, and the axes and flips that turn the head to the orientation of the training scans.
    """
    cube, mean = _standard(cube), _standard(mean)
    correlations = {}
    for axes, flips in _ORIENTATIONS:
        turned = np.flip(cube.transpose(axes), tuple(axis for axis in range(3) if flips[axis]))
        correlations[axes, flips] = float((turned * mean).sum())
    best = max((turn for turn in correlations if turn not in _UPRIGHT), key=correlations.__getitem__)
    return max(correlations[turn] for turn in _UPRIGHT), correlations[best], best


def _describe_turn(turn: tuple) -> str:
    (slices, rows, _), (flipped_slices, flipped_rows, _) = turn
    if slices != 0:
        return "its slices are not axial"
    parts = ["rotated by 90 degrees"] if rows != 1 else ["upside down"] if flipped_rows else []
    return " and ".join(parts + ["its slices run from crown to foot"] * flipped_slices)


def _standard(cube: np.ndarray) -> np.ndarray:
    """Normalizes to mean 0 and sum of squares 1."""
    cube = cube - cube.mean()
    return cube / max(float(np.sqrt((cube**2).sum())), 1e-9)


def _robust_minimum(values: np.ndarray) -> float:
    """The minimum without outliers."""
    return float(np.sort(values)[round(_OUTLIERS * len(values))])


def _rule_from_json(content: dict) -> Rule:
    kind, numbers = content["kind"], ("bias", "below", "caught")
    if not isinstance(kind, str):
        raise ValueError(f"a rule of the kind {kind!r}")
    checked = {name: float(_array(content[name], (), f"{name} of the rule against {kind}")) for name in numbers}
    weights = _array(content["weights"], (FEATURES,), f"weights of the rule against {kind}")
    low, high = _array(content["scores"], (2,), f"scores of the rule against {kind}").tolist()
    return Rule(**{**content, **checked, "weights": weights, "scores": (low, high)})


def _array(values: object, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Converts JSON numbers. Raises ValueError, with `name`, for text, another shape, NaN or infinity."""
    try:
        array = np.array(values)
    except ValueError:  # rows of different lengths
        array = np.array("")
    if array.shape != shape or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        actual = f"{values!r}"[:60] if array.size == 1 else f"an array of shape {array.shape}"
        expected = f"finite numbers of shape {shape}" if shape else "a finite number"
        raise ValueError(f"{name}: {actual} instead of {expected}")
    return array.astype(np.float64)


def _rounded(value: object) -> object:
    """Rounds to five significant digits and converts to JSON types."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_rounded(item) for item in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return float(f"{value:.5g}") if isinstance(value, float) else value
