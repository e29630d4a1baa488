"""A trained network with all that stands around it, as one function of a raw scan: what a shared file holds."""

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
BLOCK = 4  # slices that lie in memory as images and activations at a time, however many a scan has
# Halves are rounded up, also where a sum in another order comes out a little less: weights of eighths make many.
HALF = np.float32(0.5 + 2**-10)


def make_segmenter(network: Network, posts: Sequence[PostProcess], size: int) -> Callable[[jax.Array], tuple]:
    """Scan to probability and mask, with resizing, normalization, network and thresholds.

    Products are of float32 at the highest precision, so that every device gives the probabilities that a CPU gives.
    Each platform that the function is lowered for gets its own formulation of the operators, see `ops.Formulation`.

    Args:
      network: of a trained run.
      posts: of its K targets, of which the thresholds are used.
      size: height and width of the slices.

    Returns:
      a function of a scan [S, size, size, C] float32, the values of 8-bit pixels. The scan is all slices of a patient,
      as its normalization is that of a volume. Of one target the function gives probability [S, size, size] float32 and
      mask [S, size, size] uint8 in {0, 1}; of several, probability [S, size, size, K] float32 and label map
      [S, size, size] uint8, see `postprocess.make_masks` and `Description.label_map`.
    """
    exact = network.model.clone(dtype=jnp.float32, precision="highest")
    description, side = network.description, network.image_size
    down, up = resize_weights(size, side), resize_weights(side, size)
    thresholds = np.array([post.threshold for post in posts], np.float32)

    def segment_slices(
        model: nn.Module, scan: jax.Array, indices: jax.Array, constants: Normalization
    ) -> tuple[jax.Array, jax.Array]:
        """Of the slices `indices` [B], as below."""
        around = jnp.clip(indices[:, None] + np.arange(-network.context, network.context + 1), 0, scan.shape[0] - 1)
        slices = _levels(scan[around.ravel()])
        images = normalize(slices if down is None else _rounded_resize(slices, down), constants)
        # Neighboring slices, one after the other, as further channels: see `canvas.with_neighbors`.
        images = jnp.moveaxis(images.reshape(*around.shape, *images.shape[1:]), 1, 3).reshape(BLOCK, side, side, -1)
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
            # Beyond the end the last slice again, which gives the same values again.
            indices = jnp.clip(index * BLOCK + np.arange(BLOCK), 0, count - 1)
            found = segment_slices(model, scan, indices, constants)
            return tuple(map_.at[indices].set(values) for map_, values in zip(maps, found, strict=True))

        probability = jnp.zeros((count, size, size, targets)[: 3 + (targets > 1)], jnp.float32)
        blocks = jnp.array((count + BLOCK - 1) // BLOCK)
        return jax.lax.fori_loop(0, blocks, take_block, (probability, jnp.zeros((count, size, size), jnp.uint8)))

    def segment(scan: jax.Array) -> tuple[jax.Array, jax.Array]:
        scan = jnp.asarray(scan)
        if exact.formulation != "auto":
            return segment_with(exact, scan)
        on_cpu, elsewhere = (partial(segment_with, exact.clone(formulation=name)) for name in ("cpu", "lax"))
        return jax.lax.platform_dependent(scan, cpu=on_cpu, default=elsewhere)

    return segment


def _levels(slices: jax.Array) -> jax.Array:
    """Rounded to the levels of 8-bit pixels."""
    return jnp.clip(jnp.floor(slices + 0.5), 0.0, 255.0)


def _label_map(probability: jax.Array, reached: jax.Array, description: Description) -> jax.Array:
    """Label map [S, H, W] uint8 of probabilities [S, H, W, K] and where they reach their thresholds, bool."""
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


def resize_weights(given: int, wanted: int) -> np.ndarray | None:
    """What each of `given` pixels gives to each of `wanted`, [wanted, given] float32; None where they are as many.

    The triangle of `canvas.resize_images` (Pillow's BILINEAR): as wide as two output pixels where it makes smaller,
    two input pixels where it makes larger, pixel centers at half, rows that sum to 1.
    """
    if given == wanted:
        return None
    scale = given / wanted
    centers = (np.arange(wanted) + 0.5) * scale
    distance = np.abs(np.arange(given) + 0.5 - centers[:, None]) / max(scale, 1.0)
    weights = np.maximum(1.0 - distance, 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _rounded_resize(scan: jax.Array, weights: np.ndarray) -> jax.Array:
    """Columns, then rows, each rounded to the levels of 8-bit pixels, as Pillow does."""
    columns = jnp.floor(jnp.einsum("jw,shwc->shjc", weights, scan, precision="highest") + HALF)
    return jnp.floor(jnp.einsum("ih,shjc->sijc", weights, columns, precision="highest") + HALF)


def _fit(scan: jax.Array, method: str) -> Normalization:
    """`normalization.fit` in jax, from the exact histogram; scan [S, H, W, C], rounded to whole numbers 0..255."""
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
    """Of the pixels behind histograms [C, 256] int32, interpolated as `normalization` does; [C] float32.

    The rank is kept in whole numbers: 32-bit floats do not count the voxels of a scan.
    """
    cumulative = jnp.cumsum(counts, axis=1)
    last = cumulative[:, -1] - 1
    below = last // 100 * percent + last % 100 * percent // 100
    rest = (last % 100 * percent % 100).astype(jnp.float32) / 100.0

    def value_at(place: jax.Array) -> jax.Array:
        return jnp.sum(cumulative <= place[:, None], axis=1).astype(jnp.float32)

    low, high = value_at(below), value_at(below + (rest > 0.0).astype(jnp.int32))
    return low + (high - low) * rest
