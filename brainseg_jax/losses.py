"""Segmentation losses: pure functions of logits, one value an example. They need jax and nothing else.

Every loss here takes `logits` of any real value and `labels` in {0, 1} (or soft, in [0, 1]), both [B, ..., 1], and
gives [B] in float32 whatever the input dtype; the caller reduces them, once, over the batch. They hold under `jit`,
`vmap` and `grad`, with finite gradients for empty masks, full masks and saturated logits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


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


def dice_loss(
    logits: jax.Array,
    labels: jax.Array,
    *,
    smooth: float = 1.0,
    batch_wide: bool = False,
    mask: jax.Array | None = None,
) -> jax.Array:
    """1 - (2 Σ p y + s) / (Σ p + Σ y + s) with p = sigmoid(logits) and s = `smooth`.

    The soft Dice loss of Milletari et al. 2016 (V-Net, section 3), without squares in the denominator.

    Args:
      logits: [B, ..., 1].
      labels: same shape as `logits`, in [0, 1].
      smooth: s >= 0. An empty mask predicted empty costs 0; with s = 0 that case is defined as 0, not 0 / 0.
      batch_wide: sums run over the whole batch at once, as the Keras project does (there with `smooth=0.1`), and each
        example gets that one value, so that the mean over the batch is the batch-wide loss.
      mask: None, or [B] (whole examples) or same rank as `logits`: 1 counts, 0 is padding.

    Returns:
      [B] float32, in [0, 1]. An example that is all padding gives 0 (`batch_wide`: the batch's value).

    Raises:
      ValueError: where the shapes differ.
    """
    logits, labels, weight = _aligned(logits, labels, mask)
    probability = jax.nn.sigmoid(logits)
    axes = None if batch_wide else tuple(range(1, logits.ndim))
    overlap = jnp.sum(probability * labels * weight, axis=axes)
    total = jnp.sum((probability + labels) * weight, axis=axes)
    denominator = total + smooth
    empty = denominator == 0.0
    # The division itself must be safe: the gradient of where(d > 0, n / d, 1) is NaN at d = 0.
    dice = jnp.where(empty, 1.0, (2.0 * overlap + smooth) / jnp.where(empty, 1.0, denominator))
    return jnp.broadcast_to(1.0 - dice, logits.shape[:1])


def weighted_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    tumor_weight: float,
    background_weight: float,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Mean over pixels of -(w_t y log p + w_b (1 - y) log(1 - p)) with p = sigmoid(logits).

    Args:
      logits: [B, ..., 1].
      labels: same shape as `logits`, in [0, 1].
      tumor_weight: w_t, see `class_weights`.
      background_weight: w_b.
      mask: None, or [B] (whole examples) or same rank as `logits`: 1 counts, 0 is padding.

    Returns:
      [B] float32, >= 0. An example that is all padding gives 0.

    Raises:
      ValueError: where the shapes differ.
    """
    logits, labels, weight = _aligned(logits, labels, mask)
    # log p and log(1 - p) as log-sigmoids: exact and finite where p rounds to 0 or 1.
    tumor = tumor_weight * labels * jax.nn.log_sigmoid(logits)
    background = background_weight * (1.0 - labels) * jax.nn.log_sigmoid(-logits)
    axes = tuple(range(1, logits.ndim))
    pixels = jnp.sum(jnp.broadcast_to(weight, logits.shape), axis=axes)
    return -jnp.sum((tumor + background) * weight, axis=axes) / jnp.maximum(pixels, 1.0)


def _aligned(logits: jax.Array, labels: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Float32 copies (a sum over a slice in bfloat16 loses whole tumors) and a mask of the same rank."""
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if logits.shape != labels.shape or logits.ndim < 2:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} must be of one shape [B, ..., 1]")
    mask = jnp.ones(logits.shape[:1]) if mask is None else jnp.asarray(mask)
    if mask.ndim == 1:
        mask = mask.reshape(mask.shape + (1,) * (logits.ndim - 1))
    fits = mask.ndim == logits.ndim and all(m in (1, n) for m, n in zip(mask.shape, logits.shape, strict=True))
    if not fits or mask.shape[0] != logits.shape[0]:
        raise ValueError(f"mask {mask.shape} must be [B] or broadcast to the logits {logits.shape}")
    return logits.astype(jnp.float32), labels.astype(jnp.float32), mask.astype(jnp.float32)
