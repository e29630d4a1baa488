"""From slices of any size to the square ones of a network, and back."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from brainseg_jax.data.cohort import resize_images


@dataclass(frozen=True)
class Canvas:
    """A black square, in millimeters, with the slices in its middle: a network knows heads of true proportions only.

    Attributes:
      size: height and width of the slices, in pixels.
      padded: the same of the canvas, in pixels of the slices; they differ where a pixel is no square.
    """

    size: tuple[int, int]
    padded: tuple[int, int]

    @classmethod
    def around(cls, size: tuple[int, int], spacing: tuple[float, float, float] | None) -> "Canvas":
        """The least canvas around slices of `size`; pixels are squares where no `spacing` is known."""
        _, row, column = spacing or (1.0, 1.0, 1.0)
        side = max(size[0] * row, size[1] * column)
        return cls(size, (max(size[0], round(side / row)), max(size[1], round(side / column))))

    def to_network(self, voxels: np.ndarray, side: int) -> np.ndarray:
        """[S, H, W, 3] uint8 to [S, side, side, 3]; a 256-pixel slice becomes what it is in a `Cohort`."""
        top, left = self._corner
        (height, width), (rows, columns) = self.size, self.padded
        around = ((0, 0), (top, rows - height - top), (left, columns - width - left), (0, 0))
        return resize_images(np.pad(voxels, around) if self.size != self.padded else voxels, side)

    def from_network(self, maps: np.ndarray) -> np.ndarray:
        """[S, side, side] float32 to [S, H, W], bilinear, half-pixel centers, as in scoring (`steps.predict`)."""
        rows, columns = self.padded
        top, left = self._corner
        back = np.empty((len(maps), *self.size), np.float32)
        for target, image in zip(back, maps, strict=True):
            if image.shape != self.padded:
                image = np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR))
            target[...] = image[top : top + self.size[0], left : left + self.size[1]]
        return back

    @property
    def _corner(self) -> tuple[int, int]:
        return (self.padded[0] - self.size[0]) // 2, (self.padded[1] - self.size[1]) // 2
