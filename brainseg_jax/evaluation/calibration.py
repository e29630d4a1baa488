"""Whether a probability of 0.8 is right in 8 of 10 voxels, and what another threshold would give.

Counts are additive over patients, so a cohort is never held in memory as a whole.
"""

from dataclasses import dataclass

import numpy as np

from brainseg_jax.data.normalization import head_level

BINS = 15  # of equal width, as in Guo et al. 2017
THRESHOLDS = np.round(np.arange(0.05, 1.0, 0.05), 2)


@dataclass(frozen=True)
class Calibration:
    """Counts of the voxels in the head, by bin of the predicted probability, and Dice of each patient by threshold.

    Attributes:
      voxels: [BINS] int64; bin b holds probabilities from b / BINS up to but not (b + 1) / BINS, the last one 1 too.
      tumor: [BINS] int64, those of them that are tumor.
      probability: [BINS] float64, the sum of their probabilities.
      dice: [P, len(THRESHOLDS)] float64, 3-D Dice of each patient where no part is taken out after the threshold.
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

    @property
    def error(self) -> float:
        """Expected calibration error: mean over voxels of |mean probability - share of tumor| of the voxel's bin.

        Guo et al. 2017 (arxiv.org/abs/1706.04599), equation 3, for the probability of tumor. Most voxels are surely
        healthy, so it is small in any segmentation of a small tumor: the diagram tells more.
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


def calibrate(probability: np.ndarray, truth: np.ndarray, flair: np.ndarray) -> Calibration:
    """Counts one patient.

    Args:
      probability: of tumor, [S, H, W] in [0, 1].
      truth: [S, H, W] bool.
      flair: [S, H, W] uint8; a voxel brighter than `normalization.head_level` is in the head.

    Returns:
      of P = 1. Dice counts all voxels, in the head or not.
    """
    head = flair > head_level(np.bincount(flair.ravel(), minlength=256))
    p, y = probability[head].astype(np.float64), truth[head]
    place = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    # How many thresholds a voxel reaches; those it does not reach are the higher ones.
    reached = np.searchsorted(THRESHOLDS.astype(probability.dtype), probability.ravel(), side="right")
    true = truth.ravel()
    counts = [np.bincount(of, minlength=len(THRESHOLDS) + 1) for of in (reached, reached[true])]
    predicted, overlap = (n[::-1].cumsum()[::-1][1:] for n in counts)
    total = predicted + true.sum()
    return Calibration(
        voxels=np.bincount(place, minlength=BINS),
        tumor=np.bincount(place[y], minlength=BINS),
        probability=np.bincount(place, weights=p, minlength=BINS),
        dice=np.where(total > 0, 2.0 * overlap / np.maximum(total, 1), 1.0)[None],
    )
