"""What is measured of one channel of a scan to tell whether it is like others: intensities, shape and position."""

import dataclasses
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

SIDE = 64  # pixels of a side of the slices that are measured, cut to the head
MOST_SLICES = 32  # of a scan are measured, evenly spaced
CUBE = 16  # voxels of a side of the reduced head
_HEAD = 0.2  # of the 99th percentile: what is brighter is head, as in `normalization.head_level`
_IN_PLANE = np.ones((1, 3, 3), bool)
_EDGES = (0.5, 1.5, 2.5, 3.5, 4.5, 6.5, 8.5, 11.5, 15.5, 20.5, SIDE)  # depths between rings, pixels of `SIDE`
_SPREAD = (10, 50, 90)  # percentiles of each ring
_QUANTILES = (1, 5, 10, 25, 75, 90, 95, 99)
_BRIGHTEST = 3.0  # times the median; what is brighter does not count
RINGS = (len(_EDGES) - 1) * len(_SPREAD)  # features of the profile
FEATURES = RINGS + len(_QUANTILES) + (CUBE // 2 - 2) ** 3


class Head(NamedTuple):
    """The head of a channel, cut to its bounding box.

    Attributes:
      voxels: [S, SIDE, SIDE] float32, relative to the median of the head: 0 is air.
      inside: which of them are head, holes filled, [S, SIDE, SIDE] bool.
      depth: pixels to the nearest voxel of the slice that is not head, [S, SIDE, SIDE]; 0 outside.
      slices: how many slices of the scan show it.
    """

    voxels: np.ndarray
    inside: np.ndarray
    depth: np.ndarray
    slices: int

    @property
    def radius(self) -> float:
        """Of the largest slice, were it a disk, in pixels."""
        return float(np.sqrt(self.inside.sum(axis=(1, 2)).max() / np.pi))


@dataclasses.dataclass(frozen=True, eq=False)
class Measures:
    """What is compared between scans. Neither matrix size, nor spacing, nor a factor on the intensities changes it.

    Attributes:
      features: [FEATURES] float64, relative to the median of the head: percentiles of rings by their depth below the
        surface (`RINGS` of them), quantiles of the head, and its 6 x 6 x 6 inner cells, each the darker one of left and
        right, so that a tumor on one side hardly counts.
      cube: the bounding box of the head, [CUBE, CUBE, CUBE] float32.
      slices: how many slices show the head.
    """

    features: np.ndarray
    cube: np.ndarray
    slices: int


def find_head(channel: np.ndarray) -> Head | None:
    """Finds the head: the largest connected component that is brighter than a fifth of the 99th percentile.

    Args:
      channel: [S, H, W], uint8 or float32, 0 or more.

    Returns:
      None where there is none.
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
    chosen = slices.start + np.linspace(0, count - 1, min(count, MOST_SLICES)).round().astype(int)
    voxels = _resize(channel[chosen], box)
    head = voxels > level
    if not head.any():
        return None
    inside = _filled(head)
    padded = np.pad(inside, ((0, 0), (1, 1), (1, 1)))
    # Slices are so far apart that the nearest voxel is in the same one.
    depth = ndimage.distance_transform_edt(padded, sampling=(10 * SIDE, 1, 1))[:, 1:-1, 1:-1]
    return Head(voxels / np.median(voxels[head]), inside, depth, count)


def measure(channel: np.ndarray) -> Measures | None:
    """Measures a channel, [S, H, W]; None where no head is found."""
    head = find_head(channel)
    return None if head is None else measure_head(head)


def measure_head(head: Head) -> Measures:
    """Measures a head that was found."""
    cube = head.voxels.clip(0, _BRIGHTEST)
    for axis in range(3):
        cube = _rescaled(cube, axis)
    half = CUBE // 2
    cells = np.minimum(cube, cube[:, :, ::-1]).reshape(half, 2, half, 2, half, 2).mean(axis=(1, 3, 5))[1:-1, 1:-1, 1:-1]
    quantiles = np.percentile(head.voxels[head.inside], _QUANTILES)
    features = np.concatenate([_profile(head), quantiles, cells.ravel()])
    return Measures(features.astype(np.float64), cube.astype(np.float32), head.slices)


def _profile(head: Head) -> np.ndarray:
    """Percentiles of each ring, of the slices from a quarter of the way up to 85 %, where the head is a closed ring."""
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
    """Closes gaps of a few pixels, and fills what no path in the slice connects with its border; [S, H, W] bool."""
    closed = ndimage.binary_closing(np.pad(head, ((0, 0), (3, 3), (3, 3))), _IN_PLANE, iterations=2)
    cross = np.zeros((3, 3, 3), bool)
    cross[1] = ndimage.generate_binary_structure(2, 1)
    outside, _ = ndimage.label(~closed, cross)
    # Each slice has a border of its own, one component as it was padded.
    return (outside != outside[:, :1, :1])[:, 3:-3, 3:-3]


def _resize(channel: np.ndarray, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    """The slices, or a box (left, upper, right, lower) of each, at SIDE pixels: the means of the pixels' areas."""
    resized = np.empty((len(channel), SIDE, SIDE), np.float32)
    for target, image in zip(resized, channel, strict=True):
        picture = Image.fromarray(np.ascontiguousarray(image))
        target[...] = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX, box=box))
    return resized


def _rescaled(volume: np.ndarray, axis: int) -> np.ndarray:
    """CUBE voxels along an axis: means where it has more, else linear interpolation."""
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
        places = ((np.arange(CUBE) + 0.5) * length / CUBE - 0.5).clip(0, length - 1)
        below = np.floor(places).astype(int)
        shares = (places - below)[:, None, None]
        scaled = volume[below] * (1 - shares) + volume[(below + 1).clip(max=length - 1)] * shares
    return np.moveaxis(scaled, 0, axis)
