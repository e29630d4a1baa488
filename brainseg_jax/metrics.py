"""Scores of volumes from additive counts: pure functions, jax and numpy and nothing else.

A patient's 3-D score is made from the sums over all of that patient's slices, never from an average over slices or
batches.

Rule for empty masks: where truth and prediction are both empty a score is 1; where only one of them is, it is 0. The
same rule serves Dice, IoU, precision and recall, so none is ever NaN and none rewards silence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class PatientSums(NamedTuple):
    """Counts of one volume, or [P] of several patients; those of two volumes add up leaf by leaf."""

    overlap: np.ndarray | int  # voxels both true and predicted
    predicted: np.ndarray | int  # voxels predicted to belong to the target
    actual: np.ndarray | int  # voxels that truly belong to it
    slices: np.ndarray | int
    tumor_slices: np.ndarray | int  # slices with any true voxel
    found_slices: np.ndarray | int  # of those, slices on which the prediction meets the reference mask
    false_positive_slices: np.ndarray | int  # slices without a true voxel on which something is predicted


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
    """3-D Dice of two masks, bool of one shape; 1 where both are empty."""
    total = int(predicted.sum()) + int(actual.sum())
    return 2.0 * int((predicted & actual).sum()) / total if total else 1.0


def patient_scores(sums: PatientSums) -> dict[str, np.ndarray]:
    """3-D Dice, IoU, precision and recall of each patient, in [0, 1], from whole-volume sums.

    Args:
      sums: of all slices of the patients.

    Returns:
      name -> [P] float64. See the module's docstring for empty masks.
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
    """(Σ p y + s) / (Σ p + Σ y - Σ p y + s) over a whole batch: the figure the reproduced Keras project calls IoU.

    It is neither thresholded nor by patient, and empty slices of other patients hide misses in it: for comparison with
    that project only.

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
