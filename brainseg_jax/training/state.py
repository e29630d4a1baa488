"""What a training step reads and writes."""

from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from brainseg_jax import ops, sharding


@flax.struct.dataclass
class TrainState:
    """Everything the next step depends on besides the data; donated to each step and saved whole.

    Attributes:
      step: int32 scalar, updates made so far.
      params: parameter tree, float32.
      batch_stats: running statistics of batch normalization.
      opt_state: of the optimizer.
      ema_params: moving average of `params`, or None where it is off.
      learning_rate_scale: float32 scalar, what reduce-on-plateau has left of the learning rate.
    """

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    ema_params: dict | None
    learning_rate_scale: jax.Array

    @property
    def variables(self) -> dict:
        """What the model is scored with: the averaged parameters where they are kept."""
        params = self.params if self.ema_params is None else self.ema_params
        return {"params": params, "batch_stats": self.batch_stats}


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    image_shape: tuple[int, int, int],
    seed: int,
    ema: bool,
    mesh: Mesh,
) -> TrainState:
    """The state before the first step.

    Args:
      model: maps [B, H, W, C] to logits.
      optimizer: of `build_optimizer`.
      image_shape: (H, W, C).
      seed: of the initial parameters.
      ema: whether to keep a moving average.
      mesh: the state is made whole on each of its devices.

    Returns:
      a `TrainState`.
    """
    init = _initializer(model, optimizer, image_shape=image_shape, seed=seed, ema=ema)
    options = ops.compiler_options(deterministic=True, runs_once=True)
    return jax.jit(init, out_shardings=sharding.replicated(mesh), compiler_options=options)()


def shapes_of_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    image_shape: tuple[int, int, int],
    ema: bool,
    mesh: Mesh,
) -> TrainState:
    """`create_state` without its arrays: `jax.ShapeDtypeStruct`s, to read a checkpoint into; nothing is compiled."""
    init, everywhere = (
        _initializer(model, optimizer, image_shape=image_shape, seed=0, ema=ema),
        sharding.replicated(mesh),
    )
    shapes = jax.eval_shape(init)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes)


def _initializer(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    image_shape: tuple[int, int, int],
    seed: int,
    ema: bool,
) -> Callable[[], TrainState]:

    def init() -> TrainState:
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = model.init(jax.random.key(seed), images, train=False)
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(params),
            ema_params=jax.tree.map(jnp.copy, params) if ema else None,
            learning_rate_scale=jnp.ones((), jnp.float32),
        )

    return init
