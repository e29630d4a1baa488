"""Random augmentation of one training example.

The functions are pure and run inside jit; the caller vmaps over the batch. Every amount is a Python float, fixed when
the step is traced. With all amounts 0 a function adds nothing to the graph, and its output equals its
input, bit for bit.
"""

import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.ndimage import map_coordinates

from brainseg_jax.scans.description import Description


def warp(
    key: jax.Array,
    image: jax.Array,
    mask: jax.Array,
    *,
    rotation: float,
    scale: float,
    shift: float,
    shear: float,
    flip: float,
    crop: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Applies one random affine map about the image center to the image and its target bits, then crops both.

    Both are resampled once: bilinear for the image, nearest neighbor for the bits, zero outside. Zero means air only
    before normalization, so call `warp` before `normalize`.

    Args:
      key: PRNG key of this example.
      image: [H, W, C] float32.
      mask: [H, W, 1] float32 with integer values: a mask or target bits (see `cohort.unpack_targets`).
      rotation: Maximum angle in degrees, in either direction.
      scale: Zoom factor is drawn from 1 ± `scale`; below 1.
      shift: Maximum translation along each axis, as a fraction of the width.
      shear: Maximum shear angle of the rows in degrees, in either direction; below 90.
      flip: Probability of a left-right flip, 0 to 1.
      crop: Height and width of a random window of the warped image, in pixels; 0: the whole image.

    Returns:
      Image [H, W, C] or [crop, crop, C], and the mask. The mask has only values of the input mask, and 0.
    """
    if not any((rotation, scale, shift, shear, flip, crop)):
        return image, mask
    height, width, _ = image.shape
    matrix, offset = _affine(key, rotation=rotation, scale=scale, shift=shift * width, shear=shear, flip=flip)
    rows = jnp.arange(crop or height, dtype=jnp.float32)
    columns = jnp.arange(crop or width, dtype=jnp.float32)
    if crop:
        row_key, column_key = jax.random.split(jax.random.fold_in(key, 1))
        rows += jax.random.randint(row_key, (), 0, height - crop + 1).astype(jnp.float32)
        columns += jax.random.randint(column_key, (), 0, width - crop + 1).astype(jnp.float32)
    row = (rows - (height - 1) / 2)[:, None]
    column = (columns - (width - 1) / 2)[None, :]
    source = [
        matrix[0, 0] * row + matrix[0, 1] * column + offset[0] + (height - 1) / 2,
        matrix[1, 0] * row + matrix[1, 1] * column + offset[1] + (width - 1) / 2,
    ]
    image = jax.vmap(lambda plane: map_coordinates(plane, source, order=1), in_axes=-1, out_axes=-1)(image)
    return image, map_coordinates(mask[..., 0], source, order=0)[..., None]


def perturb_intensity(
    key: jax.Array, image: jax.Array, *, contrast: float, gamma: float, noise: float, channels: int | None = None
) -> jax.Array:
    """Changes the intensity curve of each channel at random, as a different scanner might, and then adds noise.

    Args:
      key: PRNG key of this example.
      image: [H, W, C] float32, normalized.
      contrast: Scales about the channel's mean by a factor in 1 ± `contrast`; below 1.
      gamma: Raises the channel, rescaled to 0..1, to the power exp(g) with g in ± `gamma`. Its minimum and maximum do
        not change.
      noise: Maximum standard deviation of the Gaussian noise, as a fraction of the image's standard deviation.
      channels: Channels of one slice, where the image has neighboring slices as further channels. All slices of
        a channel then share its random factors; mean, minimum and maximum are those of each slice. None: the image is
        one slice.

    Returns:
      [H, W, C] float32. A constant channel stays finite.
    """
    for_contrast, for_gamma, for_level, for_noise = jax.random.split(key, 4)
    channels = channels or image.shape[-1]
    slices = image.shape[-1] // channels

    def factor_per_channel(key: jax.Array, amount: float) -> jax.Array:
        return jnp.tile(_between(key, amount, (1, 1, channels)), (1, 1, slices))

    if contrast:
        mean = image.mean(axis=(0, 1), keepdims=True)
        image = mean + (image - mean) * (1 + factor_per_channel(for_contrast, contrast))
    if gamma:
        power = jnp.exp(factor_per_channel(for_gamma, gamma))
        low = image.min(axis=(0, 1), keepdims=True)
        height = image.max(axis=(0, 1), keepdims=True) - low
        # After fusion the darkest pixel can round to just below the minimum, and its logarithm would be NaN.
        unit = jnp.maximum((image - low) / jnp.where(height > 0, height, 1.0), 0.0)
        image = low + height * jnp.exp(power * jnp.log(unit))  # unit ** power, but five times faster on a CPU
    if noise:
        level = jax.random.uniform(for_level, maxval=noise) * image.std()
        image = image + level * _normal(for_noise, image.shape)
    return image


def replace_channels(key: jax.Array, image: jax.Array, *, description: Description, probability: float) -> jax.Array:
    """Replaces random channels by the `stand_in` channel (FLAIR in LGG), to simulate missing sequences.

    Of the 110 LGG patients, 6 have no pre-contrast and 9 no post-contrast sequence (README of the dataset). A network
    cannot learn this case from so few.

    Args:
      key: PRNG key of this example.
      image: [H, W, C] float32, normalized; C can include neighboring slices as further channels.
      description: Its `stand_in` names the replacement channel. If there is none, the image does not change.
      probability: Probability of a replacement, 0 to 1. All nonempty subsets of the other channels are equally likely.

    Returns:
      [H, W, C] float32.
    """
    others = [i for i, name in enumerate(description.channels) if name != description.stand_in]
    if not probability or not description.stand_in or not others:
        return image
    for_change, for_subset = jax.random.split(key)
    # All nonempty subsets by size; for two channels: first, second, both.
    subsets = [set(subset) for size in range(1, len(others) + 1) for subset in itertools.combinations(others, size)]
    channels = len(description.channels)
    slices = image.shape[-1] // channels  # the slice and its neighbors
    table = jnp.array([[channel in subset for channel in range(channels)] for subset in subsets])
    index = jax.random.randint(for_subset, (), 0, len(subsets))
    replaced = table[index] & jax.random.bernoulli(for_change, probability)
    blocks = image.reshape(*image.shape[:2], slices, channels)
    shown = blocks[..., description.shown : description.shown + 1]
    return jnp.where(replaced[None, None, None, :], shown, blocks).reshape(image.shape)


def _between(key: jax.Array, amount: float, shape: tuple[int, ...] = ()) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-amount, maxval=amount)


def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal numbers: quantiles of 65 536 equally likely levels, so all are below 4.33 in magnitude.

    Generating random bits takes most of the time on a CPU. Threefry generates 32 bits per number here, 64 in
    `jax.random.normal`.
    """
    count = math.prod(shape)
    bits = jax.random.bits(key, (-(-count // 2),), jnp.uint32)
    levels = lax.bitcast_convert_type(bits, jnp.uint16).reshape(-1)[:count].reshape(shape)
    return math.sqrt(2.0) * lax.erf_inv((levels.astype(jnp.float32) + 0.5) / 2**15 - 1.0)


def _affine(
    key: jax.Array, *, rotation: float, scale: float, shift: float, shear: float, flip: float
) -> tuple[jax.Array, jax.Array]:
    """Affine map from output to input (row, column) about the center: matrix [2, 2] and offset [2], in pixels."""
    for_rotation, for_scale, for_shift, for_shear, for_flip = jax.random.split(key, 5)
    angle = jnp.deg2rad(_between(for_rotation, rotation))
    turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    slant = jnp.array([[1.0, 0.0], [jnp.tan(jnp.deg2rad(_between(for_shear, shear))), 1.0]])
    mirror = jnp.array([[1.0, 0.0], [0.0, jnp.where(jax.random.bernoulli(for_flip, flip), -1.0, 1.0)]])
    matrix = jnp.linalg.multi_dot([turn, slant, mirror], precision="highest")  # by default a GPU rounds to 10 bits
    return matrix / (1 + _between(for_scale, scale)), _between(for_shift, shift, (2,))
