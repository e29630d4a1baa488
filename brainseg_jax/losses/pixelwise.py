"""Losses that are a mean over pixels: cross-entropy and focal loss. See the package for what all losses share."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from brainseg_jax.losses.arguments import aligned, of_targets, over_targets


class ClassWeights(NamedTuple):
    """Weights of the two terms of `weighted_cross_entropy`; `**weights._asdict()` passes both."""

    tumor_weight: float
    background_weight: float


def class_weights(fraction: float) -> ClassWeights:
    """Weights that balance the classes: the rarer one weighs more, and the two sum to 1.

    Args:
      fraction: mean share of tumor pixels in the training masks, strictly between 0 and 1.

    Returns:
      (tumor_weight, background_weight) = (1 - fraction, fraction).

    Raises:
      ValueError: where `fraction` is not in (0, 1): with no tumor, or nothing else, one class would weigh nothing.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"the tumor fraction of the training masks must lie in (0, 1), not {fraction}")
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

    Ronneberger et al. 2015 (U-Net, equation 1), with the weight of a pixel given by its class.

    Args:
      logits: [B, ..., K].
      labels: same shape as `logits`, in [0, 1].
      tumor_weight: w₁ of what belongs to the target, for all targets or K numbers; see `class_weights`.
      background_weight: w₀ of what does not.
      target_weights: K numbers from 0, the weights of the targets in their mean; None: all alike.
      mask: None, or [B] (whole examples) or same rank as `logits`: 1 counts, 0 is padding.

    Returns:
      [B] float32, >= 0. An example that is all padding gives 0.

    Raises:
      ValueError: where the shapes differ.
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

    Lin et al. 2017 ("Focal loss for dense object detection", equation 5: w₁ = α = 0.25, w₀ = 1 - α, γ = 2): a pixel
    that is classified well already weighs little. γ = 0 is `weighted_cross_entropy`.

    Args:
      logits: [B, ..., K].
      labels: same shape as `logits`, in [0, 1].
      gamma: γ >= 0.
      tumor_weight: w₁, for all targets or K numbers.
      background_weight: w₀, likewise.
      target_weights: see `weighted_cross_entropy`.
      mask: see `weighted_cross_entropy`.

    Returns:
      [B] float32, >= 0. An example that is all padding gives 0.

    Raises:
      ValueError: where the shapes differ.
    """
    logits, labels, weight = aligned(logits, labels, mask)
    # log p and log(1 - p) as log-sigmoids, and powers by them: exact and finite where p rounds to 0 or 1.
    log_tumor, log_background = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    of_tumor, of_background = (of_targets(w, logits.ndim) for w in (tumor_weight, background_weight))
    tumor = of_tumor * labels * jnp.exp(gamma * log_background) * log_tumor
    background = of_background * (1.0 - labels) * jnp.exp(gamma * log_tumor) * log_background
    axes = tuple(range(1, logits.ndim - 1))
    pixels = jnp.sum(jnp.broadcast_to(weight, logits.shape), axis=axes)
    losses = -jnp.sum((tumor + background) * weight, axis=axes) / jnp.maximum(pixels, 1.0)
    return over_targets(losses, target_weights, len(logits))
