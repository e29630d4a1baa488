"""The operators of the networks where XLA's own are slow on CPU: same maths, same parameters, chosen by backend.

Each says what it replaces and why. The library that XLA takes for convolutions is another matter: `compiler_options`.
"""

import functools
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# "lax": XLA's own operators; "cpu": what is faster on a CPU; "auto": "cpu" where jax runs on one, else "lax".
Formulation = Literal["auto", "lax", "cpu"]


def is_lax(formulation: Formulation) -> bool:
    """Whether XLA's own operators are asked for; ValueError for what is not a `Formulation`."""
    if formulation not in ("auto", "lax", "cpu"):
        raise ValueError(f'the formulation must be "auto", "lax" or "cpu", not {formulation!r}')
    return formulation == "lax" or (formulation == "auto" and jax.default_backend() != "cpu")


_Options = tuple[tuple[str, str | bool | int], ...]
# What networks are compiled with on a CPU, where the XLA at hand knows the option.
_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_cpu_use_fusion_emitters": False,
}


def compiler_options(
    *, deterministic: bool = False, network: bool = True, runs_once: bool = False
) -> dict[str, str | bool | int] | None:
    """What `jax.jit` is to be given as `compiler_options`; None for XLA's own choice.

    They are for networks. By itself XLA hands convolutions, matrix products and sums on CPU to YNNPACK, which runs many
    convolutions on one thread. With the first option YNNPACK gets sums alone and Eigen, which uses every core, the
    rest. XLA's own sums over batch, rows and columns (of biases and batch norm) take ten times as long as YNNPACK's.

    The other two options are for memory. By itself XLA orders a program so that its operators may run at once, which a
    chain of layers has no use of, and holds what is not needed yet or any more. And jaxlib 0.10 compiles each fusion in
    a compiler of its own, all held at a time; 0.12 has no such option (see `compilation.release_compiler_memory`).

    Args:
      deterministic: on a GPU, choose kernels that give the same bits each time, at a price in speed (XLA's
        `xla_gpu_deterministic_ops`). A CPU always does.
      network: False for a program of none, as the augmentation, which a CPU compiles best by XLA's own choice.
      runs_once: for a program like that of the initial weights, which LLVM on a CPU would optimize for ten times as
        long as the program runs.
    """
    backend = jax.default_backend()
    if backend == "cpu" and runs_once:
        return dict(_known((("xla_backend_optimization_level", 0),)))
    if backend == "gpu" and deterministic:
        return {"xla_gpu_deterministic_ops": True}
    if backend != "cpu" or not network:
        return None
    return dict(_known(tuple(_CPU_OPTIONS.items())))


@functools.cache
def _known(options: _Options) -> _Options:
    """Those of the options that this XLA takes: their names and values come and go from version to version."""
    if _compiles(options):
        return options
    return tuple(option for option in options if _compiles((option,)))


def _compiles(options: _Options) -> bool:
    try:
        jax.jit(lambda: jnp.float32(0.0), compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


# Winograd's minimal filtering F(4, 3): four outputs of a filter of three taps for six products in place of twelve, with
# the points 0, 1, -1, 2, -2 and infinity: out = A^T [(G taps) * (B^T in)]. Lavin and Gray 2016, "Fast Algorithms for
# Convolutional Neural Networks", CVPR, section 4.3.
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
_MIN_CHANNELS = 32  # below, moving the transformed images takes longer than half of the products


def conv3x3(x: jax.Array, kernel: jax.Array, formulation: Formulation = "auto") -> jax.Array:
    """3x3 convolution of stride 1, padded with zeros to the size of its input, without bias.

    On a CPU its value and its input gradient are found from half the products (Winograd's F(4, 3), along the rows of
    the image) where that pays: float32, heights divisible by four, 32 channels or more on either side. Rounding is that
    of float32 sums, some 3e-6 of the largest value. No forward-mode derivative passes it. The kernel's gradient is
    XLA's own: what was tried in JAX gained little or nothing.

    Args:
      x: [B, H, W, C].
      kernel: [3, 3, C, F].
      formulation: see `Formulation`.

    Returns:
      [B, H, W, F].
    """
    few = min(kernel.shape[2:]) < _MIN_CHANNELS
    if is_lax(formulation) or few or x.shape[1] % 4 or x.dtype != jnp.float32:
        return _plain_conv(x, kernel)
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return _fast_conv3x3(x, kernel, precision)


def _plain_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _fast_conv3x3(x: jax.Array, kernel: jax.Array, precision: str | None) -> jax.Array:
    """Products have the precision in force where the convolution stands, in the backward pass too."""
    with jax.default_matmul_precision(precision):
        return _winograd(x, kernel)


@jax.jit(inline=True)  # traced once for a shape, and not again for each layer and pass
def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A group of four rows is found from six: of its own, the one above and the one below."""
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
    """For each row of weights the weighted sum of the arrays; of `lax`, as jnp takes a third of a second to trace."""
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

    No two outputs share an input window, so it is one matrix product and a depth-to-space; XLA's own dilates the input
    with zeros and convolves those. The product is of rows of pixels: XLA transposes the pixels first for an einsum of
    all axes, which alone takes twice as long (of a whole step it is a hundredth or two).

    Args:
      x: [B, H, W, C].
      kernel: [2, 2, C, F], spatially flipped as in flax: output (2i + a, 2j + b) takes kernel[1 - a, 1 - b].
      formulation: see `Formulation`.

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
    """1x1 convolution of stride 2 without bias: every second pixel of every second row, times a matrix.

    XLA writes a 1x1 convolution as this product by itself, but not where it has a stride: the input gradient is then a
    convolution of a cotangent dilated with zeros. It saves 5 % of a training step of the Attention U-Net at :cpu.

    Args:
      x: [B, H, W, C].
      kernel: [1, 1, C, F].
      formulation: see `Formulation`.

    Returns:
      [B, ceil(H / 2), ceil(W / 2), F].
    """
    if is_lax(formulation):
        return lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = x[:, ::2, ::2]
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


def max_pool2x2(x: jax.Array, formulation: Formulation = "auto") -> jax.Array:
    """2x2 max-pool of stride 2 as the maximum of four strided views.

    The gradient of XLA's own window reduction is a select-and-scatter, slow on CPU. Where the maximum is tied the
    gradient is shared between the tied pixels, where XLA's gives it to the first; after a ReLU ties stand at zero,
    where no gradient passes, and else only by the rounding of bfloat16.

    Args:
      x: [B, H, W, C], H and W even.
      formulation: see `Formulation`.

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
      method: "nearest" or "bilinear" (half-pixel centers, edges repeated, as torch's `align_corners=False`).
      formulation: see `Formulation`.

    Returns:
      [B, 2H, 2W, C].

    Raises:
      ValueError: for another method.
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
