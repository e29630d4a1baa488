"""The two jitted steps against the same work done by hand: numpy and scipy around the bare network."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from brainseg_jax import sharding
from brainseg_jax.losses import dice_loss
from brainseg_jax.metrics import patient_scores
from brainseg_jax.models import build_model
from brainseg_jax.training.batches import put_cohort
from brainseg_jax.training.deep_supervision import deep_loss
from brainseg_jax.training.optimizer import build_optimizer
from brainseg_jax.training.state import create_state
from brainseg_jax.training.steps import make_eval_step, make_predict_step, make_train_step

pytestmark = pytest.mark.usefixtures("optax_promotion")
STILL = {"rotation": 0.0, "scale": 0.0, "shift": 0.0, "shear": 0.0, "flip": 0.0}
PLAIN = {"contrast": 0.0, "gamma": 0.0, "noise": 0.0}
LOSS = partial(dice_loss, smooth=1.0)
RATE = 0.25


@pytest.fixture(scope="module")
def parts(cohort):
    model = build_model("attention_unet", features=2, depth=2)
    optimizer = build_optimizer("adam", lambda step: RATE, b2=0.99, weight_decay=0.0, clip_norm=0.0)
    mesh = sharding.data_mesh()
    make_state = partial(create_state, model, optimizer, image_size=64, seed=0, ema=True, mesh=mesh)
    train_step = partial(make_train_step, model, optimizer, LOSS, mesh=mesh, seed=0, ema_decay=0.5)
    return model, mesh, make_state, train_step, put_cohort(cohort, mesh)


def normalized_by_hand(cohort, indices):
    constants = [np.asarray(c, np.float64)[cohort.patient_index[indices]][:, None, None] for c in cohort.normalization]
    lower, upper, mean, inverse_std = constants
    images = (np.clip(cohort.images[indices].astype(np.float64), lower, upper) - mean) * inverse_std
    return images.astype(np.float32)


def test_each_step_is_compiled_with_the_options_of_its_backend(parts, monkeypatch):
    model, mesh, _, train_step, _ = parts
    asked = []
    monkeypatch.setattr("brainseg_jax.ops.compiler_options", lambda **given: asked.append(given))
    train_step(geometry=STILL, intensity=PLAIN, deterministic=True)
    make_eval_step(model, LOSS, mesh=mesh, patients=1)
    make_predict_step(model, mesh=mesh)
    assert asked == [{"deterministic": True, "network": False}, {"deterministic": True}, {}, {}]


def test_train_step(parts, cohort):
    model, mesh, make_state, train_step, on_devices = parts
    indices = np.array([7, 40, 8, 100, 23, 24, 60, 90], np.int32)
    before = jax.tree.map(np.asarray, make_state())

    def loss_by_hand(params):
        variables = {"params": params, "batch_stats": before.batch_stats}
        images = normalized_by_hand(cohort, indices)
        logits, _ = model.apply(variables, images, train=True, mutable="batch_stats")
        return LOSS(logits, cohort.masks[indices]).mean()

    loss, gradient = jax.jit(jax.value_and_grad(loss_by_hand))(before.params)
    step = train_step(geometry=STILL, intensity=PLAIN)
    state, report = step(make_state(), on_devices, sharding.put(indices, sharding.over_batch(mesh)))
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
    _, mesh, make_state, train_step, on_devices = parts
    step = train_step(geometry=STILL, intensity=PLAIN)
    indices = sharding.put(np.arange(8, dtype=np.int32), sharding.over_batch(mesh))
    start = jax.tree.map(np.asarray, make_state().params)

    def change(scale):
        scaled = make_state().replace(
            learning_rate_scale=sharding.put(np.asarray(scale, np.float32), sharding.replicated(mesh))
        )
        moved, _ = step(scaled, on_devices, indices)
        return np.concatenate(
            [(n - o).ravel() for n, o in zip(*map(jax.tree.leaves, (moved.params, start)), strict=True)]
        )

    np.testing.assert_allclose(change(0.1), 0.1 * change(1.0), rtol=1e-3, atol=1e-6)
    assert not change(0.0).any()


def test_augmentation_differs_by_step_and_by_example(parts):
    _, mesh, make_state, train_step, on_devices = parts
    same_slice = sharding.put(np.full(8, 7, np.int32), sharding.over_batch(mesh))
    step = train_step(geometry=STILL | {"rotation": 90.0}, intensity=PLAIN)
    losses = {
        float(
            step(
                make_state().replace(step=jax.device_put(jnp.int32(s), sharding.replicated(mesh))),
                on_devices,
                same_slice,
            )[1].loss
        )
        for s in (0, 1)
    }
    assert len(losses) == 2


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_an_update_that_is_not_finite_is_reported_and_can_be_left_out(parts, where):
    """A loss of its own: NaN, or finite with an infinite gradient, on slices that hold no tumor."""
    model, mesh, make_state, _, on_devices = parts

    def poisoned(logits, labels):
        good, empty = LOSS(logits, labels), labels.sum(axis=(1, 2, 3)) == 0
        root = jnp.sqrt(jnp.abs(logits - jax.lax.stop_gradient(logits))).mean(axis=(1, 2, 3))  # 0, of infinite slope
        return jnp.where(empty, good * jnp.nan if where == "loss" else good + root, good)

    optimizer = build_optimizer("adam", lambda step: RATE, b2=0.99, weight_decay=0.0, clip_norm=0.0)
    make = partial(
        make_train_step, model, optimizer, poisoned, mesh=mesh, seed=0, ema_decay=0.5, geometry=STILL, intensity=PLAIN
    )
    indices = sharding.put(np.arange(8, dtype=np.int32), sharding.over_batch(mesh))
    before = jax.tree.map(np.asarray, make_state())
    state, report = make(skip_nonfinite=True)(make_state(), on_devices, indices)
    assert not report.finite and np.isnan(report.loss) == (where == "loss")
    assert int(state.step) == 1
    chex.assert_trees_all_equal(state.replace(step=before.step), before)
    state, report = make(skip_nonfinite=False)(make_state(), on_devices, indices)
    assert not report.finite and not all(np.isfinite(p).all() for p in jax.tree.leaves(state.params))


def test_eval_step_scores_patients_on_the_native_grid(parts, cohort):
    model, mesh, make_state, _, on_devices = parts
    variables = jax.tree.map(np.asarray, make_state().variables)
    rng = np.random.default_rng(0)  # random weights that predict something, about as often as not
    variables["params"] = jax.tree.map(
        lambda x: x + 0.3 * rng.normal(size=x.shape).astype(x.dtype), variables["params"]
    )
    indices = cohort.slices_of(cohort.patients[:2])
    assert len(indices) == 32
    threshold = 0.5
    padded = np.concatenate([indices, np.zeros(8, np.int32)])
    valid = np.arange(40) < 32
    step = make_eval_step(model, LOSS, mesh=mesh, patients=len(cohort.patients))
    divided = sharding.over_batch(mesh)
    batch = (sharding.put(padded, divided), sharding.put(valid, divided))
    totals, masks = step(variables, on_devices, *batch, np.float32(threshold))

    logits = jax.jit(partial(model.apply, train=False))(variables, normalized_by_hand(cohort, indices))
    probability = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    native = ndimage.zoom(probability, (1, 4, 4, 1), order=1, grid_mode=True, mode="nearest")
    predicted, truth = native >= threshold, cohort.native_masks[indices] > 0
    assert 0.01 < predicted.mean() < 0.99
    assert (np.asarray(masks)[:32] == predicted).mean() > 0.9999  # but for rounding at the threshold
    for patient in range(2):
        of_patient = cohort.patient_index[indices] == patient
        p, t = predicted[of_patient], truth[of_patient]
        expected = 2 * (p & t).sum() / (p.sum() + t.sum())
        np.testing.assert_allclose(patient_scores(totals.sums)["dice"][patient], expected, rtol=1e-3)
    np.testing.assert_array_equal(totals.sums.slices, [16, 16] + [0] * 6)
    np.testing.assert_allclose(totals.loss, LOSS(logits, cohort.masks[indices]).sum(), rtol=1e-4)
    p, y = probability.sum(), cohort.masks[indices].sum(dtype=np.float64)
    overlap = (probability * cohort.masks[indices]).sum()
    np.testing.assert_allclose(totals.soft_batch_iou, (overlap + 0.1) / (p + y - overlap + 0.1), rtol=1e-4)

    prediction = make_predict_step(model, mesh=mesh)(
        variables, on_devices, sharding.put(indices[:3], sharding.replicated(mesh))
    )
    np.testing.assert_allclose(prediction.probability, native[:3], atol=1e-4)
    assert prediction.attention.shape == (3, 256, 256, 1)
    assert prediction.attention.min() >= 0 and prediction.attention.max() <= 1


def test_mirror_images_are_averaged_in_scoring_and_in_prediction(parts, cohort):
    model, mesh, make_state, _, on_devices = parts
    variables = jax.tree.map(np.asarray, make_state().variables)
    rng = np.random.default_rng(1)
    variables["params"] = jax.tree.map(
        lambda x: x + 0.3 * rng.normal(size=x.shape).astype(x.dtype), variables["params"]
    )
    indices = cohort.slices_of(cohort.patients[:1])[:8]
    images = normalized_by_hand(cohort, indices)

    def probability(images):
        logits = jax.jit(partial(model.apply, train=False))(variables, np.ascontiguousarray(images))
        return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))

    plain, mirrored = probability(images), probability(images[:, :, ::-1])[:, :, ::-1]
    assert np.abs(plain - mirrored).max() > 0.05  # the network tells left from right
    native = ndimage.zoom((plain + mirrored) / 2, (1, 4, 4, 1), order=1, grid_mode=True, mode="nearest")
    everywhere, divided = sharding.replicated(mesh), sharding.over_batch(mesh)
    predict = make_predict_step(model, mesh=mesh, mirror=True)
    np.testing.assert_allclose(
        predict(variables, on_devices, sharding.put(indices, everywhere)).probability, native, atol=1e-4
    )
    evaluate = make_eval_step(model, LOSS, mesh=mesh, patients=len(cohort.patients), mirror=True)
    batch = (sharding.put(indices, divided), sharding.put(np.ones(8, bool), divided))
    totals, masks = evaluate(variables, on_devices, *batch, np.float32(0.5))
    assert (np.asarray(masks) == (native >= 0.5)).mean() > 0.9999
    logits = model.apply(variables, images, train=False)
    np.testing.assert_allclose(totals.loss, LOSS(logits, cohort.masks[indices]).sum(), rtol=1e-4)


def test_deep_supervision_by_hand():
    """Half of each label apart from the prediction in the middle: squares of sums that are easy to add up."""
    masks = jnp.zeros((2, 4, 4, 1)).at[0, :2, :2].set(1.0).at[1, 0, 0].set(1.0)
    square = lambda logits, labels: jnp.mean((logits - labels) ** 2, axis=(1, 2, 3))
    fine, half = jnp.zeros((2, 4, 4, 1)), jnp.zeros((2, 2, 2, 1))
    # Fine: 4 and 1 of 16 pixels, mean 5 / 32. At 2x2: one pixel of 1 and one of 1/4, mean (1 + 1/16) / 8.
    expected = (5 / 32 + 0.5 * 17 / 128) / 1.5
    np.testing.assert_allclose(deep_loss(square, fine, [half], masks), expected, rtol=1e-6)
    np.testing.assert_allclose(deep_loss(square, fine, [], masks), 5 / 32, rtol=1e-6)


def test_side_heads_learn_and_are_only_in_training(parts, cohort):
    _, mesh, _, _, on_devices = parts
    plain, deep = (build_model("unet", features=2, depth=3, deep_supervision=on) for on in (False, True))
    optimizer = build_optimizer("adam", lambda step: RATE, b2=0.99, weight_decay=0.0, clip_norm=0.0)
    states = [create_state(m, optimizer, image_size=64, seed=0, ema=False, mesh=mesh) for m in (plain, deep)]
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
    step = make_train_step(deep, optimizer, LOSS, mesh=mesh, seed=0, ema_decay=0.0, geometry=STILL, intensity=PLAIN)
    indices = sharding.put(np.arange(8, dtype=np.int32), sharding.over_batch(mesh))
    after, _ = step(states[1], on_devices, indices)
    for name in added:
        assert (np.asarray(after.params[name]["kernel"]) != before[name]["kernel"]).all()
