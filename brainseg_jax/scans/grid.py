"""Orientation of a volume in the patient: from its axes to the axial slices of the networks, and back."""

import dataclasses
import itertools
from collections.abc import Iterable

import nibabel as nib
import numpy as np

from brainseg_jax.errors import InputError

# Axial slices run from foot to crown. The nose is up and the patient's left is on the right, as in the TIFFs of the
# Kaggle set and on a radiologist's screen. In the axis codes of nibabel: Left, Posterior, Superior; a slice is
# [row, column] = [P, L].
_SLICES = nib.orientations.axcodes2ornt("LPS")
_SAME = 0.1  # tolerance in voxels along each axis, within which two voxels coincide
_MOST_WIDER = 4096  # maximum number of slices that `widened` adds


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """The positions of the voxels of a volume.

    Attributes:
      affine: [4, 4], from voxel indices (i, j, k) to mm along Right, Anterior, Superior, as in NIfTI.
      shape: (I, J, K), in voxels.
    """

    affine: np.ndarray
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        """Raises InputError if the affine is singular or not finite."""
        with np.errstate(all="ignore"):
            axes = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)  # scale-free, for any unit
            valid = np.isfinite(self.affine).all() and np.isfinite(axes).all() and abs(np.linalg.det(axes)) > 1e-4
        if not valid or np.isnan(nib.orientations.io_orientation(self.affine)).any():
            raise InputError("its affine is singular, so the directions of its axes are unknown; fix the header")

    @property
    def _to_slices(self) -> np.ndarray:
        return nib.orientations.ornt_transform(nib.orientations.io_orientation(self.affine), _SLICES)

    def to_slices(self, volume: np.ndarray) -> np.ndarray:
        """Maps [I, J, K, ...] to axial slices [S, H, W, ...] without interpolation; oblique scans stay oblique."""
        turned = nib.orientations.apply_orientation(volume, self._to_slices)
        return np.moveaxis(turned, (2, 1, 0), (0, 1, 2))

    def from_slices(self, slices: np.ndarray) -> np.ndarray:
        """The inverse of `to_slices`: [S, H, W, ...] to [I, J, K, ...]."""
        back = nib.orientations.ornt_transform(_SLICES, nib.orientations.io_orientation(self.affine))
        return nib.orientations.apply_orientation(np.moveaxis(slices, (0, 1, 2), (2, 1, 0)), back)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Spacing of the axial slices in mm: between slices, rows and columns.

        These are distances between planes and lines, so their product is the volume of a voxel. This holds even for a
        sheared affine, as of a tilted gantry. Without shear they are the distances between voxel centers.
        """
        axis_of = np.argsort(self._to_slices[:, 0])  # the volume axes that run to the left, the back and the crown
        left, back, crown = self.affine[:3, axis_of].T
        across = np.cross(left, back)
        column, area = float(np.linalg.norm(left)), float(np.linalg.norm(across))
        return float(abs(across @ crown)) / area, area / column, column

    @property
    def extent(self) -> float:
        """Length of the longest axis in mm."""
        return float(np.max(nib.affines.voxel_sizes(self.affine) * self.shape))

    @property
    def slice_axis(self) -> int:
        """The axis of the volume that runs from foot to crown, or the reverse."""
        return int(np.argsort(self._to_slices[:, 0])[2])

    @property
    def slice_numbers(self) -> tuple[int, ...]:
        """Index of each axial slice along `slice_axis` of the volume, from 0."""
        numbers = range(self.shape[self.slice_axis])
        return tuple(numbers if self._to_slices[self.slice_axis, 1] > 0 else reversed(numbers))

    def turned_onto(self, other: "Grid", values: np.ndarray) -> np.ndarray:
        """Reorders values to a grid of the same voxels with other axis order or directions, without interpolation.

        Args:
          other: its voxels coincide with those of this grid, within a tenth of a voxel along each axis.
          values: [I, J, K, ...] on this grid.

        Returns:
          the values on `other`.

        Raises:
          InputError: the voxels do not coincide. The message describes both grids and their differences, but does not
            name a file.
        """
        turn, turned = self._turned_towards(other)
        if turned.shape != other.shape or other._voxels_apart(turned) > _SAME:
            raise InputError(f"{self}, against {other}: {self.differences(other)}")
        return nib.orientations.apply_orientation(values, turn)

    def differences(self, other: "Grid") -> str:
        """Describes how two grids differ, apart from order and direction of their axes."""
        _, turned = self._turned_towards(other)
        words = (
            [f"{_product(self.shape)} voxels against {_product(other.shape)}"] if turned.shape != other.shape else []
        )
        sizes, sizes_of_other = (nib.affines.voxel_sizes(grid.affine) for grid in (turned, other))
        if not np.allclose(sizes, sizes_of_other, rtol=1e-3):
            words.append(f"voxels of {_product(sizes)} mm against {_product(sizes_of_other)}")
        cosines = ((turned.affine[:3, :3] / sizes) * (other.affine[:3, :3] / sizes_of_other)).sum(axis=0)
        if (angle := float(np.degrees(np.arccos(cosines.clip(-1, 1)).max()))) > 0.05:
            words.append(f"axes {angle:.1f} degrees apart")
        if turned.shape == other.shape:
            right, front, up = shift = turned._center - other._center
            if (distance := float(np.linalg.norm(shift))) > _SAME * min(other.spacing):
                words.append(f"centers {distance:.4g} mm apart (right {right:.4g}, front {front:.4g}, up {up:.4g})")
            words.append(f"voxels up to {turned._farthest(other):.4g} mm apart")
        return ", ".join(words)

    def widened(self, other: "Grid") -> tuple["Grid", int, int]:
        """Adds slices along the third axis until this grid spans another one.

        Args:
          other: the grid to span. If this grid has a single slice, `other` also gives the slice distance.

        Returns:
          the wider grid, and how many slices were added before and after; this grid and 0, 0 if more than
          `_MOST_WIDER` are needed.
        """
        affine = self.affine.copy()
        if self.shape[2] == 1:
            directions = other.affine[:3, :3] / nib.affines.voxel_sizes(other.affine)
            along = directions.T @ (affine[:3, 2] / np.linalg.norm(affine[:3, 2]))
            nearest = int(np.argmax(np.abs(along)))
            affine[:3, 2] = np.sign(along[nearest]) * other.affine[:3, nearest]
        indices = nib.affines.apply_affine(np.linalg.inv(affine) @ other.affine, other._corners)[:, 2].round()
        before, after = int(max(0, -indices.min())), int(max(0, indices.max() - self.shape[2] + 1))
        if before + after > _MOST_WIDER:
            return self, 0, 0
        affine[:3, 3] -= before * affine[:3, 2]
        return Grid(affine, (*self.shape[:2], self.shape[2] + before + after)), before, after

    def __str__(self) -> str:
        """Shape, spacing, directions and origin."""
        sizes = nib.affines.voxel_sizes(self.affine)
        origin = ", ".join(f"{coordinate:.4g}" for coordinate in self.affine[:3, 3])
        codes = "".join(nib.aff2axcodes(self.affine))
        return f"{_product(self.shape)} voxels of {_product(sizes)} mm, axes {codes}, first voxel at ({origin}) mm"

    def _turned_towards(self, other: "Grid") -> tuple[np.ndarray, "Grid"]:
        """The axis reordering (nibabel orientation) that best aligns this grid with the other, and the result."""
        turn = nib.orientations.io_orientation(np.linalg.inv(other.affine) @ self.affine)
        if np.isnan(turn).any():  # an axis of this grid matches none of the other
            turn = np.array([[0, 1], [1, 1], [2, 1]])
        i, j, k = (int(length) for length in np.array(self.shape)[np.argsort(turn[:, 0])])
        affine = self.affine @ nib.orientations.inv_ornt_aff(turn, self.shape)
        return turn, Grid(affine, (i, j, k))

    @property
    def _center(self) -> np.ndarray:
        return nib.affines.apply_affine(self.affine, (np.array(self.shape) - 1) / 2)

    @property
    def _corners(self) -> np.ndarray:
        return np.array(list(itertools.product((0, 1), repeat=3))) * (np.array(self.shape) - 1)

    def _voxels_apart(self, other: "Grid") -> float:
        """The maximum offset along one axis between corresponding voxels of two grids of one shape, in voxels."""
        corners = nib.affines.apply_affine(np.linalg.inv(self.affine) @ other.affine, self._corners)
        return float(np.abs(corners - self._corners).max())

    def _farthest(self, other: "Grid") -> float:
        """The maximum distance between corresponding voxels of two grids of one shape, in mm; corners attain it."""
        corners = [nib.affines.apply_affine(grid.affine, self._corners) for grid in (self, other)]
        return float(np.linalg.norm(corners[0] - corners[1], axis=1).max())


def _product(numbers: Iterable[float]) -> str:
    return " x ".join(f"{number:.6g}" for number in numbers)
