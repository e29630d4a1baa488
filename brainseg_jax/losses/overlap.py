"""Losses of the overlap of prediction and reference: Dice, Tversky, focal Tversky and generalized Dice.

The package docstring describes the shared arguments.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from brainseg_jax.losses.arguments import check_shapes, mean_over_targets


class SoftCounts(NamedTuple):
    """Sums of probabilities over pixels; each is [B, K], or [K] for the whole batch."""

    true_positive: jax.Array  # Σ p y
    false_positive: jax.Array  # Σ p (1 - y)
    false_negative: jax.Array  # Σ (1 - p) y
    true_negative: jax.Array  # Σ (1 - p) (1 - y)


def dice_loss(
    logits: jax.Array,
    labels: jax.Array,
    *,
    smooth: float = 1.0,
    batch_wide: bool = False,
    target_weights: Sequence[float] | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """1 - (2 Σ p y + s) / (Σ p + Σ y + s).

    The soft Dice loss of Milletari et al. 2016 (V-Net, section 3), without squares in the denominator.

    Args:
      logits: [B, ..., K].
      labels: same shape as `logits`, in [0, 1].
      smooth: s >= 0. An empty mask that is predicted empty costs 0, also with s = 0.
      batch_wide: sums run over the whole batch, as in the Keras project (with `smooth=0.1`). Every example gets this
        value, so the mean over the batch is the batch-wide loss.
      target_weights: K numbers >= 0 for the mean over the targets; None: equal weights.
      mask: None, [B] (whole examples), or same rank as `logits`: 1 counts, 0 is padding.

    Returns:
      [B] float32, in [0, 1]. An example that is all padding gives 0 (`batch_wide`: the value of the batch).

    Raises:
      ValueError: the shapes differ.
    """
    # The Dice sums are twice those of the Tversky index, so the smoothing is half.
    return tversky_loss(
        logits,
        labels,
        false_positive_weight=0.5,
        false_negative_weight=0.5,
        smooth=0.5 * smooth,
        batch_wide=batch_wide,
        target_weights=target_weights,
        mask=mask,
    )


def tversky_loss(
    logits: jax.Array,
    labels: jax.Array,
    *,
    false_positive_weight: float = 0.3,
    false_negative_weight: float = 0.7,
    smooth: float = 1.0,
    batch_wide: bool = False,
    target_weights: Sequence[float] | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """1 - (Σ p y + s) / (Σ p y + α Σ p (1 - y) + β Σ (1 - p) y + s).

    Salehi et al. 2017 ("Tversky loss function for image segmentation using 3D fully convolutional deep networks").
    Their best values are α = 0.3 and β = 0.7, so missed pixels cost more than false positives. With α = β = 0.5 it is
    the Dice loss with twice the smoothing.

    Args:
      logits: [B, ..., K].
      labels: same shape as `logits`, in [0, 1].
      false_positive_weight: α >= 0.
      false_negative_weight: β >= 0.
      smooth: s >= 0. An empty mask that is predicted empty costs 0 for any s.
      batch_wide: see `dice_loss`.
      target_weights: see `dice_loss`.
      mask: see `dice_loss`.

    Returns:
      [B] float32, in [0, 1].

    Raises:
      ValueError: the shapes differ.
    """
    losses = _tversky(logits, labels, mask, (false_positive_weight, false_negative_weight), smooth, batch_wide)
    return mean_over_targets(losses, target_weights, len(logits))


def focal_tversky_loss(
    logits: jax.Array,
    labels: jax.Array,
    *,
    gamma: float = 4 / 3,
    false_positive_weight: float = 0.3,
    false_negative_weight: float = 0.7,
    smooth: float = 1.0,
    batch_wide: bool = False,
    target_weights: Sequence[float] | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """(Tversky loss) ** (1 / γ).

    Abraham and Khan 2019 ("A novel focal Tversky loss function with improved attention U-Net for lesion segmentation"),
    with γ in [1, 3] and the best results at 4 / 3. The smaller the error, the steeper the loss.

    Args:
      logits: [B, ..., K].
      labels: same shape as `logits`, in [0, 1].
      gamma: γ > 0.
      false_positive_weight: see `tversky_loss`.
      false_negative_weight: see `tversky_loss`.
      smooth: see `tversky_loss`.
      batch_wide: see `dice_loss`; the power is applied to the value of the batch.
      target_weights: see `dice_loss`.
      mask: see `dice_loss`.

    Returns:
      [B] float32, in [0, 1]. Where the loss is exactly 0 the gradient is 0, not infinite.

    Raises:
      ValueError: the shapes differ.
    """
    losses = _tversky(logits, labels, mask, (false_positive_weight, false_negative_weight), smooth, batch_wide)
    wrong = losses > 0.0
    losses = jnp.where(wrong, jnp.where(wrong, losses, 1.0) ** (1.0 / gamma), 0.0)
    return mean_over_targets(losses, target_weights, len(logits))


def generalized_dice_loss(
    logits: jax.Array,
    labels: jax.Array,
    *,
    batch_wide: bool = False,
    target_weights: Sequence[float] | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """1 - 2 (w₁ Σ p y + w₀ Σ (1 - p) (1 - y)) / (w₁ Σ (p + y) + w₀ Σ (2 - p - y)).

    The weights are w₁ = 1 / (Σ y)² and w₀ = 1 / (Σ (1 - y))².
    Sudre et al. 2017 ("Generalised Dice overlap as a deep learning loss function for highly unbalanced segmentations"),
    for the classes tumor and background. An absent class takes the weight of the other one, so an empty mask costs the
    mean of p.

    Args:
      logits: [B, ..., K].
      labels: same shape as `logits`, in [0, 1].
      batch_wide: see `dice_loss`.
      target_weights: see `dice_loss`.
      mask: see `dice_loss`.

    Returns:
      [B] float32, in [0, 1].

    Raises:
      ValueError: the shapes differ.
    """
    counts = _soft_counts(logits, labels, mask, batch_wide)
    wrong = counts.false_positive + counts.false_negative
    # The sizes of the reference regions do not depend on the logits. The limit keeps 1 / size² from overflow.
    tumor = jax.lax.stop_gradient(counts.true_positive + counts.false_negative)
    background = jax.lax.stop_gradient(counts.true_negative + counts.false_positive)
    weights = [1.0 / jnp.maximum(size, 1e-12) ** 2 for size in (tumor, background)]
    tumor_weight = jnp.where(tumor > 0.0, weights[0], weights[1])
    background_weight = jnp.where(background > 0.0, weights[1], weights[0])
    total = tumor_weight * (2.0 * counts.true_positive + wrong) + background_weight * (
        2.0 * counts.true_negative + wrong
    )
    return mean_over_targets(_ratio((tumor_weight + background_weight) * wrong, total), target_weights, len(logits))


def _tversky(
    logits: jax.Array,
    labels: jax.Array,
    mask: jax.Array | None,
    weights: tuple[float, float],
    smooth: float,
    batch_wide: bool,
) -> jax.Array:
    """Returns the Tversky loss of each target, [B, K] or [K]; `weights` is (false positives, false negatives)."""
    counts = _soft_counts(logits, labels, mask, batch_wide)
    wrong = weights[0] * counts.false_positive + weights[1] * counts.false_negative
    return _ratio(wrong, counts.true_positive + wrong + smooth)


def _soft_counts(logits: jax.Array, labels: jax.Array, mask: jax.Array | None, batch_wide: bool) -> SoftCounts:
    logits, labels, weight = check_shapes(logits, labels, mask)
    axes = tuple(range(0 if batch_wide else 1, logits.ndim - 1))
    tumor, background = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    actual, not_actual = labels * weight, (1.0 - labels) * weight
    return SoftCounts(
        true_positive=jnp.sum(tumor * actual, axis=axes),
        false_positive=jnp.sum(tumor * not_actual, axis=axes),
        false_negative=jnp.sum(background * actual, axis=axes),
        true_negative=jnp.sum(background * not_actual, axis=axes),
    )


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Returns the ratio, and 0 where the denominator is 0.

    The division itself must be safe: the gradient of where(d > 0, n / d, 0) is NaN at d = 0.
    """
    empty = denominator == 0.0
    return jnp.where(empty, 0.0, numerator / jnp.where(empty, 1.0, denominator))
