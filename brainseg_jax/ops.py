"""The operators of the networks where XLA's own are slow on CPU: same maths, same parameters, chosen by backend.

Each says what it replaces and why. What each gains is for `benchmarks/` to measure; none is claimed here.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_CACHE_FLOATS = 1_000_000  # shifted copies of about 4 MB stay in the second-level cache


def conv_general_dilated(
    x: jax.Array, kernel: jax.Array, strides: object, padding: object, *, dimension_numbers: object, **options: object
) -> jax.Array:
    """What `flax.linen.Conv` calls: `conv3x3` where it applies (3x3, stride 1, SAME), else lax's own.

    Args:
      x: [B, H, W, C].
      kernel: [h, w, C, F].
      strides: as `lax.conv_general_dilated`.
      padding: as `lax.conv_general_dilated`.
      dimension_numbers: as `lax.conv_general_dilated`; flax passes NHWC, HWIO, NHWC.
      **options: as `lax.conv_general_dilated`.

    Returns:
      [B, H', W', F].
    """
    same = padding == "SAME" or list(padding) == [(1, 1), (1, 1)]
    # What is left at its default: no dilation, one group, no precision or dtype of its own.
    plain = all(value is None or value == 1 or set(np.atleast_1d(value)) == {1} for value in options.values())
    if kernel.shape[:2] == (3, 3) and tuple(strides) == (1, 1) and same and plain:
        return conv3x3(x, kernel)
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=dimension_numbers, **options)


@jax.custom_vjp
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution, stride 1, zero padding, with a fast gradient for the kernel on CPU.

    XLA on CPU computes the kernel's gradient as a convolution with a window of the size of the image; here it is one
    matrix product over shifted copies.

    Args:
      x: [B, H, W, C].
      kernel: [3, 3, C, F].

    Returns:
      [B, H, W, F].
    """
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _conv3x3_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return conv3x3(x, kernel), (x, kernel)


def _conv3x3_backward(residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    # The input's gradient is the same convolution of g, the kernel turned by 180 degrees and its channels swapped.
    input_gradient = conv3x3(g, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    kernel_gradient = lax.platform_dependent(x, g, cpu=_kernel_gradient_matmul, default=_kernel_gradient_lax)
    return input_gradient, kernel_gradient


conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)


def _kernel_gradient_lax(x: jax.Array, g: jax.Array) -> jax.Array:
    """[3, 3, C, F] as lax derives it: batch and channels change places. GPU and TPU libraries are fast at it."""
    return lax.conv_general_dilated(x, g, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("CHWN", "IHWO", "HWNC"))


def _kernel_gradient_matmul(x: jax.Array, g: jax.Array) -> jax.Array:
    """[3, 3, C, F]: entry (i, j) is Σ x[h + i - 1, w + j - 1] g[h, w], all nine in one product.

    Three shifts of x along W stand side by side on its channels, three of g along H on its own, and one dot contracts
    batch, rows and columns to [3C, 3F]. Done in groups of images, so that the copies stay in cache.
    """
    batch, height, width, channels = x.shape
    features = g.shape[-1]
    group = max(1, _CACHE_FLOATS // (height * width * 3 * (channels + features)))
    group = max(n for n in range(1, min(group, batch) + 1) if batch % n == 0)

    def add_group(total: jax.Array, images: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x, g = images
        x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
        g = jnp.pad(g, ((0, 0), (1, 1), (0, 0), (0, 0)))
        x = jnp.concatenate([x[:, :, j : j + width] for j in range(3)], axis=-1)
        g = jnp.concatenate([g[:, 2 - i : 2 - i + height] for i in range(3)], axis=-1)
        axes = (0, 1, 2)
        return total + lax.dot_general(x, g, ((axes, axes), ((), ())), preferred_element_type=jnp.float32), None

    groups = tuple(a.reshape(batch // group, group, *a.shape[1:]) for a in (x, g))
    total, _ = lax.scan(add_group, jnp.zeros((3 * channels, 3 * features), jnp.float32), groups)
    return total.reshape(3, channels, 3, features).transpose(2, 0, 1, 3).astype(x.dtype)


def conv_transpose2x2(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """2x2 transposed convolution of stride 2, equal to `flax.linen.ConvTranspose(F, (2, 2), (2, 2))` without bias.

    No two outputs share an input window, so it is one matrix product and a depth-to-space; XLA's own dilates the input
    with zeros and convolves those.

    Args:
      x: [B, H, W, C].
      kernel: [2, 2, C, F], spatially flipped as in flax: output (2i + a, 2j + b) takes kernel[1 - a, 1 - b].

    Returns:
      [B, 2H, 2W, F].
    """
    batch, height, width, _ = x.shape
    y = jnp.einsum("bhwc,ijcf->bhiwjf", x, jnp.flip(kernel, (0, 1)))
    return y.reshape(batch, 2 * height, 2 * width, kernel.shape[-1])


def max_pool2x2(x: jax.Array) -> jax.Array:
    """2x2 max-pool of stride 2 as the maximum of four strided views.

    The gradient of XLA's own window reduction is a select-and-scatter, slow on CPU. Where the maximum is tied the
    gradient is shared between the tied pixels; after a ReLU ties stand only at zero, where no gradient passes.

    Args:
      x: [B, H, W, C], H and W even.

    Returns:
      [B, H / 2, W / 2, C].
    """
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def upsample2x(x: jax.Array, method: str) -> jax.Array:
    """Doubles height and width.

    Args:
      x: [B, H, W, C].
      method: "nearest" or "bilinear" (half-pixel centers, edges repeated, as torch's `align_corners=False`).

    Returns:
      [B, 2H, 2W, C].

    Raises:
      ValueError: for another method.
    """
    if method == "nearest":
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    if method == "bilinear":
        return _double_axis(_double_axis(x, 1), 2)
    raise ValueError(f'up-sampling must be "nearest" or "bilinear", not {method!r}')


def _double_axis(x: jax.Array, axis: int) -> jax.Array:
    """Bilinear doubling of one axis: each output lies a quarter pixel from its input, towards one neighbor.

    `jax.image.resize` contracts with a dense matrix of weights; two shifted views do the same.
    """
    size = x.shape[axis]
    before = jnp.concatenate([lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
    after = jnp.concatenate(
        [lax.slice_in_dim(x, 1, size, axis=axis), lax.slice_in_dim(x, size - 1, size, axis=axis)], axis
    )
    pair = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis=axis + 1)
    return pair.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
