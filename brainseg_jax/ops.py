"""Faster CPU formulations of operators, with the same mathematics and parameters as those of XLA.

The docstrings tell why the operators of XLA are slower. `compiler_options` chooses the library that XLA uses for
convolutions.
"""

import functools
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# "lax": the operators of XLA; "cpu": formulations that are faster on CPU; "auto": "cpu" on CPU, else "lax".
Formulation = Literal["auto", "lax", "cpu"]


def is_lax(formulation: Formulation) -> bool:
    """Whether a formulation selects the operators of XLA. Raises ValueError if it is not a `Formulation`."""
    if formulation not in ("auto", "lax", "cpu"):
        raise ValueError(f'the formulation must be "auto", "lax" or "cpu", not {formulation!r}')
    return formulation == "lax" or (formulation == "auto" and jax.default_backend() != "cpu")


_Options = tuple[tuple[str, str | bool | int], ...]
# Compiler options for networks on CPU. An option that the installed XLA does not have is left out.
_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_cpu_use_fusion_emitters": False,
}


def compiler_options(
    *, deterministic: bool = False, network: bool = True, runs_once: bool = False
) -> dict[str, str | bool | int] | None:
    """Returns the `compiler_options` for `jax.jit`; None for the defaults of XLA.

    On CPU, XLA by default uses YNNPACK for convolutions, matrix products and sums. YNNPACK runs many convolutions on
    one thread. The option `..._ynn_fusion_type` limits YNNPACK to sums, so Eigen, which uses all cores, computes the
    rest. XLA's own sums over batch, rows and columns (for biases and batch norm) take ten times as long as those of
    YNNPACK.

    The other two options save memory. By default XLA orders a program so that operators can run in parallel. A chain
    of layers has no use for this, and more arrays are in memory at a time. Also, jaxlib 0.10 compiles each fusion in a
    separate compiler and keeps all of them. 0.12 has no such option (see `compilation.release_compiler_memory`).

    Args:
      deterministic: On a GPU, use slower kernels that give the same bits each time (`xla_gpu_deterministic_ops` of
        XLA). A CPU always gives the same bits.
      network: False for a program without a network, such as the augmentation: the defaults are best for it.
      runs_once: For a program such as the initial weights. On CPU, LLVM would optimize it for ten times as long as it
        runs.
    """
    backend = jax.default_backend()
    if backend == "cpu" and runs_once:
        return dict(_supported((("xla_backend_optimization_level", 0),)))
    if backend == "gpu" and deterministic:
        return {"xla_gpu_deterministic_ops": True}
    if backend != "cpu" or not network:
        return None
    return dict(_supported(tuple(_CPU_OPTIONS.items())))


@functools.cache
def _supported(options: _Options) -> _Options:
    """The options that the installed XLA accepts. Option names and values change between versions."""
    if _compiles(options):
        return options
    return tuple(option for option in options if _compiles((option,)))


def _compiles(options: _Options) -> bool:
    try:
        jax.jit(lambda: jnp.float32(0.0), compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


# Winograd's minimal filtering F(4, 3) computes four outputs of a three-tap filter with six products instead of twelve.
# The points are 0, 1, -1, 2, -2 and infinity: out = A^T [(G taps) * (B^T in)]. Source: Lavin and Gray 2016, "Fast
# Algorithms for Convolutional Neural Networks", CVPR, section 4.3.
_INPUT = (  # B^T
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_TAPS = (  # G
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))  # A^T
_MIN_CHANNELS = 32  # with fewer, copying the transformed images takes longer than the products that it saves


def conv3x3(x: jax.Array, kernel: jax.Array, formulation: Formulation = "auto") -> jax.Array:
    """3x3 convolution of stride 1, padded with zeros to the size of its input, without bias.

    The CPU formulation computes the value and the input gradient with half the products: Winograd's F(4, 3) along the
    height. It applies where it is faster: float32, a height divisible by four, at least 32 channels of input and
    output. Its rounding error is that of float32 sums, about 3e-6 of the largest value. It does not support
    forward-mode differentiation. XLA computes the kernel gradient: alternatives in JAX were hardly faster.

    Args:
      x: [B, H, W, C].
      kernel: [3, 3, C, F].
      formulation: See `Formulation`.

    Returns:
      [B, H, W, F].
    """
    few_channels = min(kernel.shape[2:]) < _MIN_CHANNELS
    if is_lax(formulation) or few_channels or x.shape[1] % 4 or x.dtype != jnp.float32:
        return _plain_conv(x, kernel)
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return _fast_conv3x3(x, kernel, precision)


def _plain_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _fast_conv3x3(x: jax.Array, kernel: jax.Array, precision: str | None) -> jax.Array:
    """The backward pass uses the precision of the forward pass."""
    with jax.default_matmul_precision(precision):
        return _winograd(x, kernel)


@jax.jit(inline=True)  # traced once per shape, not once per layer and pass
def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes each group of four output rows from six input rows: the same four, one above and one below."""
    batch, height, width, channels = x.shape
    groups = x.reshape(batch, height // 4, 4, width, channels)
    rows = [groups[:, :, row] for row in range(4)]
    border = jnp.zeros_like(rows[0][:, :1])
    above = jnp.concatenate([border, rows[3][:, :-1]], axis=1)
    below = jnp.concatenate([rows[0][:, 1:], border], axis=1)
    images = _combine(_INPUT, [above, *rows, below])
    kernels = _combine(_TAPS, kernel)
    products = [_plain_conv(image, taps[None]) for image, taps in zip(images, kernels, strict=True)]
    return jnp.stack(_combine(_OUTPUT, products), axis=2).reshape(batch, height, width, -1)


def _fast_conv3x3_forward(
    x: jax.Array, kernel: jax.Array, precision: str | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _fast_conv3x3(x, kernel, precision), (x, kernel)


def _fast_conv3x3_backward(
    precision: str | None, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    with jax.default_matmul_precision(precision):
        (kernel_gradient,) = jax.linear_transpose(lambda kernel: _plain_conv(x, kernel), kernel)(cotangent)
    return _fast_conv3x3(cotangent, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), precision), kernel_gradient


_fast_conv3x3.defvjp(_fast_conv3x3_forward, _fast_conv3x3_backward)


def _combine(weights: tuple[tuple[float, ...], ...], arrays: list[jax.Array] | jax.Array) -> list[jax.Array]:
    """The weighted sum of the arrays for each row of weights. Uses `lax`: `jnp` takes a third of a second to trace."""
    sums = []
    for row in weights:
        terms = [lax.mul(array, float(weight)) for weight, array in zip(row, arrays, strict=True) if weight]
        total = terms[0]
        for term in terms[1:]:
            total = lax.add(total, term)
        sums.append(total)
    return sums


def conv_transpose2x2(x: jax.Array, kernel: jax.Array, formulation: Formulation = "auto") -> jax.Array:
    """2x2 transposed convolution of stride 2, equal to `flax.linen.ConvTranspose(F, (2, 2), (2, 2))` without bias.

    The output windows of two input pixels do not overlap, so one matrix product and a depth-to-space suffice. XLA
    instead dilates the input with zeros and convolves it. The product is of the flattened pixels: for an einsum of all
    axes XLA transposes the pixels first, which takes twice as long (1 to 2 % of a step).

    Args:
      x: [B, H, W, C].
      kernel: [2, 2, C, F], spatially flipped as in flax: output (2i + a, 2j + b) uses kernel[1 - a, 1 - b].
      formulation: See `Formulation`.

    Returns:
      [B, 2H, 2W, F].
    """
    if is_lax(formulation):
        return lax.conv_transpose(x, kernel, (2, 2), "SAME")
    batch, height, width, channels = x.shape
    features = kernel.shape[-1]
    matrix = jnp.flip(kernel, (0, 1)).transpose(2, 0, 1, 3).reshape(channels, 4 * features)
    y = (x.reshape(-1, channels) @ matrix).reshape(batch, height, width, 2, 2, features)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, features)


def conv1x1_stride2(x: jax.Array, kernel: jax.Array, formulation: Formulation = "auto") -> jax.Array:
    """1x1 convolution of stride 2 without bias: a matrix product on every second pixel of every second row.

    XLA does the same for a 1x1 convolution without stride. With a stride, its input gradient is a convolution of a
    cotangent dilated with zeros. Avoiding it saves 5 % of a training step of the Attention U-Net at the scale :cpu.

    Args:
      x: [B, H, W, C].
      kernel: [1, 1, C, F].
      formulation: See `Formulation`.

    Returns:
      [B, ceil(H / 2), ceil(W / 2), F].
    """
    if is_lax(formulation):
        return lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = x[:, ::2, ::2]
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


def max_pool2x2(x: jax.Array, formulation: Formulation = "auto") -> jax.Array:
    """2x2 max-pool of stride 2 as the maximum of four strided views.

    The gradient of XLA's window reduction is a select-and-scatter, which is slow on CPU. Tied maxima share the gradient
    here; XLA gives it to the first. After a ReLU ties occur at zero, where no gradient passes. Other ties come only
    from the rounding of bfloat16.

    Args:
      x: [B, H, W, C], H and W even.
      formulation: See `Formulation`.

    Returns:
      [B, H / 2, W / 2, C].
    """
    if is_lax(formulation):
        return nn.max_pool(x, (2, 2), (2, 2))
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def upsample2x(x: jax.Array, method: str, formulation: Formulation = "auto") -> jax.Array:
    """Doubles height and width.

    Args:
      x: [B, H, W, C].
      method: "nearest" or "bilinear" (half-pixel centers, edges repeated, like `align_corners=False` in PyTorch).
      formulation: See `Formulation`.

    Returns:
      [B, 2H, 2W, C].

    Raises:
      ValueError: The method is unknown.
    """
    if method not in ("nearest", "bilinear"):
        raise ValueError(f'up-sampling must be "nearest" or "bilinear", not {method!r}')
    if is_lax(formulation):
        batch, height, width, channels = x.shape
        return jax.image.resize(x, (batch, 2 * height, 2 * width, channels), method)
    if method == "nearest":
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return _double_axis(_double_axis(x, 1), 2)


def _double_axis(x: jax.Array, axis: int) -> jax.Array:
    """Bilinear doubling of one axis: each output is a quarter pixel from its input, toward one neighbor.

    `jax.image.resize` multiplies by a dense weight matrix; two shifted copies avoid this product.
    """
    size = x.shape[axis]
    before = jnp.concatenate([lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
    after = jnp.concatenate(
        [lax.slice_in_dim(x, 1, size, axis=axis), lax.slice_in_dim(x, size - 1, size, axis=axis)], axis
    )
    pair = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis=axis + 1)
    return pair.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
