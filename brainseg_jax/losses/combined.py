"""Sums of losses. The package docstring describes the shared arguments."""

from collections.abc import Sequence

import jax

from brainseg_jax.losses.overlap import dice_loss
from brainseg_jax.losses.pixelwise import weighted_cross_entropy


def dice_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    cross_entropy_weight: float = 1.0,
    smooth: float = 1.0,
    batch_wide: bool = False,
    target_weights: Sequence[float] | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Dice loss + λ cross-entropy, as defined by `dice_loss` and `weighted_cross_entropy` (with equal class weights).

    nnU-Net trains on this sum with λ = 1 (Isensee et al. 2021, doi.org/10.1038/s41592-020-01008-z, methods).

    Args:
      logits: [B, ..., K].
      labels: same shape as `logits`, in [0, 1].
      cross_entropy_weight: λ >= 0.
      smooth: s of the Dice loss.
      batch_wide: applies to the Dice loss only; the cross-entropy is always per example.
      target_weights: see `dice_loss`.
      mask: see `dice_loss`.

    Returns:
      [B] float32, >= 0.

    Raises:
      ValueError: the shapes differ.
    """
    overlap = dice_loss(logits, labels, smooth=smooth, batch_wide=batch_wide, target_weights=target_weights, mask=mask)
    cross_entropy = weighted_cross_entropy(logits, labels, target_weights=target_weights, mask=mask)
    return overlap + cross_entropy_weight * cross_entropy
