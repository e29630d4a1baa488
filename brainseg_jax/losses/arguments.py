"""Steps that all losses share: checks of the arguments and the mean over targets."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def check_shapes(
    logits: jax.Array, labels: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Checks the shapes and returns float32 arrays, with a mask of the rank of the logits.

    Sums over a slice need float32: in bfloat16 they lose whole tumors.

    Args:
      logits: [B, ..., K].
      labels: same shape as `logits`.
      mask: None, [B], or same rank as `logits`.

    Raises:
      ValueError: the shapes do not fit.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if logits.shape != labels.shape or logits.ndim < 2:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} must have the same shape [B, ..., K]")
    mask = jnp.ones(logits.shape[:1]) if mask is None else jnp.asarray(mask)
    if mask.ndim == 1:
        mask = mask.reshape(mask.shape + (1,) * (logits.ndim - 1))
    fits = mask.ndim == logits.ndim and all(m in (1, n) for m, n in zip(mask.shape, logits.shape, strict=True))
    if not fits or mask.shape[0] != logits.shape[0]:
        raise ValueError(f"mask {mask.shape} must be [B] or broadcast to the logits {logits.shape}")
    return logits.astype(jnp.float32), labels.astype(jnp.float32), mask.astype(jnp.float32)


def per_target(values: float | Sequence[float] | jax.Array, ndim: int) -> jax.Array:
    """Returns a scalar as a scalar; reshapes [K] to rank `ndim`, with length 1 on all axes except the last."""
    array = jnp.asarray(values, jnp.float32)
    return array if array.ndim == 0 else array.reshape((1,) * (ndim - 1) + array.shape)


def mean_over_targets(losses: jax.Array, weights: Sequence[float] | None, examples: int) -> jax.Array:
    """Returns the weighted mean over the targets.

    Args:
      losses: [B, K], or [K] for the whole batch.
      weights: K numbers >= 0, not all 0; None: equal weights.
      examples: B.

    Returns:
      [B].

    Raises:
      ValueError: the number of weights is not K.
    """
    if weights is None:
        mean = jnp.mean(losses, axis=-1)
    else:
        each = jnp.asarray(weights, jnp.float32)
        if each.shape != losses.shape[-1:]:
            raise ValueError(
                f"target_weights has shape {each.shape}; give one weight for each of the {losses.shape[-1]} targets"
            )
        mean = jnp.sum(losses * per_target(each, losses.ndim), axis=-1) / jnp.sum(each)
    return jnp.broadcast_to(mean, (examples,))
