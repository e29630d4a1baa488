"""Scores by patient from additive sums: pure functions, jax and numpy and nothing else.

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
    """Counts by patient, each [P] int32 (exact to 32 000 slices a patient); two batches add up leaf by leaf."""

    overlap: jax.Array  # voxels both true and predicted
    predicted: jax.Array  # voxels predicted tumor
    actual: jax.Array  # voxels truly tumor
    slices: jax.Array
    tumor_slices: jax.Array  # slices with any true tumor
    found_slices: jax.Array  # of those, slices on which the prediction meets the tumor
    false_positive_slices: jax.Array  # slices without tumor on which something is predicted


def patient_sums(
    predicted: jax.Array, actual: jax.Array, patient_index: jax.Array, patients: int, valid: jax.Array
) -> PatientSums:
    """Counts one batch of slices by patient.

    Args:
      predicted: [B, H, W, 1] bool.
      actual: [B, H, W, 1] bool.
      patient_index: [B] int, in [0, patients).
      patients: P, static.
      valid: [B] bool; False marks padding, which counts nowhere.

    Returns:
      `PatientSums` of [P].
    """

    def voxels(x: jax.Array) -> jax.Array:
        return jnp.sum(x, axis=(1, 2, 3), dtype=jnp.int32)

    overlap, n_predicted, n_actual = voxels(predicted & actual), voxels(predicted), voxels(actual)
    by_slice = PatientSums(
        overlap=overlap,
        predicted=n_predicted,
        actual=n_actual,
        slices=jnp.ones_like(overlap),
        tumor_slices=n_actual > 0,
        found_slices=overlap > 0,
        false_positive_slices=(n_actual == 0) & (n_predicted > 0),
    )
    return jax.tree.map(
        lambda x: jax.ops.segment_sum(x.astype(jnp.int32) * valid.astype(jnp.int32), patient_index, patients), by_slice
    )


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
      probability: [B, H, W, 1] in [0, 1].
      labels: [B, H, W, 1] in {0, 1}.
      valid: [B] bool; False marks padding.
      smooth: s.

    Returns:
      scalar float32 in [0, 1].
    """
    weight = valid.astype(jnp.float32)[:, None, None, None]
    probability, labels = probability.astype(jnp.float32) * weight, labels.astype(jnp.float32) * weight
    overlap = jnp.sum(probability * labels)
    return (overlap + smooth) / (jnp.sum(probability) + jnp.sum(labels) - overlap + smooth)
