"""The optimizer and its learning rate schedule."""

import jax
import optax

from brainseg_jax.errors import InputError

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("plateau", "cosine", "constant")


def build_schedule(name: str, *, learning_rate: float, total_steps: int, warmup_steps: int) -> optax.Schedule:
    """Builds the learning rate schedule.

    Args:
      name: "cosine" falls to 0 at `total_steps`. "plateau" and "constant" stay constant; the loop reduces "plateau"
        through `TrainState.learning_rate_scale`.
      learning_rate: Maximum of the schedule.
      total_steps: Length of the run.
      warmup_steps: Length of the linear rise from 0.

    Returns:
      step -> learning rate.

    Raises:
      InputError: The name is unknown.
    """
    if name not in SCHEDULES:
        raise InputError(f"optimizer.schedule={name!r} is unknown; choose one of {', '.join(SCHEDULES)}")
    remaining = max(1, total_steps - warmup_steps)
    if name == "cosine":
        main = optax.cosine_decay_schedule(learning_rate, remaining)
    else:
        main = optax.constant_schedule(learning_rate)
    if not warmup_steps:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup_steps), main], [warmup_steps])


def build_optimizer(
    name: str, schedule: optax.Schedule, *, b2: float, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """Builds Adam or AdamW, with gradient clipping before it.

    Args:
      name: "adam" or "adamw".
      schedule: From `build_schedule`.
      b2: Decay of the second moment.
      weight_decay: Decoupled weight decay, for "adamw" only. It applies to kernels, not to biases and normalization.
      clip_norm: Maximum global norm of the gradient; 0: off.

    Returns:
      An optax transformation.

    Raises:
      InputError: The name is unknown, "adam" has weight decay, or "adamw" has none.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"optimizer.name={name!r} is unknown; choose one of {', '.join(OPTIMIZERS)}")
    if name == "adam" and weight_decay:
        raise InputError(f"optimizer.weight_decay={weight_decay} has no effect with adam; use optimizer.name=adamw")
    if name == "adamw" and not weight_decay:
        raise InputError("optimizer.name=adamw without weight decay is adam; set optimizer.weight_decay, e.g. 1e-4")
    parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    parts.append(optax.scale_by_adam(b2=b2))
    if weight_decay:
        parts.append(optax.add_decayed_weights(weight_decay, mask=_is_kernel))
    parts.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*parts)


def _is_kernel(params: dict) -> dict:
    return jax.tree.map(lambda p: p.ndim > 1, params)
