"""How a volume lies in the patient: from its own axes to the axial slices that the networks know, and back."""

import dataclasses
from pathlib import Path

import nibabel as nib
import numpy as np

from brainseg_jax.errors import InputError

# Axial slices from foot to crown; in each the nose is up and the patient's left is on the right, as in the TIFFs of the
# Kaggle set and on a radiologist's screen. In nibabel's words: axes to the Left, to the back (Posterior), to the crown
# (Superior); a slice is [row, column] = [P, L].
_SLICES = nib.orientations.axcodes2ornt("LPS")


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """The voxels of a volume and where they lie.

    Attributes:
      affine: [4, 4], from voxel indices (i, j, k) to millimeters to the Right, Anterior, Superior, as in NIfTI.
      shape: (I, J, K), in voxels.
    """

    affine: np.ndarray
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        """Raises InputError where the affine places no volume in space."""
        if not np.isfinite(self.affine).all() or abs(np.linalg.det(self.affine[:3, :3])) < 1e-9:
            raise InputError("its affine is singular, so the directions of its axes are unknown; mend the header")

    @property
    def _to_slices(self) -> np.ndarray:
        return nib.orientations.ornt_transform(nib.orientations.io_orientation(self.affine), _SLICES)

    def to_slices(self, volume: np.ndarray) -> np.ndarray:
        """Maps [I, J, K, ...] to axial slices [S, H, W, ...]; nothing is interpolated, an oblique scan stays so."""
        turned = nib.orientations.apply_orientation(volume, self._to_slices)
        return np.moveaxis(turned, (2, 1, 0), (0, 1, 2))

    def from_slices(self, slices: np.ndarray) -> np.ndarray:
        """The inverse of `to_slices`: [S, H, W] to [I, J, K]."""
        back = nib.orientations.ornt_transform(_SLICES, nib.orientations.io_orientation(self.affine))
        return nib.orientations.apply_orientation(slices.transpose(2, 1, 0), back)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimeters between centers of voxels: (slice, row, column) of the axial slices."""
        sizes = nib.affines.voxel_sizes(self.affine)
        axis_of = np.argsort(self._to_slices[:, 0])  # which own axis goes to the left, to the back, to the crown
        left, back, crown = (float(sizes[axis]) for axis in axis_of)
        return crown, back, left

    @property
    def slice_axis(self) -> int:
        """Which of the volume's own axes runs from foot to crown."""
        return int(np.argsort(self._to_slices[:, 0])[2])

    @property
    def slice_numbers(self) -> tuple[int, ...]:
        """Index of each axial slice on the volume's own axis, from 0."""
        numbers = range(self.shape[self.slice_axis])
        return tuple(numbers if self._to_slices[self.slice_axis, 1] > 0 else reversed(numbers))

    def check_same(self, other: "Grid", path: Path, own_path: Path) -> None:
        """Raises InputError where `other`, of the file or folder `path`, is not this grid, of `own_path`."""
        if other.shape != self.shape or not np.allclose(other.affine, self.affine, atol=1e-3):
            raise InputError(
                f"{path}: its grid (shape {other.shape}) is not that of {own_path.name} (shape {self.shape}), or lies "
                "elsewhere; bring the sequences onto one grid first"
            )
