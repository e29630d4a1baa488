"""Random changes of one training example, pure and inside jit; the caller vmaps over the batch.

Every amount is a plain Python float that is fixed when the step is traced: 0 switches its change off exactly and costs
nothing, and with all amounts 0 the output is the input, bit for bit.
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
    """Moves image and target bits by the same random affine map about the center of the image, and crops them.

    There is one resampling, so detail is lost once: bilinear for the image, nearest for the bits, zero outside. Zero is
    air before normalization but not after it, so warp first and normalize then.

    Args:
      key: PRNG key of this example.
      image: [H, W, C] float32.
      mask: [H, W, 1] float32, whole numbers: a mask or `Cohort.target_bits`.
      rotation: Up to this many degrees either way.
      scale: Enlarges or shrinks by a factor in 1 ± `scale`; below 1.
      shift: Moves along each axis by up to this fraction of the width either way.
      shear: Slants the rows by up to this many degrees either way; below 90.
      flip: Probability of mirroring left and right, 0 to 1.
      crop: Height and width of a random window of the moved image, in pixels; 0: the whole image.

    Returns:
      Image [H, W, C] or [crop, crop, C], and mask; the mask has no other values than before, and 0.
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
    """Changes the brightness curve of each channel at random, as another scanner might; then adds noise.

    Args:
      key: PRNG key of this example.
      image: [H, W, C] float32, normalized.
      contrast: Stretches about the channel's mean by a factor in 1 ± `contrast`; below 1.
      gamma: Raises the channel, on the scale where its darkest and brightest pixels are 0 and 1, to the power exp(g)
        with g in ± `gamma`. Its darkest and brightest values stay.
      noise: Adds Gaussian noise; its standard deviation is up to this fraction of the image's own.
      channels: C of a slice, where the image holds neighboring slices as further channels: a channel is changed alike
        in all of them. None: all are channels of one slice.

    Returns:
      [H, W, C] float32; a constant channel stays finite.
    """
    for_contrast, for_gamma, for_level, for_noise = jax.random.split(key, 4)
    channels = channels or image.shape[-1]
    slices = image.shape[-1] // channels

    def one_a_channel(key: jax.Array, amount: float) -> jax.Array:
        return jnp.tile(_between(key, amount, (1, 1, channels)), (1, 1, slices))

    if contrast:
        mean = image.mean(axis=(0, 1), keepdims=True)
        image = mean + (image - mean) * (1 + one_a_channel(for_contrast, contrast))
    if gamma:
        power = jnp.exp(one_a_channel(for_gamma, gamma))
        low = image.min(axis=(0, 1), keepdims=True)
        height = image.max(axis=(0, 1), keepdims=True) - low
        # Fused with what comes before, the darkest pixel can round to just below its own minimum: the logarithm is NaN.
        unit = jnp.maximum((image - low) / jnp.where(height > 0, height, 1.0), 0.0)
        image = low + height * jnp.exp(power * jnp.log(unit))  # unit ** power, five times as fast on a CPU
    if noise:
        level = jax.random.uniform(for_level, maxval=noise) * image.std()
        image = image + level * _normal(for_noise, image.shape)
    return image


def replace_channels(key: jax.Array, image: jax.Array, *, description: Description, probability: float) -> jax.Array:
    """Puts the channel that stands in for missing ones in the place of others, as a cohort does where one is missing.

    Of the 110 LGG patients 6 have no pre-contrast and 9 no post-contrast sequence, and FLAIR replaces them (the
    dataset's README): too few to learn it from.

    Args:
      key: PRNG key of this example.
      image: [H, W, C] float32, normalized, or with neighboring slices as further channels.
      description: says which channel stands in for the others; without one nothing changes.
      probability: of a change, 0 to 1; each choice of one or more of the other channels is equally likely.

    Returns:
      [H, W, C] float32.
    """
    others = [i for i, name in enumerate(description.channels) if name != description.stand_in]
    if not probability or not description.stand_in or not others:
        return image
    for_change, for_which = jax.random.split(key)
    # All choices of one or more, the single ones first: of two others the first, the second, both.
    choices = [set(c) for size in range(1, len(others) + 1) for c in itertools.combinations(others, size)]
    channels = len(description.channels)
    slices = image.shape[-1] // channels  # of which neighboring ones are further channels
    table = jnp.array([[channel in choice for channel in range(channels)] for choice in choices])
    which = jax.random.randint(for_which, (), 0, len(choices))
    replaced = table[which] & jax.random.bernoulli(for_change, probability)
    blocks = image.reshape(*image.shape[:2], slices, channels)
    shown = blocks[..., description.shown : description.shown + 1]
    return jnp.where(replaced[None, None, None, :], shown, blocks).reshape(image.shape)


def _between(key: jax.Array, amount: float, shape: tuple[int, ...] = ()) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-amount, maxval=amount)


def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal numbers: quantiles of 65 536 equally probable levels, so below 4.2.

    Two come of 32 random bits, whose making takes most of the time on a CPU; `jax.random.normal` makes 64 for each.
    """
    count = math.prod(shape)
    bits = jax.random.bits(key, (-(-count // 2),), jnp.uint32)
    levels = lax.bitcast_convert_type(bits, jnp.uint16).reshape(-1)[:count].reshape(shape)
    return math.sqrt(2.0) * lax.erf_inv((levels.astype(jnp.float32) + 0.5) / 2**15 - 1.0)


def _affine(
    key: jax.Array, *, rotation: float, scale: float, shift: float, shear: float, flip: float
) -> tuple[jax.Array, jax.Array]:
    """Map from output to input (row, column) about the center: matrix [2, 2] and offset [2], in pixels."""
    for_rotation, for_scale, for_shift, for_shear, for_flip = jax.random.split(key, 5)
    angle = jnp.deg2rad(_between(for_rotation, rotation))
    turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    slant = jnp.array([[1.0, 0.0], [jnp.tan(jnp.deg2rad(_between(for_shear, shear))), 1.0]])
    mirror = jnp.array([[1.0, 0.0], [0.0, jnp.where(jax.random.bernoulli(for_flip, flip), -1.0, 1.0)]])
    matrix = jnp.linalg.multi_dot([turn, slant, mirror], precision="highest")  # a GPU would round to 10 bits
    return matrix / (1 + _between(for_scale, scale)), _between(for_shift, shift, (2,))
