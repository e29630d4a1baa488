"""What every loss does with its arguments first, and with its targets last."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def aligned(logits: jax.Array, labels: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Float32 copies (a sum over a slice in bfloat16 loses whole tumors) and a mask of the same rank.

    Args:
      logits: [B, ..., K].
      labels: same shape as `logits`.
      mask: None, or [B], or same rank as `logits`.

    Raises:
      ValueError: where the shapes do not fit.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if logits.shape != labels.shape or logits.ndim < 2:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} must be of one shape [B, ..., K]")
    mask = jnp.ones(logits.shape[:1]) if mask is None else jnp.asarray(mask)
    if mask.ndim == 1:
        mask = mask.reshape(mask.shape + (1,) * (logits.ndim - 1))
    fits = mask.ndim == logits.ndim and all(m in (1, n) for m, n in zip(mask.shape, logits.shape, strict=True))
    if not fits or mask.shape[0] != logits.shape[0]:
        raise ValueError(f"mask {mask.shape} must be [B] or broadcast to the logits {logits.shape}")
    return logits.astype(jnp.float32), labels.astype(jnp.float32), mask.astype(jnp.float32)


def of_targets(values: float | Sequence[float] | jax.Array, ndim: int) -> jax.Array:
    """One value for all targets as a scalar; a value for each, [K], with axes of length 1 before it, of rank `ndim`."""
    array = jnp.asarray(values, jnp.float32)
    return array if array.ndim == 0 else array.reshape((1,) * (ndim - 1) + array.shape)


def over_targets(losses: jax.Array, weights: Sequence[float] | None, examples: int) -> jax.Array:
    """The weighted mean over the targets.

    Args:
      losses: [B, K], or [K] where they are of the whole batch.
      weights: of the targets, K numbers from 0, not all 0; None: all alike.
      examples: B.

    Returns:
      [B].

    Raises:
      ValueError: where there are not K weights.
    """
    if weights is None:
        mean = jnp.mean(losses, axis=-1)
    else:
        each = jnp.asarray(weights, jnp.float32)
        if each.shape != losses.shape[-1:]:
            raise ValueError(f"target_weights has shape {each.shape}, and there are {losses.shape[-1]} targets")
        mean = jnp.sum(losses * of_targets(each, losses.ndim), axis=-1) / jnp.sum(each)
    return jnp.broadcast_to(mean, (examples,))
