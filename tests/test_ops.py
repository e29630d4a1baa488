"""The faster formulations against plain lax and flax: values and gradients, odd sizes, dtypes, transformations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from brainseg_jax import ops


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def plain_conv(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def assert_close(got, wanted, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1e-6, np.abs(b).max()))


def with_gradients(function):
    def scalar(x, kernel, cotangent):
        y = function(x, kernel)
        return jnp.sum(y.astype(jnp.float32) * cotangent), y

    return jax.jit(jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize(
    ("batch", "height", "width", "channels", "features"),
    [(1, 8, 8, 1, 1), (1, 7, 5, 3, 16), (3, 9, 4, 16, 2), (4, 1, 6, 5, 7), (16, 33, 32, 8, 8), (7, 64, 64, 16, 16)],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_conv3x3(batch, height, width, channels, features, dtype, tolerance):
    x = normal(0, batch, height, width, channels, dtype=dtype)
    kernel = normal(1, 3, 3, channels, features, dtype=dtype)
    cotangent = normal(2, batch, height, width, features)
    exact = (x.astype(jnp.float32), kernel.astype(jnp.float32), cotangent)
    got = with_gradients(ops.conv3x3)(x, kernel, cotangent)
    assert_close(got, with_gradients(plain_conv)(*exact), tolerance)
    assert [g.dtype for g in got[1]] == [dtype, dtype]


def test_both_kernel_gradients_agree():
    x, g = normal(0, 4, 10, 6, 3), normal(1, 4, 10, 6, 5)
    assert_close(ops._kernel_gradient_matmul(x, g), ops._kernel_gradient_lax(x, g), 1e-5)


def test_conv3x3_under_vmap_scan_and_sharding():
    x, kernel, cotangent = normal(0, 2, 8, 6, 6, 3), normal(1, 3, 3, 3, 4), normal(2, 2, 8, 6, 6, 4)

    def gradient(conv):
        return lambda x, c: jax.grad(lambda k: jnp.sum(conv(x, k) * c))(kernel)

    wanted = jnp.stack([gradient(plain_conv)(x[i], cotangent[i]) for i in range(2)])
    assert_close(jax.vmap(gradient(ops.conv3x3))(x, cotangent), wanted, 1e-5)
    scanned = lax.scan(lambda c, xs: (c, gradient(ops.conv3x3)(*xs)), 0, (x, cotangent))[1]
    assert_close(scanned, wanted, 1e-5)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    assert mesh.size == 8
    divided = jax.NamedSharding(mesh, jax.P("data"))
    got = jax.jit(gradient(ops.conv3x3))(jax.device_put(x[0], divided), jax.device_put(cotangent[0], divided))
    assert_close(got, wanted[0], 1e-5)


def test_other_convolutions_are_left_to_lax():
    x = normal(0, 2, 8, 8, 3)
    for options in ({"strides": 2}, {"kernel_dilation": 2}, {"padding": "VALID"}, {"padding": 1}):
        layer = nn.Conv(4, (3, 3), **options)
        params = layer.init(jax.random.key(0), x)
        assert_close(
            layer.clone(conv_general_dilated=ops.conv_general_dilated).apply(params, x), layer.apply(params, x), 1e-5
        )


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
