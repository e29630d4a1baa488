"""The faster formulations against plain lax and flax: values and gradients, odd sizes, dtypes, transformations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainseg_jax import ops


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def assert_close(got, wanted, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1e-6, np.abs(b).max()))


def test_convolutions_and_their_gradients_keep_clear_of_the_library_of_one_thread():
    """A convolution given to that library stands in a computation of its own; XLA's own stand in the main one."""
    net = nn.Conv(32, (3, 3))
    x = jnp.ones((16, 64, 64, 32))
    params = net.init(jax.random.key(0), x)

    def gradient(params, x):
        return jax.grad(lambda *args: jnp.sum(net.apply(*args) ** 2), (0, 1))(params, x)

    def given_away(options):
        text = jax.jit(gradient, compiler_options=options).lower(params, x).compile().as_text()
        *others, main = text.split("\nENTRY ")
        return sum(part.count("convolution(") for part in others), main.count("convolution("), "ynn_fusion" in main

    assert given_away(None)[0] > 0  # else the option is no longer needed
    assert given_away(ops.compiler_options()) == (0, 3, True)  # the sum of the bias's gradient stays with the library


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 3, 4)])
def test_conv_transpose_is_flax_own(shape):
    x = normal(0, *shape)
    layer = nn.ConvTranspose(6, (2, 2), (2, 2), use_bias=False)
    params = layer.init(jax.random.key(0), x)
    assert_close(ops.conv_transpose2x2(x, params["params"]["kernel"]), layer.apply(params, x), 1e-5)


def test_max_pool_and_its_gradient_after_relu():
    x = normal(0, 2, 8, 6, 3)
    cotangent = normal(1, 2, 4, 3, 3)

    def gradient(pool):
        return jax.value_and_grad(lambda x: jnp.sum(pool(nn.relu(x)) * cotangent))(x)

    assert_close(gradient(ops.max_pool2x2), gradient(lambda x: nn.max_pool(x, (2, 2), (2, 2))), 1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 3, 4), (1, 16, 8, 1)])
def test_upsampling_is_image_resize(shape):
    x = normal(0, *shape)
    larger = (shape[0], 2 * shape[1], 2 * shape[2], shape[3])
    for method in ("nearest", "bilinear"):
        assert_close(ops.upsample2x(x, method), jax.image.resize(x, larger, method), 1e-5)
    with pytest.raises(ValueError, match="bicubic"):
        ops.upsample2x(x, "bicubic")


@pytest.mark.parametrize(
    ("backend", "deterministic", "option"),
    [("gpu", True, {"xla_gpu_deterministic_ops": True}), ("gpu", False, None), ("tpu", True, None)],
)
def test_the_switch_for_deterministic_kernels_is_of_gpus_alone(monkeypatch, backend, deterministic, option):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert ops.compiler_options(deterministic=deterministic) == option
