"""What a scan is everywhere in this package."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
    """A scan of one head as the networks take it, with or without its reference labels.

    Attributes:
      voxels: [S, H, W, C] uint8, axial slices from foot to crown where the files say how they lie; the channels are
        those of a `Description`.
      spacing: millimeters between voxels (slice, row, column); None where the files do not say.
      numbers: of the slices, as the files count them.
      labels: [S, H, W] uint8, the reference label map; None where there is none.
    """

    voxels: np.ndarray
    spacing: tuple[float, float, float] | None
    numbers: tuple[int, ...]
    labels: np.ndarray | None = dataclasses.field(default=None, kw_only=True)
