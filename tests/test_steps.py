"""The training step against the same computation by hand: numpy around the bare network."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainseg_jax import sharding
from brainseg_jax.data.canvas import with_neighbors
from brainseg_jax.data.normalization import Normalization, normalize
from brainseg_jax.inference.network import Runner
from brainseg_jax.losses import dice_loss
from brainseg_jax.models import build_model
from brainseg_jax.scans.description import LGG, Description, Target
from brainseg_jax.training.feed import DeviceFeed
from brainseg_jax.training.optimizer import build_optimizer
from brainseg_jax.training.state import create_state
from brainseg_jax.training.step import Batch, deep_loss, make_batch_builder, make_train_step

pytestmark = pytest.mark.usefixtures("optax_promotion")
STILL = {"rotation": 0.0, "scale": 0.0, "shift": 0.0, "shear": 0.0, "flip": 0.0}
PLAIN = {"contrast": 0.0, "gamma": 0.0, "noise": 0.0}
LOSS = partial(dice_loss, smooth=1.0)
RATE = 0.25


def draw(cohort, indices, context=0):
    """The input of a step for these slices."""
    return DeviceFeed(cohort, lambda step: np.asarray(indices, np.int32), sharding.data_mesh(), context=context)(0)


@pytest.fixture(scope="module")
def parts(cohort):
    model = build_model("attention_unet", features=2, depth=2)
    optimizer = build_optimizer("adam", lambda step: RATE, b2=0.99, weight_decay=0.0, clip_norm=0.0)
    mesh = sharding.data_mesh()
    make_state = partial(create_state, model, optimizer, image_shape=(64, 64, 3), seed=0, ema=True, mesh=mesh)
    train_step = partial(make_train_step, model, optimizer, LOSS, description=LGG, mesh=mesh, seed=0, ema_decay=0.5)
    return model, mesh, make_state, train_step, partial(draw, cohort)


def normalized_by_hand(cohort, indices):
    constants = [np.asarray(c, np.float64)[cohort.case_index[indices]][:, None, None] for c in cohort.normalization]
    lower, upper, mean, inverse_std = constants
    images = (np.clip(cohort.slices.images[indices].astype(np.float64), lower, upper) - mean) * inverse_std
    return images.astype(np.float32)


def test_each_step_is_compiled_with_the_options_of_its_backend(parts, monkeypatch):
    _, mesh, _, train_step, _ = parts
    asked = []
    monkeypatch.setattr("brainseg_jax.ops.compiler_options", lambda **given: asked.append(given))
    train_step(geometry=STILL, intensity=PLAIN, deterministic=True)
    Runner(mesh, 8)
    decided = [{"deterministic": True, "network": False}, {"deterministic": True}]
    assert asked == [*decided, {"deterministic": False}, {"deterministic": True}]


def test_train_step(parts, cohort):
    model, _, make_state, train_step, drawn = parts
    indices = np.array([7, 40, 8, 100, 23, 24, 60, 90], np.int32)
    before = jax.tree.map(np.asarray, make_state())

    def loss_by_hand(params):
        variables = {"params": params, "batch_stats": before.batch_stats}
        images = normalized_by_hand(cohort, indices)
        logits, _ = model.apply(variables, images, train=True, mutable="batch_stats")
        return LOSS(logits, cohort.slices.target_bits[indices]).mean()

    loss, gradient = jax.jit(jax.value_and_grad(loss_by_hand))(before.params)
    step = train_step(geometry=STILL, intensity=PLAIN)
    state, report = step(make_state(), drawn(indices))
    np.testing.assert_allclose(report.loss, loss, rtol=1e-5)
    assert report.finite
    assert int(state.step) == 1
    for new, old, ema, g in zip(
        *map(jax.tree.leaves, (state.params, before.params, state.ema_params, gradient)), strict=True
    ):
        # Adam's first step is rate * g / (|g| + eps); where g drowns in rounding its sign is anybody's guess.
        sure = np.abs(g) > 1e-5
        np.testing.assert_allclose((new - old)[sure], -RATE * (g / (np.abs(g) + 1e-8))[sure], rtol=1e-2)
        np.testing.assert_allclose(ema, 0.1 * old + 0.9 * new, rtol=1e-4, atol=1e-6)  # decay min(0.5, 1 / 10)


def test_the_plateau_scale_multiplies_the_update(parts):
    _, mesh, make_state, train_step, drawn = parts
    step = train_step(geometry=STILL, intensity=PLAIN)
    indices = np.arange(8)
    start = jax.tree.map(np.asarray, make_state().params)

    def change(scale):
        scaled = make_state().replace(
            learning_rate_scale=sharding.put(np.asarray(scale, np.float32), sharding.replicated(mesh))
        )
        moved, _ = step(scaled, drawn(indices))
        return np.concatenate(
            [(n - o).ravel() for n, o in zip(*map(jax.tree.leaves, (moved.params, start)), strict=True)]
        )

    np.testing.assert_allclose(change(0.1), 0.1 * change(1.0), rtol=1e-3, atol=1e-6)
    assert not change(0.0).any()


def test_augmentation_differs_by_step_and_by_example(parts):
    _, mesh, make_state, train_step, drawn = parts
    same_slice = drawn(np.full(8, 7))
    step = train_step(geometry=STILL | {"rotation": 90.0}, intensity=PLAIN)
    losses = {
        float(
            step(
                make_state().replace(step=jax.device_put(jnp.int32(s), sharding.replicated(mesh))),
                same_slice,
            )[1].loss
        )
        for s in (0, 1)
    }
    assert len(losses) == 2


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_an_update_that_is_not_finite_is_reported_and_can_be_left_out(parts, where):
    """With a special loss: NaN, or finite with an infinite gradient, on slices without tumor."""
    model, mesh, make_state, _, drawn = parts

    def poisoned(logits, labels):
        good, empty = LOSS(logits, labels), labels.sum(axis=(1, 2, 3)) == 0
        root = jnp.sqrt(jnp.abs(logits - jax.lax.stop_gradient(logits))).mean(axis=(1, 2, 3))  # 0, of infinite slope
        return jnp.where(empty, good * jnp.nan if where == "loss" else good + root, good)

    optimizer = build_optimizer("adam", lambda step: RATE, b2=0.99, weight_decay=0.0, clip_norm=0.0)
    make = partial(
        make_train_step,
        model,
        optimizer,
        poisoned,
        description=LGG,
        mesh=mesh,
        seed=0,
        ema_decay=0.5,
        geometry=STILL,
        intensity=PLAIN,
    )
    indices = np.arange(8)
    before = jax.tree.map(np.asarray, make_state())
    state, report = make(skip_nonfinite=True)(make_state(), drawn(indices))
    assert not report.finite and np.isnan(report.loss) == (where == "loss")
    assert int(state.step) == 1
    chex.assert_trees_all_equal(state.replace(step=before.step), before)
    state, report = make(skip_nonfinite=False)(make_state(), drawn(indices))
    assert not report.finite and not all(np.isfinite(p).all() for p in jax.tree.leaves(state.params))


def several(cohort, ignore):
    """The cohort, with a second target in the left half of the first, and labels to ignore in the lower half."""
    description = Description(
        LGG.channels,
        (Target("tumor", (1, 2)), Target("left part", (2,))),
        stand_in="FLAIR",
        ignore=3 if ignore else None,
    )
    bits = cohort.slices.target_bits.copy()
    bits[:, :, :32] |= bits[:, :, :32] << 1
    if ignore:
        bits[:, 32:] = 4
    return dataclasses.replace(cohort, description=description, slices=cohort.slices._replace(target_bits=bits))


@pytest.mark.parametrize("ignore", [False, True])
def test_a_batch_holds_every_target_and_what_counts(cohort, ignore):
    changed, mesh = several(cohort, ignore), sharding.data_mesh()
    batch = make_batch_builder(description=changed.description, mesh=mesh, seed=0, geometry=STILL, intensity=PLAIN)
    indices = np.flatnonzero(cohort.slices.target_bits[:, :, :32].any(axis=(1, 2, 3)))[:8].astype(np.int32)
    drawn = batch(jnp.int32(0), draw(changed, indices))
    whole = cohort.slices.target_bits[indices, ..., 0].astype(np.float32)
    if ignore:
        whole[:, 32:] = 0
        np.testing.assert_array_equal(drawn.counted[..., 0], np.broadcast_to(np.arange(64)[:, None] < 32, (8, 64, 64)))
    else:
        assert drawn.counted is None
    left = whole * (np.arange(64) < 32)
    assert left.any()
    np.testing.assert_array_equal(drawn.targets, np.stack([whole, left], axis=-1))
    np.testing.assert_allclose(drawn.images, normalized_by_hand(cohort, indices), atol=1e-5)


def test_an_ignored_pixel_changes_no_update(parts, cohort):
    """Logits and gradients of ignored pixels do not count: other labels there give the same update."""
    _, mesh, _, _, _ = parts
    model = build_model("unet", features=2, depth=2, targets=2)
    optimizer = build_optimizer("adam", lambda step: RATE, b2=0.99, weight_decay=0.0, clip_norm=0.0)
    losses = []
    for extra in (0, 3):
        changed = several(cohort, True)
        bits = changed.slices.target_bits | np.where(changed.slices.target_bits == 4, extra, 0).astype(np.uint8)
        changed = dataclasses.replace(changed, slices=changed.slices._replace(target_bits=bits))
        state = create_state(model, optimizer, image_shape=(64, 64, 3), seed=0, ema=False, mesh=mesh)
        step = make_train_step(
            model,
            optimizer,
            LOSS,
            description=changed.description,
            mesh=mesh,
            seed=0,
            ema_decay=0.0,
            geometry=STILL,
            intensity=PLAIN,
        )
        state, report = step(state, draw(changed, np.arange(4, 12)))
        losses.append((float(report.loss), jax.tree.map(np.asarray, state.params)))
    assert losses[0][0] == losses[1][0]
    chex.assert_trees_all_equal(losses[0][1], losses[1][1])


def test_deep_supervision_by_hand():
    """Predictions differ by half from each label, so the sums of squares are easy by hand."""
    masks = jnp.zeros((2, 4, 4, 1)).at[0, :2, :2].set(1.0).at[1, 0, 0].set(1.0)
    square = lambda logits, labels: jnp.mean((logits - labels) ** 2, axis=(1, 2, 3))
    fine, half = jnp.zeros((2, 4, 4, 1)), jnp.zeros((2, 2, 2, 1))
    # Fine: 4 and 1 of 16 pixels, mean 5 / 32. At 2x2: one pixel of 1 and one of 1/4, mean (1 + 1/16) / 8.
    expected = (5 / 32 + 0.5 * 17 / 128) / 1.5
    np.testing.assert_allclose(deep_loss(square, fine, [half], Batch(masks, masks)), expected, rtol=1e-6)
    np.testing.assert_allclose(deep_loss(square, fine, [], Batch(masks, masks)), 5 / 32, rtol=1e-6)


def test_ignored_pixels_are_no_background_of_a_coarse_level():
    """A block of two target and two ignored pixels is all target, with half the weight of a full block."""

    def weighted(logits: jax.Array, labels: jax.Array, *, mask: jax.Array) -> jax.Array:
        return jnp.sum(mask * (labels - logits) ** 2, axis=(1, 2, 3))

    targets, counted = jnp.zeros((1, 2, 2, 1)).at[0, 0].set(1.0), jnp.ones((1, 2, 2, 1)).at[0, 1].set(0.0)
    batch = Batch(targets, targets, counted)
    assert deep_loss(weighted, targets, [jnp.ones((1, 1, 1, 1))], batch) == 0.0
    # Of a coarse logit 0: half a pixel x (1 - 0)², at weight 1 / 2 of 3 / 2.
    found = deep_loss(weighted, targets, [jnp.zeros((1, 1, 1, 1))], batch)
    np.testing.assert_allclose(found, 0.5 * 0.5 / 1.5, rtol=1e-6)
    nothing = Batch(targets, targets, jnp.zeros_like(counted))
    assert deep_loss(weighted, targets, [jnp.ones((1, 1, 1, 1))], nothing) == 0.0


def test_side_heads_learn_and_are_only_in_training(parts, cohort):
    _, mesh, _, _, drawn = parts
    plain, deep = (build_model("unet", features=2, depth=3, deep_supervision=on) for on in (False, True))
    optimizer = build_optimizer("adam", lambda step: RATE, b2=0.99, weight_decay=0.0, clip_norm=0.0)
    states = [create_state(m, optimizer, image_shape=(64, 64, 3), seed=0, ema=False, mesh=mesh) for m in (plain, deep)]
    added = states[1].params.keys() - states[0].params.keys()
    assert added == {"side_head_1", "side_head_2"}
    shared = {name: states[1].params[name] for name in states[0].params}
    chex.assert_trees_all_equal(shared, states[0].params)
    before = jax.tree.map(np.asarray, states[1].params)
    images = normalized_by_hand(cohort, np.arange(2))
    logits = [
        jax.jit(partial(m.apply, train=False))(s.variables, images) for m, s in zip((plain, deep), states, strict=True)
    ]
    np.testing.assert_array_equal(*logits)
    step = make_train_step(
        deep, optimizer, LOSS, description=LGG, mesh=mesh, seed=0, ema_decay=0.0, geometry=STILL, intensity=PLAIN
    )
    indices = np.arange(8)
    after, _ = step(states[1], drawn(indices))
    for name in added:
        assert (np.asarray(after.params[name]["kernel"]) != before[name]["kernel"]).all()


def test_neighboring_slices_are_the_same_in_training_and_in_inference(cohort):
    """Gathered on the devices and stacked on the host; a case ends where the next one begins."""
    mesh = sharding.data_mesh()
    batch = make_batch_builder(description=LGG, mesh=mesh, seed=0, geometry=STILL, intensity=PLAIN)
    indices = np.array([0, 1, 7, 14, 15, 16, 17, 127], np.int32)  # of cases of 16 slices
    drawn = batch(jnp.int32(0), draw(cohort, indices, context=2))
    stacked = np.concatenate([with_neighbors(cohort.slices.images[16 * case : 16 * case + 16], 2) for case in range(8)])
    constants = Normalization(*(np.tile(c, (1, 5))[cohort.case_index[indices]] for c in cohort.normalization))
    expected = jax.vmap(normalize)(stacked[indices], constants)
    assert drawn.images.shape == (8, 64, 64, 15)
    np.testing.assert_allclose(drawn.images, expected, atol=1e-5)
    np.testing.assert_array_equal(drawn.targets, cohort.slices.target_bits[indices])
