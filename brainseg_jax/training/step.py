"""The compiled training step: it builds a batch from the drawn slices, and updates the state.

The batch and the update are separate programs. In one program, XLA on CPU fuses the warp into every operation that
reads its result, and so computes it many times. `benchmarks/overhead.py` measures this.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from brainseg_jax import ops, sharding
from brainseg_jax.data.augment import perturb_intensity, replace_channels, warp
from brainseg_jax.data.cohort import unpack_targets
from brainseg_jax.data.normalization import Normalization, normalize, repeated
from brainseg_jax.scans.description import Description
from brainseg_jax.training.feed import DrawnSlices
from brainseg_jax.training.objective import Loss
from brainseg_jax.training.state import TrainState


class Batch(NamedTuple):
    """The input of an update."""

    images: jax.Array  # [B, side, side, channels] float32, normalized; neighboring slices are further channels
    targets: jax.Array  # [B, side, side, K] float32 in {0, 1}
    counted: jax.Array | None = None  # [B, side, side, 1] float32 in {0, 1}; None: all pixels count


class StepReport(NamedTuple):
    """The report of an update to the host."""

    loss: jax.Array  # float32 scalar
    finite: jax.Array  # bool scalar: whether loss and gradient are finite numbers


def augmentation_keys(seed: int, step: int | jax.Array, examples: int) -> list[jax.Array]:
    """Keys of warp, intensity and replaced channels, [B] each. Each purpose has its own split of the step's key."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return [jax.random.split(purpose, examples) for purpose in jax.random.split(key, 3)]


def make_batch_builder(
    *,
    description: Description,
    mesh: Mesh,
    seed: int,
    geometry: dict[str, Any],
    intensity: dict[str, Any],
    replaced_channels: float = 0.0,
    deterministic: bool = False,
) -> Callable[[jax.Array, DrawnSlices], Batch]:
    """Returns the jitted function that builds a batch: warp, normalize, replace channels, change the intensity.

    Args:
      description: Description of the cohort.
      mesh: The batch is divided among its devices.
      seed: Seed of the augmentation; the step is folded in.
      geometry: Amounts of `augment.warp`.
      intensity: Amounts of `augment.perturb_intensity`.
      replaced_channels: Probability of `augment.replace_channels`.
      deterministic: See `ops.compiler_options`.

    Returns:
      (step, `DrawnSlices`) -> `Batch`.
    """

    def warp_all(step: jax.Array, drawn: DrawnSlices) -> tuple[jax.Array, jax.Array]:
        keys, _, _ = augmentation_keys(seed, step, len(drawn.images))
        # [B, n, side, side, C] to [B, side, side, n * C], neighbor by neighbor.
        images = jnp.concatenate(list(jnp.moveaxis(drawn.images, 1, 0)), axis=-1).astype(jnp.float32)
        warp_one: Callable[..., tuple[jax.Array, jax.Array]] = partial(warp, **geometry)
        return jax.vmap(warp_one)(keys, images, drawn.target_bits.astype(jnp.float32))

    def normalize_and_change(step: jax.Array, constants: Normalization, images: jax.Array, bits: jax.Array) -> Batch:
        _, keys, replace_keys = augmentation_keys(seed, step, len(images))
        constants = repeated(constants, (images.shape[-1] // len(description.channels) - 1) // 2)
        images = jax.vmap(normalize)(images, constants)
        images = jax.vmap(partial(replace_channels, description=description, probability=replaced_channels))(
            replace_keys, images
        )
        perturb: Callable[..., jax.Array] = partial(perturb_intensity, channels=len(description.channels), **intensity)
        images = jax.vmap(perturb)(keys, images)
        return Batch(images, *unpack_targets(bits, description))

    replicated, divided = sharding.replicated(mesh), sharding.over_batch(mesh)
    compiled = partial(
        jax.jit,
        out_shardings=divided,
        compiler_options=ops.compiler_options(deterministic=deterministic, network=False),
    )
    compiled_warp = compiled(warp_all, in_shardings=(replicated, divided))
    compiled_change = compiled(normalize_and_change, in_shardings=(replicated, divided, divided, divided))

    def build_batch(step: jax.Array, drawn: DrawnSlices) -> Batch:
        # The warp comes before normalization, so pixels from outside the image are black and not mean gray.
        return compiled_change(step, drawn.normalization, *compiled_warp(step, drawn))

    return build_batch


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    *,
    description: Description,
    mesh: Mesh,
    seed: int,
    ema_decay: float,
    geometry: dict[str, Any],
    intensity: dict[str, Any],
    replaced_channels: float = 0.0,
    skip_nonfinite: bool = False,
    deterministic: bool = False,
) -> Callable[[TrainState, DrawnSlices], tuple[TrainState, StepReport]]:
    """Combines `make_batch_builder` and `make_update`, which describe the arguments.

    Returns:
      (state, `DrawnSlices`) -> (state, `StepReport`). The input state is donated.
    """
    build_batch = make_batch_builder(
        description=description,
        mesh=mesh,
        seed=seed,
        geometry=geometry,
        intensity=intensity,
        replaced_channels=replaced_channels,
        deterministic=deterministic,
    )
    update = make_update(
        model,
        optimizer,
        loss,
        mesh=mesh,
        ema_decay=ema_decay,
        skip_nonfinite=skip_nonfinite,
        deterministic=deterministic,
    )

    def step(state: TrainState, drawn: DrawnSlices) -> tuple[TrainState, StepReport]:
        return update(state, build_batch(state.step, drawn))

    return step


def make_update(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    *,
    mesh: Mesh,
    ema_decay: float,
    skip_nonfinite: bool = False,
    deterministic: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepReport]]:
    """Returns the jitted update: forward pass, loss, gradient, optimizer.

    Args:
      model: Maps [B, H, W, C] to logits [B, H, W, K].
      optimizer: From `build_optimizer`.
      loss: Maps (logits, labels, mask=None) to [B].
      mesh: The batch is divided among its devices. Batch norm and batch-wide losses use the global batch.
      ema_decay: Decay of the moving average of the parameters, if the state has one.
      skip_nonfinite: If loss or gradient is not finite, change nothing in the state except the step number.
      deterministic: See `ops.compiler_options`.

    Returns:
      (state, `Batch`) -> (state, `StepReport`). The input state is donated.
    """

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, StepReport]:
        def mean_loss(params: dict) -> tuple[jax.Array, dict]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updated = model.apply(variables, batch.images, train=True, mutable=["batch_stats", "side_logits"])
            side_logits = jax.tree.leaves(updated.get("side_logits", {}))
            return deep_loss(loss, logits, side_logits, batch), updated.get("batch_stats", {})

        (value, batch_stats), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: u * state.learning_rate_scale, updates)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_params is not None:
            # The decay starts small. Otherwise the average would keep the random initial weights for 1 / (1 - decay)
            # steps.
            steps = state.step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1.0 + steps) / (10.0 + steps))
            ema_params = optax.incremental_update(params, ema_params, 1.0 - decay)
        new = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema_params=ema_params,
            learning_rate_scale=state.learning_rate_scale,
        )
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradient))
        if skip_nonfinite:
            new = jax.tree.map(partial(jnp.where, finite), new, dataclasses.replace(state, step=state.step + 1))
        return new, StepReport(loss=value, finite=finite)

    replicated, divided = sharding.replicated(mesh), sharding.over_batch(mesh)
    return jax.jit(
        update,
        donate_argnums=0,
        in_shardings=(replicated, divided),
        out_shardings=(replicated, replicated),
        compiler_options=ops.compiler_options(deterministic=deterministic),
    )


def deep_loss(loss: Loss, logits: jax.Array, side_logits: list[jax.Array], batch: Batch) -> jax.Array:
    """The mean loss of a batch. With side heads, the weighted mean over all heads.

    Each level has half the weight of the next finer one, and the weights sum to 1, as in nnU-Net (Isensee et al. 2021,
    doi.org/10.1038/s41592-020-01008-z). Unlike there, the lowest resolution of the decoder counts too. The label of a
    coarse pixel is the share of the target in its counted pixels.

    Args:
      loss: Maps (logits, labels, mask=None) to [B].
      logits: [B, side, side, K].
      side_logits: [B, side / 2^l, side / 2^l, K] for each level l; empty without deep supervision.
      batch: Labels and counted pixels.
    """
    total, weights = jnp.mean(_loss_of(loss, logits, batch.targets, batch.counted)), 1.0
    examples, size = batch.targets.shape[:2]
    for side in side_logits:
        coarse = side.shape[1]

        def downsample(x: jax.Array, coarse: int = coarse) -> jax.Array:
            blocks = x.reshape(examples, coarse, size // coarse, coarse, size // coarse, x.shape[-1])
            return blocks.mean(axis=(2, 4))

        if batch.counted is None:
            targets, counted = downsample(batch.targets), None
        else:  # ignored pixels are not background, so the share leaves them out
            counted = downsample(batch.counted)
            targets = downsample(batch.targets * batch.counted) / jnp.where(counted > 0.0, counted, 1.0)
        total += coarse / size * jnp.mean(_loss_of(loss, side, targets, counted))
        weights += coarse / size
    return total / weights


def _loss_of(loss: Loss, logits: jax.Array, targets: jax.Array, counted: jax.Array | None) -> jax.Array:
    return loss(logits, targets) if counted is None else loss(logits, targets, mask=counted)
