"""Normalization constants for the channels of each case. Pixels stay uint8 until the jitted step normalizes them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from brainseg_jax.errors import InputError

LEVELS = np.arange(256, dtype=np.float64)  # all pixel values


class Normalization(NamedTuple):
    """Constants for `normalize`, float32 [C] for one case or [P, C] for many: one value per channel."""

    lower: jax.Array | np.ndarray  # pixels are clipped to lower..upper
    upper: jax.Array | np.ndarray
    mean: jax.Array | np.ndarray  # then shifted by the mean
    inverse_std: jax.Array | np.ndarray  # and multiplied by this; 0 where the channel is constant


def volume_zscore(counts: np.ndarray) -> tuple[float, float, float, float]:
    """Clips to the 10th and 99th percentile, then scales to mean 0 and standard deviation 1, all over the volume.

    This is the preprocessing of Buda et al. 2019 (doi.org/10.1016/j.compbiomed.2019.05.002) in the authors' code
    (github.com/mateuszbuda/brain-segmentation-pytorch). The difference: each channel has its own percentiles.

    Args:
      counts: Histogram of the channel over all voxels, [256].
    """
    lower, upper = _percentile(counts, 10), _percentile(counts, 99)
    clipped = LEVELS.clip(lower, upper)
    mean = np.average(clipped, weights=counts)
    std = np.sqrt(np.average((clipped - mean) ** 2, weights=counts))
    return lower, upper, mean, 1 / std if upper > lower else 0.0


def volume_median(counts: np.ndarray) -> tuple[float, float, float, float]:
    """Scales relative to the head tissue: 0 at the median of the head voxels, -1 in air. Clips at the 99th percentile.

    The fraction of fat and scalp differs between scans. It shifts the mean, the standard deviation and high
    percentiles, so these put the brain at a different level in each patient. The median voxel of the head is brain. The
    head is all voxels brighter than a fifth of the 99th percentile. WhiteStripe also divides by the level of one tissue
    (Shinohara et al. 2014, doi.org/10.1016/j.nicl.2014.08.008); this method does not need to segment white matter.

    Args:
      counts: Histogram of the channel over all voxels, [256].
    """
    upper = _percentile(counts, 99)
    if upper == 0:
        return 0.0, 0.0, 0.0, 0.0
    median = _percentile(np.where(head_level(counts) < LEVELS, counts, 0), 50)
    return 0.0, upper, median, 1 / median


def head_level(counts: np.ndarray) -> float:
    """Threshold of the head: a fifth of the 99th percentile. `counts` as in `volume_median`."""
    return _percentile(counts, 99) * 0.2


def rescale(counts: np.ndarray) -> tuple[float, float, float, float]:
    """Divides by 255, as the reproduced project does. The histogram is not used."""
    del counts
    return 0.0, 255.0, 0.0, 1 / 255


METHODS: dict[str, Callable[[np.ndarray], tuple[float, float, float, float]]] = {
    "volume_zscore": volume_zscore,
    "volume_median": volume_median,
    "rescale": rescale,
}


def fit(volume: np.ndarray, method: str) -> Normalization:
    """Exact constants of one case, from the histogram of each channel.

    Args:
      volume: All slices of the case, [S, H, W, C] uint8.
      method: A name in `METHODS`.

    Returns:
      Constants, each float32 [C].

    Raises:
      InputError: The method is unknown.
    """
    return fit_histograms(histograms(volume), method)


def histograms(volume: np.ndarray) -> np.ndarray:
    """Number of voxels of each value in each channel, [C, 256] int64; volume [S, H, W, C] uint8."""
    counts = np.zeros((volume.shape[-1], 256), np.int64)
    for image in volume:  # one slice at a time, because bincount needs 8 bytes per pixel
        for channel, row in enumerate(counts):
            row += np.bincount(image[..., channel].ravel(), minlength=256)
    return counts


def fit_histograms(counts: np.ndarray, method: str) -> Normalization:
    """Like `fit`, from the histograms of a volume, [C, 256]."""
    if method not in METHODS:
        raise InputError(f"data.normalization={method!r}: unknown method; give one of {', '.join(METHODS)}")
    return Normalization(*np.array([METHODS[method](of_channel) for of_channel in counts], np.float32).T)


def repeated(constants: Normalization, context: int) -> Normalization:
    """Repeats constants [..., C] for images with neighboring slices as channels, [..., (2 * context + 1) * C]."""
    if not context:
        return constants
    join = jnp.concatenate if isinstance(constants.lower, jax.Array) else np.concatenate
    return Normalization(*(join([value] * (2 * context + 1), axis=-1) for value in constants))


def normalize(images: jax.Array, constants: Normalization) -> jax.Array:
    """Clips and standardizes: (clip(x, lower, upper) - mean) * inverse_std. A constant channel becomes 0.

    Args:
      images: [..., H, W, C], uint8 or float on the scale 0..255.
      constants: Each [..., C], with the same leading axes as `images`.

    Returns:
      [..., H, W, C] float32.
    """
    lower, upper, mean, inverse_std = (jnp.asarray(value)[..., None, None, :] for value in constants)
    return (jnp.clip(images.astype(jnp.float32), lower, upper) - mean) * inverse_std


def _percentile(counts: np.ndarray, percent: float) -> float:
    """The percentile of the pixels of a histogram, with linear interpolation as in numpy."""
    cumulative = np.cumsum(counts)
    rank = percent / 100 * (cumulative[-1] - 1)
    below, above = np.searchsorted(cumulative, [np.floor(rank), np.ceil(rank)], side="right")
    return float(below + (above - below) * (rank - np.floor(rank)))
