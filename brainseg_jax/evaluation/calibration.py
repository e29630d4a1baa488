"""Whether a probability of 0.8 is right in 8 of 10 voxels, and what another threshold would give.

Counts are additive over patients, so a cohort is never held in memory as a whole.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from brainseg_jax.data.normalization import head_level

BINS = 15  # of equal width, as in Guo et al. 2017
THRESHOLDS = np.round(np.arange(0.05, 1.0, 0.05), 2)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Counts of the voxels in the head, by bin of the predicted probability, and Dice of each patient by threshold.

    It is of one target.

    Attributes:
      voxels: [BINS] int64; bin b holds probabilities from b / BINS up to but not (b + 1) / BINS, the last one 1 too.
      tumor: [BINS] int64, those of them that belong to the target.
      probability: [BINS] float64, the sum of their probabilities.
      dice: [P, len(THRESHOLDS)] float64, 3-D Dice of each patient where no component is taken out after the threshold.
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
        """What `from_json` takes; no digit is lost."""
        return {field.name: getattr(self, field.name).tolist() for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, content: dict[str, list]) -> "Calibration":
        """The inverse of `to_json`."""
        return cls(**{name: np.array(values) for name, values in content.items()})

    @property
    def error(self) -> float:
        """Expected calibration error: mean over voxels of |mean probability - share of tumor| of the voxel's bin.

        Guo et al. 2017 (arxiv.org/abs/1706.04599), equation 3, for the probability of the target. Most voxels are
        surely healthy, so it is small in any segmentation of a small target: the diagram tells more.
        """
        return float(np.abs(self.probability - self.tumor).sum() / max(1, self.voxels.sum()))

    def summary(self) -> dict:
        """What `scores.json` holds of it; a bin without a voxel has None for its shares."""
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
    """Adds up cases: counts are added, and Dice is the mean over the cases of each patient.

    Args:
      calibrations: of one case each, one or more.
      patients: whose case it is, in the same order.
    """
    total = sum(calibrations[1:], start=calibrations[0])
    own = [[i for i, one in enumerate(patients) if one == patient] for patient in dict.fromkeys(patients)]
    return dataclasses.replace(total, dice=np.stack([total.dice[cases].mean(axis=0) for cases in own]))


def combine_targets(
    calibrations: Sequence[Mapping[str, Calibration]], patients: Sequence[str]
) -> dict[str, Calibration]:
    """`combine` of each target.

    Args:
      calibrations: of one case each, by target; one or more cases. Empty where there are no probabilities.
      patients: whose case it is, in the same order.
    """
    return {target: combine([one[target] for one in calibrations], patients) for target in calibrations[0]}


def summarize_targets(calibrations: Mapping[str, Calibration]) -> dict:
    """What `results.json` and `scores.json` hold of the calibration of all targets.

    Args:
      calibrations: by target, one or more, of the same patients.

    Returns:
      the `summary` where there is one target; else "targets", the summary of each, and "mean": over the targets, the
      expected calibration error and Dice by threshold.
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
      probability: of the target, [S, H, W] in [0, 1].
      truth: [S, H, W] bool.
      shown: [S, H, W] uint8, the channel that pictures show (`Description.shown`); a voxel brighter than
        `normalization.head_level` is in the head.
      counted: [S, H, W] bool, False for voxels of an `ignore` label, which are left out; None where all count.

    Returns:
      of P = 1. Dice counts all voxels, in the head or not.
    """
    head = shown > head_level(np.bincount(shown.ravel(), minlength=256))
    if counted is None:
        counted = np.ones(truth.shape, bool)
    p, y = probability[head & counted].astype(np.float64), truth[head & counted]
    bins = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    # How many thresholds a voxel reaches; those it does not reach are the higher ones.
    reached = np.searchsorted(THRESHOLDS.astype(probability.dtype), probability[counted], side="right")
    true = truth[counted]
    counts = [np.bincount(of, minlength=len(THRESHOLDS) + 1) for of in (reached, reached[true])]
    predicted, overlap = (n[::-1].cumsum()[::-1][1:] for n in counts)
    total = predicted + true.sum()
    return Calibration(
        voxels=np.bincount(bins, minlength=BINS),
        tumor=np.bincount(bins[y], minlength=BINS),
        probability=np.bincount(bins, weights=p, minlength=BINS),
        dice=np.where(total > 0, 2.0 * overlap / np.maximum(total, 1), 1.0)[None],
    )
