"""Resampling between the slices of a volume and the square images of a network. No other module resamples grids."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy.sparse import csr_array

from brainseg_jax.errors import InputError

VIEWS = {"axial": 0, "coronal": 1, "sagittal": 2}  # the axis of [S, H, W] along which slices are taken
ALL_VIEWS = "all"
SLACK = 1e-2  # tolerance in pixels when a slice must fit an image; spacings are rounded to float32
MAX_SIDE = 4096  # pixels; a larger image is the result of a wrong spacing


@dataclass(frozen=True)
class Canvas:
    """A zero-padded square with a slice at its center, and the resampling of that square to the network's image.

    The square has equal sides in millimeters, so that the network always sees heads with true proportions.

    Attributes:
      size: height and width of the slices, in pixels.
      padded: height and width of the square, in pixels of the slices. They differ where the pixels are not square.
      side: height and width of the network's images, in pixels of these images.
      axis: the axis of [S, H, W] along which slices are taken, see `VIEWS`.
    """

    size: tuple[int, int]
    padded: tuple[int, int]
    side: int
    axis: int = 0

    @classmethod
    def of_views(cls, view: str, shape: tuple[int, int, int], **options: Any) -> "tuple[Canvas, ...]":
        """One canvas per view: a single one, or one for each of `VIEWS` if `view` is "all". See `around`."""
        views = tuple(VIEWS) if view == ALL_VIEWS else (view,)
        return tuple(cls.around(shape, view=one, **options) for one in views)

    @classmethod
    def around(
        cls,
        shape: tuple[int, int, int],
        spacing: tuple[float, float, float] | None,
        *,
        image_size: int,
        pixel_spacing: float = 0.0,
        view: str = "axial",
        multiple: int = 1,
    ) -> "Canvas":
        """The canvas of a volume.

        Args:
          shape: (S, H, W) of the volume.
          spacing: in millimeters along the same axes; None: voxels are cubes of 1 mm.
          image_size: height and width of the network's images, in pixels.
          pixel_spacing: millimeters of a pixel of the network's images. 0: the slice is scaled to fill the image.
          view: a key of `VIEWS`.
          multiple: a slice that does not fit enlarges the image to the next multiple of this many pixels.

        Raises:
          InputError: the image would be larger than `MAX_SIDE`; the message does not name a file.
        """
        axis = VIEWS[view]
        height, width = (length for index, length in enumerate(shape) if index != axis)
        row, column = (length for index, length in enumerate(spacing or (1.0, 1.0, 1.0)) if index != axis)
        side = image_size
        if pixel_spacing:
            needed = math.ceil(max(height * row, width * column) / pixel_spacing - SLACK)
            if needed > side:
                side = -(-needed // multiple) * multiple
            extent = side * pixel_spacing
        else:
            extent = max(height * row, width * column)
        padded = (max(height, round(extent / row)), max(width, round(extent / column)))
        if max(side, *padded) > MAX_SIDE:
            where = f"at {pixel_spacing:g} mm a pixel" if pixel_spacing else "as squares in millimeters"
            raise InputError(
                f"slices of {height} x {width} pixels of {row:.4g} x {column:.4g} mm would become images of "
                f"{max(side, *padded)} pixels a side {where}; the maximum is {MAX_SIDE}. Correct the spacing "
                "in the header"
            )
        return cls((height, width), padded, side, axis)

    def to_network(self, voxels: np.ndarray) -> np.ndarray:
        """Converts a volume [S, H, W, C] uint8 to network images [n, side, side, C]; n: slices of the view."""
        return resize_images(self._padded(voxels), self.side)

    def masks_to_network(self, masks: np.ndarray) -> np.ndarray:
        """Converts masks [S, H, W, K] bool of the volume to [n, side, side, K] bool, see `resize_masks`."""
        padded = self._padded(masks)
        return np.stack([resize_masks(padded[..., k], self.side) for k in range(padded.shape[-1])], axis=-1)

    def from_network(self, maps: np.ndarray) -> np.ndarray:
        """Converts [n, side, side, K] float32 to [S, H, W, K] of the volume: bilinear, half-pixel centers."""
        rows, columns = self.padded
        top, left = self._corner
        result = np.empty((len(maps), *self.size, maps.shape[-1]), np.float32)
        for target, image in zip(result, maps, strict=True):
            for k in range(maps.shape[-1]):
                plane = np.ascontiguousarray(image[..., k])
                if plane.shape != self.padded:
                    plane = np.asarray(Image.fromarray(plane).resize((columns, rows), Image.Resampling.BILINEAR))
                target[..., k] = plane[top : top + self.size[0], left : left + self.size[1]]
        return np.moveaxis(result, 0, self.axis)

    def _padded(self, volume: np.ndarray) -> np.ndarray:
        slices = np.moveaxis(volume, self.axis, 0)
        if self.size == self.padded:
            return slices
        top, left = self._corner
        (height, width), (rows, columns) = self.size, self.padded
        return np.pad(slices, ((0, 0), (top, rows - height - top), (left, columns - width - left), (0, 0)))

    @property
    def _corner(self) -> tuple[int, int]:
        return (self.padded[0] - self.size[0]) // 2, (self.padded[1] - self.size[1]) // 2


def with_neighbors(images: np.ndarray, context: int) -> np.ndarray:
    """Appends the neighboring slices of each slice as further channels.

    Args:
      images: [n, side, side, C], consecutive slices of one volume.
      context: number of neighbors on each side. At both ends the first or last slice is repeated.

    Returns:
      [n, side, side, (2 * context + 1) * C], slice after slice.
    """
    if not context:
        return images
    offsets = range(-context, context + 1)
    index = np.arange(len(images))
    return np.concatenate([images[(index + offset).clip(0, len(images) - 1)] for offset in offsets], axis=-1)


def resize_images(images: np.ndarray, side: int) -> np.ndarray:
    """Resizes slices with Pillow's BILINEAR filter.

    The filter is a triangle, two output pixels wide for downsampling and two input pixels wide for upsampling. Pixel
    centers are at half-integers.

    Args:
      images: [n, H, W, C] uint8.
      side: height and width of the result.

    Returns:
      [n, side, side, C] uint8.
    """
    if images.shape[1:3] == (side, side):
        return images
    resized = np.empty((len(images), side, side, images.shape[-1]), np.uint8)
    for target, image in zip(resized, images, strict=True):
        for c in range(images.shape[-1]):
            plane = Image.fromarray(np.ascontiguousarray(image[..., c]))
            target[..., c] = np.asarray(plane.resize((side, side), Image.Resampling.BILINEAR))
    return resized


def resize_masks(masks: np.ndarray, side: int) -> np.ndarray:
    """Resizes masks. An output pixel is set if the mask covers at least half of its area.

    Args:
      masks: [n, H, W] bool.
      side: height and width of the result.

    Returns:
      [n, side, side] bool.
    """
    if masks.shape[1:] == (side, side):
        return masks.astype(bool)
    rows, columns = (_shares(length, side) for length in masks.shape[1:])
    resized = np.zeros((len(masks), side, side), bool)
    for index in np.flatnonzero(masks.any(axis=(1, 2))):
        covered = (columns @ (rows @ masks[index]).T).T
        resized[index] = covered >= 0.5 - 1e-9  # the tolerance keeps pixels covered by exactly half
    return resized


def _shares(length: int, side: int) -> csr_array:
    """Fraction of each output pixel that each input pixel covers, [side, length]."""
    edges = np.arange(side + 1) * (length / side)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return csr_array(overlap.clip(0) * (side / length))
