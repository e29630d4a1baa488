"""Losses against numpy in float64, against values by hand, and in the edge cases of soft losses."""

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

from brainseg_jax.errors import InputError
from brainseg_jax.losses import (
    class_weights,
    dice_cross_entropy,
    dice_loss,
    focal_loss,
    focal_tversky_loss,
    generalized_dice_loss,
    tversky_loss,
    weighted_cross_entropy,
)
from brainseg_jax.training.objective import build_loss

DICE = {"plain": {"smooth": 1.0}, "batch_wide": {"smooth": 0.1, "batch_wide": True}, "no_smooth": {"smooth": 0.0}}
WEIGHTS = {"tumor_weight": 0.9, "background_weight": 0.1}
LOSSES = {
    **{name: partial(dice_loss, **options) for name, options in DICE.items()},
    "weighted_cross_entropy": partial(weighted_cross_entropy, **WEIGHTS),
    "dice_cross_entropy": dice_cross_entropy,
    "generalized_dice": generalized_dice_loss,
    "generalized_dice_batch_wide": partial(generalized_dice_loss, batch_wide=True),
    "tversky": tversky_loss,
    "tversky_no_smooth": partial(tversky_loss, smooth=0.0),
    "focal_tversky": focal_tversky_loss,
    "focal_tversky_no_smooth": partial(focal_tversky_loss, smooth=0.0, batch_wide=True),
    "focal": focal_loss,
    "focal_of_a_root": partial(focal_loss, gamma=0.5),
}
REGIONS = {  # of the region that is right or wrong, where nothing saturates: in [0, 1]
    name: loss for name, loss in LOSSES.items() if "cross_entropy" not in name and "focal" not in name
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


# Two tumor pixels of p = 3/4 and 1/4, two background pixels of p = 3/4 and 1/4:
# Σ p y = 1, Σ p (1 - y) = 1, Σ (1 - p) y = 1, Σ (1 - p) (1 - y) = 1.
ONES = np.log(3.0, dtype=np.float32) * np.array([1, -1, 1, -1], np.float32).reshape(1, 2, 2, 1)
ONES_LABELS = np.array([1, 1, 0, 0], np.float32).reshape(1, 2, 2, 1)
# One tumor pixel of p = 1/2, three background pixels of p = 1/4: the sums are 1/2, 3/4, 1/2 and 9/4.
UNEVEN = np.array([0.0, *[-np.log(3.0)] * 3], np.float32).reshape(1, 2, 2, 1)
UNEVEN_LABELS = np.array([1, 0, 0, 0], np.float32).reshape(1, 2, 2, 1)


@pytest.mark.parametrize(
    ("loss", "expected", "uneven"),
    [
        (partial(dice_loss, smooth=0.0), 1 / 2, 1 - 1 / 2.25),
        # 1 - (1 + s) / (1 + 0.3 + 0.7 + s); 1 - (0.5 + s) / (0.5 + 0.3 * 0.75 + 0.7 * 0.5 + s).
        (partial(tversky_loss, smooth=0.0), 1 / 2, 1 - 0.5 / 1.075),
        (partial(tversky_loss, smooth=1.0), 1 / 3, 1 - 1.5 / 2.075),
        (partial(focal_tversky_loss, smooth=1.0, gamma=2.0), 3**-0.5, (1 - 1.5 / 2.075) ** 0.5),
        # Weights 1/4 and 1/4: 1 - 2 * 2 / (4 + 4). Weights 1 and 1/9: 1 - 2 (1/2 + 9/36) / (9/4 + 23/36).
        (generalized_dice_loss, 1 / 2, 1 - 1.5 / (9 / 4 + 23 / 36)),
        # Means of w log 2 and log 4/3 or 4, by their labels, times (1 - p)² or p².
        (
            focal_loss,
            (1 / 16 * np.log(4 / 3) + 9 / 16 * np.log(4)) * (0.25 + 0.75) / 4,
            (0.25 / 4 * np.log(2) + 3 * 0.75 / 16 * np.log(4 / 3)) / 4,
        ),
        (
            partial(dice_cross_entropy, smooth=0.0, cross_entropy_weight=2.0),
            1 / 2 + np.log(4 / 3) + np.log(4),
            1 - 1 / 2.25 + (np.log(2) + 3 * np.log(4 / 3)) / 2,
        ),
    ],
)
def test_by_hand(loss, expected, uneven):
    np.testing.assert_allclose(loss(ONES, ONES_LABELS), [expected], rtol=1e-6)
    np.testing.assert_allclose(loss(UNEVEN, UNEVEN_LABELS), [uneven], rtol=1e-6)


def test_generalized_dice_of_one_class_alone_is_the_mean_error():
    logits, labels = np.array([np.log(3.0), -200.0], np.float32).reshape(1, 2, 1, 1), np.zeros((1, 2, 1, 1), np.float32)
    np.testing.assert_allclose(generalized_dice_loss(logits, labels), [3 / 8], rtol=1e-6)
    np.testing.assert_allclose(generalized_dice_loss(-logits, 1 - labels), [3 / 8], rtol=1e-6)


def test_generalized_dice_holds_for_labels_next_to_nothing():
    logits, labels = np.zeros((1, 4, 4, 1), np.float32), np.full((1, 4, 4, 1), 1e-30, np.float32)
    value, gradient = jax.value_and_grad(lambda x: generalized_dice_loss(x, labels).sum())(logits)
    assert 0.0 <= value <= 1.0 and np.isfinite(gradient).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_properties(seed):
    logits, labels = example(seed)
    # The order of the pixels matters to no loss, and what is more right costs less.
    order = np.random.default_rng(seed).permutation(20)
    for loss in LOSSES.values():
        flat = [x.reshape(3, 20, 1) for x in (logits, labels)]
        np.testing.assert_allclose(loss(*(x[:, order] for x in flat)), loss(*flat), rtol=1e-5)
        better = loss(logits + 0.5 * (2 * labels - 1), labels)
        assert (better < loss(logits, labels)).all()
    for loss in REGIONS.values():
        assert (loss(logits, labels) >= 0).all() and (loss(logits, labels) <= 1).all()
    # Dice is the Tversky loss of equal weights, focal Tversky of gamma 1 is Tversky, focal of gamma 0 cross-entropy.
    even = tversky_loss(logits, labels, false_positive_weight=0.5, false_negative_weight=0.5, smooth=0.5)
    expected = [numpy_dice(x, y, 1.0) for x, y in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(even, expected, rtol=1e-5)
    np.testing.assert_allclose(focal_tversky_loss(logits, labels, gamma=1.0), tversky_loss(logits, labels), rtol=1e-6)
    plain = focal_loss(logits, labels, gamma=0.0, **WEIGHTS)
    np.testing.assert_allclose(plain, weighted_cross_entropy(logits, labels, **WEIGHTS), rtol=1e-6)
    # Tumor and background are alike to generalized Dice.
    np.testing.assert_allclose(
        generalized_dice_loss(-logits, 1 - labels), generalized_dice_loss(logits, labels), rtol=1e-5
    )


def test_each_name_of_the_config_is_its_loss():
    logits, labels = example()
    values = {
        "smooth": 0.3,
        "batch_wide": False,
        "false_negative_weight": 0.9,
        "focal_tversky_gamma": 2.0,
        "focal_gamma": 1.5,
        "focal_tumor_weight": 0.6,
        "target_weights": (),
    }
    tversky = {"false_positive_weight": 0.1, "false_negative_weight": 0.9, "smooth": 0.3}
    expected = {
        "dice": dice_loss(logits, labels, smooth=0.3),
        "dice_cross_entropy": dice_cross_entropy(logits, labels, smooth=0.3),
        "generalized_dice": generalized_dice_loss(logits, labels),
        "tversky": tversky_loss(logits, labels, **tversky),
        "focal_tversky": focal_tversky_loss(logits, labels, gamma=2.0, **tversky),
        "focal": focal_loss(logits, labels, gamma=1.5, tumor_weight=0.6, background_weight=0.4),
        "weighted_cross_entropy": weighted_cross_entropy(logits, labels, tumor_weight=0.8, background_weight=0.2),
    }
    for name, value in expected.items():
        loss = build_loss(name, target_fractions=(0.2,), **values)
        np.testing.assert_allclose(loss(logits, labels, mask=None), value, rtol=1e-6)
    with pytest.raises(InputError, match=r"loss\.name='hinge'.*dice, dice_cross_entropy.*weighted_cross_entropy"):
        build_loss("hinge", target_fractions=(0.2,), **values)
    with pytest.raises(InputError, match=r"target_weights=\(1\.0, 2\.0\) has 2 weights, but the data have 1 targets"):
        build_loss("dice", target_fractions=(0.2,), **{**values, "target_weights": (1.0, 2.0)})
    with pytest.raises(InputError, match=r"tumor fraction.*split"):
        build_loss("weighted_cross_entropy", target_fractions=(0.0,), **values)


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


@pytest.mark.parametrize("name", LOSSES)
def test_targets_are_problems_of_their_own(name):
    """The loss of two targets is the mean of both single losses; also weighted with 3 and 1."""
    loss = LOSSES[name]
    logits, labels = example(shape=(3, 4, 5, 2))
    first, second = (loss(logits[..., k : k + 1], labels[..., k : k + 1]) for k in (0, 1))
    np.testing.assert_allclose(loss(logits, labels), (first + second) / 2, rtol=1e-6)
    weighted = loss(logits, labels, target_weights=(3.0, 1.0))
    np.testing.assert_allclose(weighted, (3 * first + second) / 4, rtol=1e-6)
    with pytest.raises(ValueError, match="2 targets"):
        loss(logits, labels, target_weights=(1.0,))


def test_class_weights_of_each_target():
    """Each target gets the weight that it has as a single target."""
    logits, labels = example(shape=(3, 4, 5, 2))
    weights = {"tumor_weight": (0.9, 0.6), "background_weight": (0.1, 0.4)}
    alone = [
        weighted_cross_entropy(
            logits[..., k : k + 1], labels[..., k : k + 1], **{name: values[k] for name, values in weights.items()}
        )
        for k in (0, 1)
    ]
    np.testing.assert_allclose(weighted_cross_entropy(logits, labels, **weights), sum(alone) / 2, rtol=1e-6)


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
