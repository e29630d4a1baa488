"""Calibration of the probabilities (is 0.8 correct in 8 of 10 voxels?), and Dice at other thresholds.

The counts of patients add up, so memory never holds a whole cohort.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from brainseg_jax.data.normalization import head_level

BINS = 15  # equal width, as in Guo et al. 2017
THRESHOLDS = np.round(np.arange(0.05, 1.0, 0.05), 2)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Calibration of one target: counts of head voxels by predicted probability, and Dice by threshold.

    Attributes:
      voxels: [BINS] int64; bin b holds probabilities in [b / BINS, (b + 1) / BINS), the last bin also 1.
      tumor: [BINS] int64, the voxels of each bin that belong to the target.
      probability: [BINS] float64, sum of the probabilities in each bin.
      dice: [P, len(THRESHOLDS)] float64, 3-D Dice of each patient by threshold, without removal of components.
    """

    voxels: np.ndarray
    tumor: np.ndarray
    probability: np.ndarray
    dice: np.ndarray

    def __add__(self, other: "Calibration") -> "Calibration":
        return Calibration(
            self.voxels + other.voxels,
            self.tumor + other.tumor,
            self.probability + other.probability,
            np.concatenate([self.dice, other.dice]),
        )

    def to_json(self) -> dict[str, list]:
        """Returns the input of `from_json`, without loss of digits."""
        return {field.name: getattr(self, field.name).tolist() for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, content: dict[str, list]) -> "Calibration":
        """Inverse of `to_json`."""
        return cls(**{name: np.array(values) for name, values in content.items()})

    @property
    def error(self) -> float:
        """Expected calibration error: mean over voxels of |mean probability - fraction of tumor| in the voxel's bin.

        Guo et al. 2017 (arxiv.org/abs/1706.04599), equation 3, for the probability of the target. Most voxels are
        clearly healthy, so the error is small for any small target. The reliability diagram is more informative.
        """
        return float(np.abs(self.probability - self.tumor).sum() / max(1, self.voxels.sum()))

    def summary(self) -> dict:
        """Returns the content for `scores.json`; the fractions of an empty bin are None."""
        voxels = [int(n) for n in self.voxels]
        shares = {
            name: [float(x / n) if n else None for x, n in zip(values, voxels, strict=True)]
            for name, values in (("mean_probability", self.probability), ("tumor_share", self.tumor))
        }
        return {
            "expected_calibration_error": self.error,
            "bins": {"voxels": voxels, **shares},
            "dice_by_threshold": {
                str(t): float(d) for t, d in zip(THRESHOLDS.tolist(), self.dice.mean(axis=0), strict=True)
            },
        }


def combine(calibrations: Sequence[Calibration], patients: Sequence[str]) -> Calibration:
    """Adds up cases: counts are summed, and the Dice of a patient is the mean over the patient's cases.

    Args:
      calibrations: one per case; one or more cases.
      patients: the patient of each case, in the same order.
    """
    total = sum(calibrations[1:], start=calibrations[0])
    cases_of_patient = [
        [i for i, owner in enumerate(patients) if owner == patient] for patient in dict.fromkeys(patients)
    ]
    return dataclasses.replace(total, dice=np.stack([total.dice[cases].mean(axis=0) for cases in cases_of_patient]))


def combine_targets(
    calibrations: Sequence[Mapping[str, Calibration]], patients: Sequence[str]
) -> dict[str, Calibration]:
    """Applies `combine` to each target.

    Args:
      calibrations: target -> calibration for each of one or more cases; empty without probabilities.
      patients: the patient of each case, in the same order.
    """
    return {target: combine([one[target] for one in calibrations], patients) for target in calibrations[0]}


def summarize_targets(calibrations: Mapping[str, Calibration]) -> dict:
    """Returns the calibration block of `results.json` and `scores.json`.

    Args:
      calibrations: target -> calibration, one or more targets of the same patients.

    Returns:
      `summary` for one target. For several, "targets" holds the summary of each. "mean" holds the means over the
      targets of the expected calibration error and of Dice by threshold.
    """
    summaries = {name: calibration.summary() for name, calibration in calibrations.items()}
    if len(summaries) == 1:
        return next(iter(summaries.values()))
    dice = np.mean([list(one["dice_by_threshold"].values()) for one in summaries.values()], axis=0)
    mean = {
        "expected_calibration_error": float(np.mean([one.error for one in calibrations.values()])),
        "dice_by_threshold": {str(t): float(d) for t, d in zip(THRESHOLDS.tolist(), dice, strict=True)},
    }
    return {"targets": summaries, "mean": mean}


def calibrate(
    probability: np.ndarray, truth: np.ndarray, shown: np.ndarray, *, counted: np.ndarray | None = None
) -> Calibration:
    """Counts one case of one target.

    Args:
      probability: probability of the target, [S, H, W] in [0, 1].
      truth: [S, H, W] bool.
      shown: [S, H, W] uint8, the displayed channel (`Description.shown`). Voxels brighter than
        `normalization.head_level` are head.
      counted: [S, H, W] bool, False for voxels of an `ignore` label, which do not count; None: all count.

    Returns:
      counts with P = 1. Dice uses all voxels, inside and outside of the head.
    """
    head = shown > head_level(np.bincount(shown.ravel(), minlength=256))
    if counted is None:
        counted = np.ones(truth.shape, bool)
    p, y = probability[head & counted].astype(np.float64), truth[head & counted]
    bins = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    # The number of thresholds that each voxel reaches; it reaches the lowest ones.
    reached = np.searchsorted(THRESHOLDS.astype(probability.dtype), probability[counted], side="right")
    true = truth[counted]
    counts = [np.bincount(levels, minlength=len(THRESHOLDS) + 1) for levels in (reached, reached[true])]
    predicted, overlap = (n[::-1].cumsum()[::-1][1:] for n in counts)
    total = predicted + true.sum()
    return Calibration(
        voxels=np.bincount(bins, minlength=BINS),
        tumor=np.bincount(bins[y], minlength=BINS),
        probability=np.bincount(bins, weights=p, minlength=BINS),
        dice=np.where(total > 0, 2.0 * overlap / np.maximum(total, 1), 1.0)[None],
    )
