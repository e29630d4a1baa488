"""What every loss does with its arguments first."""

import jax
import jax.numpy as jnp


def aligned(logits: jax.Array, labels: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Float32 copies (a sum over a slice in bfloat16 loses whole tumors) and a mask of the same rank.

    Args:
      logits: [B, ..., 1].
      labels: same shape as `logits`.
      mask: None, or [B], or same rank as `logits`.

    Raises:
      ValueError: where the shapes do not fit.
    """
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
