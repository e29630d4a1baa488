"""Scores of volumes from additive counts: pure functions that need only jax and numpy.

The 3-D score of a patient comes from sums over all slices of the patient, never from a mean over slices or batches.

Empty masks: where reference and prediction are both empty, a score is 1. Where only one is empty, it is 0. This holds
for Dice, IoU, precision and recall, so no score is NaN and an empty prediction is not rewarded.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class PatientSums(NamedTuple):
    """Counts of one volume, or arrays [P] for several patients. The counts of two volumes add up field by field."""

    overlap: np.ndarray | int  # voxels of the target in reference and prediction
    predicted: np.ndarray | int  # voxels of the target in the prediction
    actual: np.ndarray | int  # voxels of the target in the reference
    slices: np.ndarray | int
    tumor_slices: np.ndarray | int  # slices with a reference voxel
    found_slices: np.ndarray | int  # tumor slices where prediction and reference overlap
    false_positive_slices: np.ndarray | int  # predicted voxels, but no reference voxel


def volume_sums(predicted: np.ndarray, actual: np.ndarray) -> PatientSums:
    """Counts one volume.

    Args:
      predicted: [S, H, W] bool.
      actual: [S, H, W] bool.
    """
    overlap, n_predicted, n_actual = (
        masks.sum(axis=(1, 2), dtype=np.int64) for masks in (predicted & actual, predicted, actual)
    )
    return PatientSums(
        overlap=int(overlap.sum()),
        predicted=int(n_predicted.sum()),
        actual=int(n_actual.sum()),
        slices=len(actual),
        tumor_slices=int((n_actual > 0).sum()),
        found_slices=int((overlap > 0).sum()),
        false_positive_slices=int(((n_actual == 0) & (n_predicted > 0)).sum()),
    )


def dice(predicted: np.ndarray, actual: np.ndarray) -> float:
    """Returns the 3-D Dice of two bool masks of the same shape; 1 where both are empty."""
    total = int(predicted.sum()) + int(actual.sum())
    return 2.0 * int((predicted & actual).sum()) / total if total else 1.0


def patient_scores(sums: PatientSums) -> dict[str, np.ndarray]:
    """Returns 3-D Dice, IoU, precision and recall of each patient, in [0, 1].

    Args:
      sums: over all slices of each patient.

    Returns:
      name -> [P] float64. The module docstring defines the scores of empty masks.
    """
    overlap, predicted, actual = (np.asarray(x, np.float64) for x in (sums.overlap, sums.predicted, sums.actual))
    both_empty = (predicted == 0) & (actual == 0)

    def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        return np.where(both_empty, 1.0, numerator / np.maximum(denominator, 1.0))

    return {
        "dice": ratio(2 * overlap, predicted + actual),
        "iou": ratio(overlap, predicted + actual - overlap),
        "precision": ratio(overlap, predicted),
        "recall": ratio(overlap, actual),
    }


def soft_batch_iou(probability: jax.Array, labels: jax.Array, valid: jax.Array, *, smooth: float = 0.1) -> jax.Array:
    """(Σ p y + s) / (Σ p + Σ y - Σ p y + s) over a whole batch: the "IoU" of the reproduced Keras project.

    Use it only for comparison with that project. It has no threshold and does not separate patients, so empty slices of
    other patients hide misses.

    Args:
      probability: [B, H, W, K] in [0, 1].
      labels: [B, H, W, K] in {0, 1}.
      valid: [B] bool; False marks padding.
      smooth: s.

    Returns:
      scalar float32 in [0, 1].
    """
    weight = valid.astype(jnp.float32)[:, None, None, None]
    probability, labels = probability.astype(jnp.float32) * weight, labels.astype(jnp.float32) * weight
    overlap = jnp.sum(probability * labels)
    return (overlap + smooth) / (jnp.sum(probability) + jnp.sum(labels) - overlap + smooth)
