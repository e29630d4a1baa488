"""A trained network with its preprocessing and thresholds, as one function of a raw scan. Shared files contain it."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from brainseg_jax.data.normalization import Normalization, normalize
from brainseg_jax.inference.forward import forward
from brainseg_jax.inference.network import Network
from brainseg_jax.inference.postprocess import PostProcess
from brainseg_jax.scans.description import Description

LEVELS = np.arange(256, dtype=np.int32)
BLOCK = 4  # slices processed at a time, which limits memory
# Rounds halves up, even if another order of summation gives slightly less. Weights of eighths give many halves.
HALF = np.float32(0.5 + 2**-10)


def make_segmenter(network: Network, posts: Sequence[PostProcess], size: int) -> Callable[[jax.Array], tuple]:
    """Builds the function from scan to probability and mask, with resizing, normalization, network and thresholds.

    It computes in float32 at the highest precision, so that all devices give the probabilities of a CPU. Each target
    platform gets its own formulation of the operators, see `ops.Formulation`.

    Args:
      network: network of a trained run.
      posts: post-processing of its K targets; only the thresholds are used.
      size: height and width of the slices.

    Returns:
      A function of a scan [S, size, size, C] float32 with the values of 8-bit pixels. The scan must have all slices of
      a patient, since they are normalized together. For one target the function returns probability [S, size, size]
      float32 and mask [S, size, size] uint8 in {0, 1}. For several, it returns probability [S, size, size, K] float32
      and label map [S, size, size] uint8, see `postprocess.make_masks` and `Description.label_map`.
    """
    model_float32 = network.model.clone(dtype=jnp.float32, precision="highest")
    description, side = network.description, network.image_size
    down, up = resize_weights(size, side), resize_weights(side, size)
    thresholds = np.array([post.threshold for post in posts], np.float32)

    def segment_slices(
        model: nn.Module, scan: jax.Array, indices: jax.Array, constants: Normalization
    ) -> tuple[jax.Array, jax.Array]:
        """Probability, and mask or label map, of the slices `indices` [BLOCK]."""
        neighbors = jnp.clip(indices[:, None] + np.arange(-network.context, network.context + 1), 0, scan.shape[0] - 1)
        slices = _levels(scan[neighbors.ravel()])
        images = normalize(slices if down is None else _rounded_resize(slices, down), constants)
        # Neighboring slices become further channels: see `canvas.with_neighbors`.
        images = jnp.moveaxis(images.reshape(*neighbors.shape, *images.shape[1:]), 1, 3).reshape(BLOCK, side, side, -1)
        probability = forward(model, network.variables, images, mirror=network.mirror).probability
        if up is not None:
            probability = jnp.einsum("ih,shwk,jw->sijk", up, probability, up, precision="highest")
        reached = probability >= thresholds
        if len(thresholds) == 1:
            return probability[..., 0], reached[..., 0].astype(jnp.uint8)
        return probability, _label_map(probability, reached, description)

    def segment_with(model: nn.Module, scan: jax.Array) -> tuple[jax.Array, jax.Array]:
        constants = _fit(scan, network.normalization)
        count, targets = scan.shape[0], len(thresholds)

        def take_block(index: jax.Array, maps: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            # The last block repeats the last slice, which gives the same values.
            indices = jnp.clip(index * BLOCK + np.arange(BLOCK), 0, count - 1)
            block_outputs = segment_slices(model, scan, indices, constants)
            return tuple(output.at[indices].set(values) for output, values in zip(maps, block_outputs, strict=True))

        probability = jnp.zeros((count, size, size, targets)[: 3 + (targets > 1)], jnp.float32)
        blocks = jnp.array((count + BLOCK - 1) // BLOCK)
        return jax.lax.fori_loop(0, blocks, take_block, (probability, jnp.zeros((count, size, size), jnp.uint8)))

    def segment(scan: jax.Array) -> tuple[jax.Array, jax.Array]:
        scan = jnp.asarray(scan)
        if model_float32.formulation != "auto":
            return segment_with(model_float32, scan)
        on_cpu, on_others = (partial(segment_with, model_float32.clone(formulation=name)) for name in ("cpu", "lax"))
        return jax.lax.platform_dependent(scan, cpu=on_cpu, default=on_others)

    return segment


def _levels(slices: jax.Array) -> jax.Array:
    """Rounds to the integer levels of 8-bit pixels."""
    return jnp.clip(jnp.floor(slices + 0.5), 0.0, 255.0)


def _label_map(probability: jax.Array, reached: jax.Array, description: Description) -> jax.Array:
    """Label map [S, H, W] uint8 from probabilities [S, H, W, K] and `reached`: whether they reach the thresholds."""
    if description.exclusive:
        highest = jnp.argmax(jnp.where(reached, probability, -1.0), axis=-1)
        reached &= jnp.arange(len(description.targets)) == highest[..., None]
    masks = [reached[..., index] for index in range(len(description.targets))]
    for inner, outer in description.nested:
        masks[inner] &= masks[outer]
    labels = jnp.zeros(reached.shape[:-1], jnp.uint8)
    for mask, value in zip(masks, description.painted, strict=True):
        labels = jnp.where(mask, np.uint8(value), labels)
    return labels


def resize_weights(old_size: int, new_size: int) -> np.ndarray | None:
    """Weights of each input pixel for each output pixel, [new_size, old_size] float32. None if the sizes are equal.

    They are the triangle filter of `canvas.resize_images` (Pillow's BILINEAR). It is two output pixels wide for
    downsampling and two input pixels wide for upsampling. Pixel centers are at half-integers; rows sum to 1.
    """
    if old_size == new_size:
        return None
    scale = old_size / new_size
    centers = (np.arange(new_size) + 0.5) * scale
    distance = np.abs(np.arange(old_size) + 0.5 - centers[:, None]) / max(scale, 1.0)
    weights = np.maximum(1.0 - distance, 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _rounded_resize(scan: jax.Array, weights: np.ndarray) -> jax.Array:
    """Resizes columns, then rows, each rounded to the levels of 8-bit pixels, as Pillow does."""
    columns = jnp.floor(jnp.einsum("jw,shwc->shjc", weights, scan, precision="highest") + HALF)
    return jnp.floor(jnp.einsum("ih,shjc->sijc", weights, columns, precision="highest") + HALF)


def _fit(scan: jax.Array, method: str) -> Normalization:
    """`normalization.fit` in jax, from the exact histogram. scan: [S, H, W, C], rounded to integers 0 to 255."""
    channels = scan.shape[-1]
    zeros, ones = jnp.zeros(channels, jnp.float32), jnp.ones(channels, jnp.float32)
    if method == "rescale":
        return Normalization(zeros, 255.0 * ones, zeros, ones / 255.0)

    def count_slice(index: jax.Array, counts: jax.Array) -> jax.Array:
        pixels = _levels(scan[index]).astype(jnp.int32).reshape(-1, channels)
        return counts.at[np.arange(channels), pixels].add(1)

    counts = jax.lax.fori_loop(0, jnp.array(scan.shape[0]), count_slice, jnp.zeros((channels, 256), jnp.int32))
    upper = _percentile(counts, 99)
    if method == "volume_median":
        head = jnp.where(5.0 * LEVELS.astype(np.float32) > upper[:, None], counts, 0)
        median = _percentile(head, 50)
        inverse = jnp.where(upper > 0.0, 1.0 / jnp.maximum(median, 1.0), 0.0)
        return Normalization(zeros, upper, jnp.where(upper > 0.0, median, 0.0), inverse)
    lower = _percentile(counts, 10)
    shares = counts.astype(jnp.float32) / counts.sum(axis=1, keepdims=True).astype(jnp.float32)
    clipped = jnp.clip(LEVELS.astype(np.float32)[None], lower[:, None], upper[:, None])
    mean = jnp.sum(shares * clipped, axis=1)
    variance = jnp.sum(shares * (clipped - mean[:, None]) ** 2, axis=1)
    varies = upper > lower
    return Normalization(lower, upper, mean, jnp.where(varies, 1.0 / jnp.sqrt(jnp.where(varies, variance, 1.0)), 0.0))


def _percentile(counts: jax.Array, percent: int) -> jax.Array:
    """Percentile of the pixels in histograms [C, 256] int32, interpolated as in `normalization`; [C] float32.

    The rank is computed in integers: 32-bit floats cannot represent the number of voxels of a scan exactly.
    """
    cumulative = jnp.cumsum(counts, axis=1)
    last = cumulative[:, -1] - 1
    below = last // 100 * percent + last % 100 * percent // 100
    rest = (last % 100 * percent % 100).astype(jnp.float32) / 100.0

    def value_at(rank: jax.Array) -> jax.Array:
        return jnp.sum(cumulative <= rank[:, None], axis=1).astype(jnp.float32)

    low, high = value_at(below), value_at(below + (rest > 0.0).astype(jnp.int32))
    return low + (high - low) * rest
