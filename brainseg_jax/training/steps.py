"""The training step and the evaluation step: pure functions of state, cohort and slice indices, compiled."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from brainseg_jax import ops, sharding
from brainseg_jax.metrics import PatientSums, patient_sums, soft_batch_iou
from brainseg_jax.training.batches import DeviceCohort, make_batches
from brainseg_jax.training.deep_supervision import deep_loss
from brainseg_jax.training.forward import forward
from brainseg_jax.training.objective import Loss
from brainseg_jax.training.state import TrainState


class Prediction(NamedTuple):
    """What a network says of a batch; what a caller does not use is not computed.

    Attributes:
      logits: [B, S, S, 1] float32, at the size of training; of the slices as they are, never of mirror images.
      probability: of tumor, [B, 256, 256, 1], on the native grid.
      attention: [B, 256, 256, 1] in [0, 1] of the finest attention gate; None for a network without gates.
    """

    logits: jax.Array
    probability: jax.Array
    attention: jax.Array | None


class Report(NamedTuple):
    """What an update tells the host."""

    loss: jax.Array  # float32 scalar
    finite: jax.Array  # bool scalar: whether loss and gradient are finite numbers


class Totals(NamedTuple):
    """Additive results of evaluation; see `metrics` for what is made of them."""

    sums: PatientSums
    loss: jax.Array  # sum over slices
    soft_batch_iou: jax.Array  # sum over batches
    batches: jax.Array


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    *,
    mesh: Mesh,
    seed: int,
    ema_decay: float,
    geometry: dict[str, float],
    intensity: dict[str, float],
    flair_stand_in: float = 0.0,
    skip_nonfinite: bool = False,
    deterministic: bool = False,
) -> Callable[[TrainState, DeviceCohort, jax.Array], tuple[TrainState, Report]]:
    """Joins the batch of a step and its update; for the arguments see `make_batches` and `make_update`.

    Returns:
      (state, cohort, indices [B] int32) -> (state, `Report`). The state given is donated.
    """
    batch = make_batches(
        mesh=mesh,
        seed=seed,
        geometry=geometry,
        intensity=intensity,
        flair_stand_in=flair_stand_in,
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

    def step(state: TrainState, cohort: DeviceCohort, indices: jax.Array) -> tuple[TrainState, Report]:
        return update(state, *batch(state.step, cohort, indices))

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
) -> Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, Report]]:
    """Compiles one update: forward, loss, gradient, optimizer.

    Args:
      model: maps [B, H, W, 3] to logits [B, H, W, 1].
      optimizer: of `build_optimizer`.
      loss: logits, labels -> [B].
      mesh: the batch is divided over it; batch norm and a batch-wide loss see the global batch.
      ema_decay: of the moving average of the parameters, where the state keeps one.
      skip_nonfinite: where loss or gradient is not finite, the state stays as it was, but for the step's number.
      deterministic: see `ops.compiler_options`.

    Returns:
      (state, images [B, H, W, 3], masks [B, H, W, 1]) -> (state, `Report`). The state given is donated.
    """

    def update(state: TrainState, images: jax.Array, masks: jax.Array) -> tuple[TrainState, Report]:
        def mean_loss(params: dict) -> tuple[jax.Array, dict]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats", "side_logits"])
            side_logits = jax.tree.leaves(updated.get("side_logits", {}))
            return deep_loss(loss, logits, side_logits, masks), updated.get("batch_stats", {})

        (value, batch_stats), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: u * state.learning_rate_scale, updates)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_params is not None:
            # The average starts short, or it would remember the random weights for 1 / (1 - decay) steps.
            made = state.step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1.0 + made) / (10.0 + made))
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
            new = jax.tree.map(partial(jnp.where, finite), new, state.replace(step=state.step + 1))
        return new, Report(loss=value, finite=finite)

    everywhere, divided = sharding.replicated(mesh), sharding.over_batch(mesh)
    return jax.jit(
        update,
        donate_argnums=0,
        in_shardings=(everywhere, divided, divided),
        out_shardings=(everywhere, everywhere),
        compiler_options=ops.compiler_options(deterministic=deterministic),
    )


def make_eval_step(
    model: nn.Module, loss: Loss, *, mesh: Mesh, patients: int, mirror: bool = False
) -> Callable[[dict, DeviceCohort, jax.Array, jax.Array, float], tuple[Totals, jax.Array]]:
    """Compiles the scoring of one batch, on the native grid: probabilities are up-sampled bilinearly, then thresholded.

    Args:
      model: maps [B, H, W, 3] to logits [B, H, W, 1].
      loss: logits, labels, mask=[B] -> [B].
      mesh: the batch is divided over it.
      patients: P of the cohort.
      mirror: see `predict`.

    Returns:
      (variables, cohort, indices [B] int32, valid [B] bool, threshold) -> (`Totals` of the batch, predicted masks
      [B, 256, 256, 1] bool, where the probability is at least the threshold); slices not valid count nowhere.
    """

    def step(
        variables: dict, cohort: DeviceCohort, indices: jax.Array, valid: jax.Array, threshold: jax.Array
    ) -> tuple[Totals, jax.Array]:
        prediction = predict(model, variables, cohort, indices, mirror=mirror)
        predicted = prediction.probability >= threshold
        labels = cohort.masks[indices]
        losses = loss(prediction.logits, labels, mask=valid)
        truth = cohort.native_masks[indices] > 0
        totals = Totals(
            sums=patient_sums(predicted, truth, cohort.patient_index[indices], patients, valid),
            loss=jnp.sum(jnp.where(valid, losses, 0.0)),
            soft_batch_iou=soft_batch_iou(jax.nn.sigmoid(prediction.logits), labels, valid),
            batches=jnp.ones((), jnp.int32),
        )
        return totals, predicted

    everywhere, divided = sharding.replicated(mesh), sharding.over_batch(mesh)
    return jax.jit(
        step,
        in_shardings=(everywhere, everywhere, divided, divided, everywhere),
        out_shardings=everywhere,
        compiler_options=ops.compiler_options(),
    )


def make_predict_step(
    model: nn.Module, *, mesh: Mesh, mirror: bool = False
) -> Callable[[dict, DeviceCohort, jax.Array], Prediction]:
    """Compiles `predict` for a few slices, the result whole on each device: (variables, cohort, indices [B])."""
    return jax.jit(
        partial(predict, model, mirror=mirror),
        out_shardings=sharding.replicated(mesh),
        compiler_options=ops.compiler_options(),
    )


def predict(
    model: nn.Module, variables: dict, cohort: DeviceCohort, indices: jax.Array, *, mirror: bool = False
) -> Prediction:
    """Predicts the slices `indices` [B] of the cohort; `mirror` averages with their left-right mirror images."""
    out = forward(model, variables, cohort.normalized(cohort.images[indices], indices), mirror=mirror)
    native = (*indices.shape, *cohort.native_masks.shape[1:])

    def on_native_grid(x: jax.Array) -> jax.Array:
        return x if x.shape == native else jax.image.resize(x, native, "bilinear")

    return Prediction(
        logits=out.logits,
        probability=on_native_grid(out.probability),
        attention=None if out.attention is None else on_native_grid(out.attention),
    )
