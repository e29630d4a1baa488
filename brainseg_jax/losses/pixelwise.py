"""Losses that are a mean over pixels: cross-entropy and focal loss.

The package docstring describes the shared arguments.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from brainseg_jax.losses.arguments import check_shapes, mean_over_targets, per_target


class ClassWeights(NamedTuple):
    """Weights of the two terms of `weighted_cross_entropy`; `**weights._asdict()` passes both."""

    tumor_weight: float
    background_weight: float


def class_weights(fraction: float) -> ClassWeights:
    """Returns weights that balance the classes: the rarer class weighs more, and the two sum to 1.

    Args:
      fraction: mean fraction of tumor pixels in the training masks, in (0, 1).

    Returns:
      (tumor_weight, background_weight) = (1 - fraction, fraction).

    Raises:
      ValueError: `fraction` is not in (0, 1), so one class would have weight 0.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"the tumor fraction of the training masks must be in (0, 1), not {fraction}")
    return ClassWeights(tumor_weight=1.0 - fraction, background_weight=float(fraction))


def weighted_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    tumor_weight: float | Sequence[float] = 1.0,
    background_weight: float | Sequence[float] = 1.0,
    target_weights: Sequence[float] | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Mean over pixels of -(w₁ y log p + w₀ (1 - y) log(1 - p)).

    Ronneberger et al. 2015 (U-Net, equation 1); the weight of a pixel depends on its class.

    Args:
      logits: [B, ..., K].
      labels: same shape as `logits`, in [0, 1].
      tumor_weight: w₁ for pixels of the target; one number, or K numbers. See `class_weights`.
      background_weight: w₀ for all other pixels; one number, or K numbers.
      target_weights: K numbers >= 0 for the mean over the targets; None: equal weights.
      mask: None, [B] (whole examples), or same rank as `logits`: 1 counts, 0 is padding.

    Returns:
      [B] float32, >= 0. An example that is all padding gives 0.

    Raises:
      ValueError: the shapes differ.
    """
    return focal_loss(
        logits,
        labels,
        gamma=0.0,
        tumor_weight=tumor_weight,
        background_weight=background_weight,
        target_weights=target_weights,
        mask=mask,
    )


def focal_loss(
    logits: jax.Array,
    labels: jax.Array,
    *,
    gamma: float = 2.0,
    tumor_weight: float | Sequence[float] = 0.25,
    background_weight: float | Sequence[float] = 0.75,
    target_weights: Sequence[float] | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Mean over pixels of -(w₁ y (1 - p)^γ log p + w₀ (1 - y) p^γ log(1 - p)).

    Lin et al. 2017 ("Focal loss for dense object detection", equation 5: w₁ = α = 0.25, w₀ = 1 - α, γ = 2). Pixels that
    are already classified well have little weight. With γ = 0 it is `weighted_cross_entropy`.

    Args:
      logits: [B, ..., K].
      labels: same shape as `logits`, in [0, 1].
      gamma: γ >= 0.
      tumor_weight: w₁; one number, or K numbers.
      background_weight: w₀; one number, or K numbers.
      target_weights: see `weighted_cross_entropy`.
      mask: see `weighted_cross_entropy`.

    Returns:
      [B] float32, >= 0. An example that is all padding gives 0.

    Raises:
      ValueError: the shapes differ.
    """
    logits, labels, weight = check_shapes(logits, labels, mask)
    # Log-sigmoids keep log p, log(1 - p) and their powers exact and finite where p rounds to 0 or 1.
    log_tumor, log_background = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    of_tumor, of_background = (per_target(w, logits.ndim) for w in (tumor_weight, background_weight))
    tumor = of_tumor * labels * jnp.exp(gamma * log_background) * log_tumor
    background = of_background * (1.0 - labels) * jnp.exp(gamma * log_tumor) * log_background
    axes = tuple(range(1, logits.ndim - 1))
    pixels = jnp.sum(jnp.broadcast_to(weight, logits.shape), axis=axes)
    losses = -jnp.sum((tumor + background) * weight, axis=axes) / jnp.maximum(pixels, 1.0)
    return mean_over_targets(losses, target_weights, len(logits))
