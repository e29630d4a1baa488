"""Losses against numpy in float64, by hand, and at the edges where soft losses break."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from brainseg_jax.losses import class_weights, dice_loss, weighted_cross_entropy

DICE = {"plain": {"smooth": 1.0}, "batch_wide": {"smooth": 0.1, "batch_wide": True}, "no_smooth": {"smooth": 0.0}}
WEIGHTS = {"tumor_weight": 0.9, "background_weight": 0.1}
LOSSES = {
    **{name: partial(dice_loss, **options) for name, options in DICE.items()},
    "weighted_cross_entropy": partial(weighted_cross_entropy, **WEIGHTS),
}


def example(seed=0, shape=(3, 4, 5, 1)):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype(np.float32) * 3, rng.integers(0, 2, shape).astype(np.float32)


def numpy_dice(logits, labels, smooth):
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return 1 - (2 * (p * labels).sum() + smooth) / (p.sum() + labels.sum() + smooth)


def test_dice_by_hand():
    # p = 1/2 everywhere: Σpy = 1, Σp = 2, Σy = 2, so 1 - (2 + 1) / (4 + 1) = 0.4.
    logits, labels = jnp.zeros((1, 2, 2, 1)), jnp.array([1.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(dice_loss(logits, labels, smooth=1.0), [0.4], rtol=1e-6)


def test_weighted_cross_entropy_by_hand():
    # One tumor pixel, p = 3/4, and one background pixel, p = 1/4: the mean of 0.9 ln(4/3) and 0.1 ln(4/3).
    logits = jnp.log(3.0) * jnp.array([1.0, -1.0]).reshape(1, 2, 1, 1)
    labels = jnp.array([1.0, 0.0]).reshape(1, 2, 1, 1)
    expected = 0.5 * (0.9 + 0.1) * np.log(4 / 3)
    np.testing.assert_allclose(weighted_cross_entropy(logits, labels, **WEIGHTS), [expected], rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), smooth=st.sampled_from([0.1, 1.0, 5.0]))
def test_dice_is_the_formula(seed, smooth):
    logits, labels = example(seed)
    expected = [numpy_dice(x, y, smooth) for x, y in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(dice_loss(logits, labels, smooth=smooth), expected, rtol=1e-5)
    batch = dice_loss(logits, labels, smooth=smooth, batch_wide=True)
    np.testing.assert_allclose(batch, [numpy_dice(logits, labels, smooth)] * 3, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), weight=st.floats(0.0, 1.0))
def test_weighted_cross_entropy_is_the_formula(seed, weight):
    logits, labels = example(seed)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -(weight * labels * np.log(p) + (1 - weight) * (1 - labels) * np.log(1 - p)).mean(axis=(1, 2, 3))
    value = weighted_cross_entropy(logits, labels, tumor_weight=weight, background_weight=1 - weight)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_padding_counts_nowhere(loss):
    logits, labels = example()
    junk = np.full_like(logits[:1], 7.0)
    padded = loss(np.concatenate([logits, junk]), np.concatenate([labels, junk * 0]), mask=jnp.array([1.0, 1, 1, 0]))
    np.testing.assert_allclose(padded[:3], loss(logits, labels), rtol=1e-6)
    pixels = np.ones_like(logits)
    pixels[:, :, 3:] = 0  # masked columns are as good as cropped ones
    cropped = loss(logits[:, :, :3], labels[:, :, :3])
    np.testing.assert_allclose(loss(logits, labels, mask=pixels), cropped, rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("level", [-1e4, -30.0, 0.0, 30.0, 1e4])
@pytest.mark.parametrize("truth", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_edges_have_finite_values_and_gradients(loss, level, truth, dtype):
    logits = jnp.full((2, 4, 4, 1), level, dtype)
    labels = jnp.full((2, 4, 4, 1), truth, dtype)
    value, gradient = jax.jit(jax.value_and_grad(lambda x: loss(x, labels).sum()))(logits)
    assert np.isfinite(value) and np.isfinite(np.asarray(gradient, np.float32)).all()
    right = (level > 0) == bool(truth)
    if abs(level) == 1e4 and right:
        assert value == 0.0
    everything_masked = loss(logits, labels, mask=jnp.zeros(2))
    assert np.isfinite(everything_masked).all()


def test_wrong_and_saturated_costs_its_logit():
    logits, labels = jnp.full((1, 2, 2, 1), -1e4), jnp.ones((1, 2, 2, 1))
    np.testing.assert_allclose(weighted_cross_entropy(logits, labels, **WEIGHTS), [0.9e4], rtol=1e-6)
    np.testing.assert_allclose(dice_loss(logits, labels, smooth=1.0), [1 - 1 / 5], rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_jit_and_vmap_agree_with_eager(loss):
    logits, labels = example(shape=(2, 3, 4, 4, 1))
    one_by_one = np.stack([loss(x, y) for x, y in zip(logits, labels, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(logits, labels), one_by_one, rtol=1e-6)


def test_gradient_against_finite_differences():
    logits, labels = example(shape=(1, 2, 3, 1))
    for loss in LOSSES.values():
        check_grads(lambda x, loss=loss: loss(x, labels).sum(), (logits,), order=1, modes=("rev",), rtol=2e-2)


def test_bfloat16_sums_in_float32():
    # 65 536 halves: a bfloat16 sum stops growing at 256.
    logits, labels = jnp.zeros((1, 256, 256, 1), jnp.bfloat16), jnp.zeros((1, 256, 256, 1), jnp.uint8)
    value = dice_loss(logits, labels, smooth=1.0)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, [1 - 1 / (32768 + 1)], rtol=1e-6)


def test_class_weights():
    assert class_weights(0.25) == (0.75, 0.25)
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="tumor fraction"):
            class_weights(fraction)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 1\).*\(2, 4, 4\)"):
        dice_loss(jnp.zeros((2, 4, 4, 1)), jnp.zeros((2, 4, 4)), smooth=1.0)
    with pytest.raises(ValueError, match="mask"):
        dice_loss(jnp.zeros((2, 4, 4, 1)), jnp.zeros((2, 4, 4, 1)), smooth=1.0, mask=jnp.ones(3))


def test_import_is_light():
    code = "import sys, brainseg_jax.losses; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "jax" in loaded
    assert not loaded & {"flax", "orbax", "tensorflow_datasets", "ml_collections", "optax", "chex", "PIL", "matplotlib"}
