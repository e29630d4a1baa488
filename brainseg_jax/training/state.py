"""The state that a training step updates."""

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
    """All arrays that the next step depends on besides the data. Each step donates it; a checkpoint stores all of it.

    Attributes:
      step: int32 scalar, number of updates so far.
      params: Parameter tree, float32.
      batch_stats: Running statistics of batch normalization.
      opt_state: State of the optimizer.
      ema_params: Exponential moving average of `params`, or None if it is off.
      learning_rate_scale: float32 scalar, factor on the learning rate. The plateau schedule and time limits change it.
    """

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    ema_params: dict | None
    learning_rate_scale: jax.Array

    @property
    def variables(self) -> dict:
        """The variables for evaluation, with the averaged parameters if there are any."""
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
    """Creates the state before the first step, replicated on each device.

    Args:
      model: Maps [B, H, W, C] to logits.
      optimizer: From `build_optimizer`.
      image_shape: (H, W, C).
      seed: Seed of the initial parameters.
      ema: Whether to keep a moving average of the parameters.
      mesh: The mesh of the devices.
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
    """Shapes and dtypes of `create_state`, as `jax.ShapeDtypeStruct`s, to restore a checkpoint. Compiles nothing."""
    init, replicated = (
        _initializer(model, optimizer, image_shape=image_shape, seed=0, ema=ema),
        sharding.replicated(mesh),
    )
    shapes = jax.eval_shape(init)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), shapes)


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
