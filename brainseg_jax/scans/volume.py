"""The volume that all parts of this package exchange."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
    """A scan of one head as input of the networks, with or without reference labels.

    Attributes:
      voxels: [S, H, W, C] uint8, axial slices from foot to crown if the files store the orientation; the channels are
        those of a `Description`.
      spacing: mm between voxels (slice, row, column); None if the files do not store it.
      numbers: of the slices, as the files count them.
      labels: [S, H, W] uint8, the reference label map; None if there is none.
    """

    voxels: np.ndarray
    spacing: tuple[float, float, float] | None
    numbers: tuple[int, ...]
    labels: np.ndarray | None = dataclasses.field(default=None, kw_only=True)
