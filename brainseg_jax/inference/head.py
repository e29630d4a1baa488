"""Measures one channel of a scan for comparison with other scans: intensities, shape and position of the head."""

import dataclasses
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

SIDE = 64  # side of the measured slices in pixels, after the crop to the head
MAX_SLICES = 32  # measured slices of a scan, evenly spaced
CUBE = 16  # side of the reduced head in voxels
_HEAD = 0.2  # fraction of the 99th percentile; brighter voxels are head, as in `normalization.head_level`
_IN_PLANE = np.ones((1, 3, 3), bool)
_EDGES = (0.5, 1.5, 2.5, 3.5, 4.5, 6.5, 8.5, 11.5, 15.5, 20.5, SIDE)  # ring borders: depth in pixels
_SPREAD = (10, 50, 90)  # percentiles in each ring
_QUANTILES = (1, 5, 10, 25, 75, 90, 95, 99)
_MAX_BRIGHTNESS = 3.0  # in units of the median; brighter voxels are clipped
RINGS = (len(_EDGES) - 1) * len(_SPREAD)  # features of the profile
FEATURES = RINGS + len(_QUANTILES) + (CUBE // 2 - 2) ** 3


class Head(NamedTuple):
    """The head in one channel, cropped to its bounding box.

    Attributes:
      voxels: [S, SIDE, SIDE] float32, relative to the median of the head; air is 0.
      inside: [S, SIDE, SIDE] bool, the head with holes filled.
      depth: [S, SIDE, SIDE], distance in pixels to the nearest voxel outside of the head in the slice; 0 outside.
      slices: number of slices of the scan that show the head.
    """

    voxels: np.ndarray
    inside: np.ndarray
    depth: np.ndarray
    slices: int

    @property
    def radius(self) -> float:
        """Radius of a disk with the area of the largest slice, in pixels."""
        return float(np.sqrt(self.inside.sum(axis=(1, 2)).max() / np.pi))


@dataclasses.dataclass(frozen=True, eq=False)
class Measures:
    """Measures for comparison of scans. They do not depend on matrix size, spacing, or a factor on the intensities.

    Attributes:
      features: [FEATURES] float64, relative to the median of the head: percentiles of rings by their depth below the
        surface (the first `RINGS`), quantiles of the head, and its 6 x 6 x 6 inner cells. Each cell is the darker one
        of left and right, so a tumor on one side has little influence.
      cube: [CUBE, CUBE, CUBE] float32, the bounding box of the head.
      slices: number of slices that show the head.
    """

    features: np.ndarray
    cube: np.ndarray
    slices: int


def find_head(channel: np.ndarray) -> Head | None:
    """Finds the head: the largest connected component brighter than a fifth of the 99th percentile.

    Args:
      channel: [S, H, W], uint8 or float32, >= 0.

    Returns:
      None if there is no head.
    """
    small = _resize(channel)
    level = _HEAD * np.percentile(small, 99)
    components, count = ndimage.label(ndimage.binary_opening(small > level, _IN_PLANE))
    if not count:
        return None
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    slices, rows, columns = ndimage.find_objects(components)[sizes.argmax() - 1]
    height, width = (length / SIDE for length in channel.shape[1:])
    box = (columns.start * width, rows.start * height, columns.stop * width, rows.stop * height)
    count = slices.stop - slices.start
    chosen = slices.start + np.linspace(0, count - 1, min(count, MAX_SLICES)).round().astype(int)
    voxels = _resize(channel[chosen], box)
    head = voxels > level
    if not head.any():
        return None
    inside = _filled(head)
    padded = np.pad(inside, ((0, 0), (1, 1), (1, 1)))
    # The large slice distance keeps the nearest voxel in the same slice.
    depth = ndimage.distance_transform_edt(padded, sampling=(10 * SIDE, 1, 1))[:, 1:-1, 1:-1]
    return Head(voxels / np.median(voxels[head]), inside, depth, count)


def measure(channel: np.ndarray) -> Measures | None:
    """Measures a channel, [S, H, W]; None if there is no head."""
    head = find_head(channel)
    return None if head is None else measure_head(head)


def measure_head(head: Head) -> Measures:
    """Measures a head."""
    cube = head.voxels.clip(0, _MAX_BRIGHTNESS)
    for axis in range(3):
        cube = _rescaled(cube, axis)
    half = CUBE // 2
    cells = np.minimum(cube, cube[:, :, ::-1]).reshape(half, 2, half, 2, half, 2).mean(axis=(1, 3, 5))[1:-1, 1:-1, 1:-1]
    quantiles = np.percentile(head.voxels[head.inside], _QUANTILES)
    features = np.concatenate([_profile(head), quantiles, cells.ravel()])
    return Measures(features.astype(np.float64), cube.astype(np.float32), head.slices)


def _profile(head: Head) -> np.ndarray:
    """Returns percentiles of each ring, over slices at 25 % to 85 % of the height; there the head is a closed ring."""
    count = len(head.voxels)
    first = count // 4
    used = slice(first, max(first + 1, round(0.85 * count)))
    values, depth = head.voxels[used].ravel(), head.depth[used].ravel()
    rings = np.digitize(depth, _EDGES)
    profile = np.zeros((len(_EDGES) - 1, len(_SPREAD)))
    for index in range(len(profile)):
        if len(of_ring := values[rings == index + 1]) > 10:
            profile[index] = np.percentile(of_ring, _SPREAD)
    return profile.ravel()


def _filled(head: np.ndarray) -> np.ndarray:
    """Closes gaps of a few pixels and fills holes in each slice; [S, H, W] bool."""
    closed = ndimage.binary_closing(np.pad(head, ((0, 0), (3, 3), (3, 3))), _IN_PLANE, iterations=2)
    cross = np.zeros((3, 3, 3), bool)
    cross[1] = ndimage.generate_binary_structure(2, 1)
    outside, _ = ndimage.label(~closed, cross)
    # The padding makes the border of each slice one component.
    return (outside != outside[:, :1, :1])[:, 3:-3, 3:-3]


def _resize(channel: np.ndarray, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    """Resizes the slices, or a box (left, upper, right, lower) of each, to SIDE pixels by area averaging."""
    resized = np.empty((len(channel), SIDE, SIDE), np.float32)
    for output, image in zip(resized, channel, strict=True):
        picture = Image.fromarray(np.ascontiguousarray(image))
        output[...] = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX, box=box))
    return resized


def _rescaled(volume: np.ndarray, axis: int) -> np.ndarray:
    """Rescales an axis to CUBE voxels: area means if it is longer, otherwise linear interpolation."""
    length = volume.shape[axis]
    volume = np.moveaxis(volume, axis, 0)
    if length >= CUBE:
        edges = np.linspace(0, length, CUBE + 1)
        whole = np.floor(edges).astype(int)
        sums = np.concatenate([np.zeros_like(volume[:1]), np.cumsum(volume, axis=0)])
        shares = (edges - whole)[:, None, None]
        sums = sums[whole] + volume[whole.clip(max=length - 1)] * shares
        scaled = np.diff(sums, axis=0) * (CUBE / length)
    else:
        positions = ((np.arange(CUBE) + 0.5) * length / CUBE - 0.5).clip(0, length - 1)
        below = np.floor(positions).astype(int)
        shares = (positions - below)[:, None, None]
        scaled = volume[below] * (1 - shares) + volume[(below + 1).clip(max=length - 1)] * shares
    return np.moveaxis(scaled, 0, axis)
