"""The loss of a network that predicts at several levels of its decoder."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def deep_loss(
    loss: Callable[..., jax.Array], logits: jax.Array, side_logits: list[jax.Array], masks: jax.Array
) -> jax.Array:
    """The mean loss of a batch; with side heads the mean over all heads, each level at half the weight of the finer.

    The weights are those of nnU-Net (Isensee et al. 2021, doi.org/10.1038/s41592-020-01008-z), which sum to 1. The
    labels of a coarse level are the share of tumor in each of its pixels.

    Args:
      loss: logits, labels -> [B].
      logits: [B, S, S, 1].
      side_logits: each [B, S / 2^l, S / 2^l, 1] of a level l; none without deep supervision.
      masks: [B, S, S, 1] float32 in {0, 1}.
    """
    total, weights = jnp.mean(loss(logits, masks)), 1.0
    batch, size = masks.shape[:2]
    for side in side_logits:
        coarse = side.shape[1]
        labels = masks.reshape(batch, coarse, size // coarse, coarse, size // coarse, 1).mean(axis=(2, 4))
        total += coarse / size * jnp.mean(loss(side, labels))
        weights += coarse / size
    return total / weights
