"""Scans that lie in NIfTI files: one of three channels, one of FLAIR alone, or one a sequence."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.files import write_whole
from brainseg_jax.scans.grid import Grid
from brainseg_jax.scans.nifti_file import open_nifti
from brainseg_jax.scans.scan import MASK, Scan, Source
from brainseg_jax.scans.sequences import ALL, CHANNELS, FLAIR, to_channels


@dataclasses.dataclass(frozen=True, eq=False)
class VolumeScan(Scan):
    """A scan read from NIfTI.

    Attributes:
      image: of the file with FLAIR, for its header.
      grid: of that file.
    """

    image: nib.Nifti1Pair
    grid: Grid

    def write(self, kind: str, values: np.ndarray, paths: list[Path]) -> None:
        """See `Scan.write`: affine and header are the input's; a mask holds 0 and 1."""
        (path,) = paths
        header = self.image.header.copy()
        header["cal_min"] = header["cal_max"] = 0  # the range in which to show the scan, not its mask
        header.set_data_dtype(np.uint8 if kind == MASK else np.float32)
        volume = self.grid.from_slices(values).astype(header.get_data_dtype())
        write_whole(path, partial(nib.save, type(self.image)(volume, self.image.affine, header)))


@dataclasses.dataclass(frozen=True)
class VolumeSource(Source):
    """NIfTI files of one case.

    Attributes:
      found: files by sequence, or one at `ALL`.
      suffix: of the results, .nii or .nii.gz.
    """

    found: Mapping[str, tuple[Path, ...]]
    suffix: str

    def read(self) -> VolumeScan:
        """See `Source.read`."""
        notes = list(self.notes)
        if ALL in self.found:
            (path,) = self.found[ALL]
            image, volumes = _read_one(path)
            grid = _grid(path, image, volumes[FLAIR])
        else:
            (path,) = self.found[FLAIR]
            image, values = open_nifti(path)
            grid, volumes = _grid(path, image, values), {FLAIR: values}
            for sequence in set(self.found) & set(CHANNELS) - {FLAIR}:
                other = self.found[sequence][0]
                image_of_other, volumes[sequence] = open_nifti(other)
                grid.check_same(_grid(other, image_of_other, volumes[sequence]), other, path)
        if not (image.header["sform_code"] or image.header["qform_code"]):
            notes.append(
                "its header does not say how it lies: the axes are taken to run to the left, the front and the crown"
            )
        voxels, of_values = to_channels(grid, volumes, path)
        return VolumeScan(voxels, grid.spacing, grid.slice_numbers, (*notes, *of_values), image, grid)

    def outputs(self, kind: str) -> list[Path]:
        """See `Source.outputs`: one volume."""
        return [self.place / f"{self.stem}_{kind}{self.suffix}"]


def _read_one(path: Path) -> tuple[nib.Nifti1Pair, dict[str, np.ndarray]]:
    """A file of all three sequences along a fourth axis, or of FLAIR."""
    image, values = open_nifti(path)
    if values.ndim == 3:
        return image, {FLAIR: values}
    if values.ndim == 4 and values.shape[3] == 1:
        return image, {FLAIR: values[..., 0]}
    if values.ndim == 4 and values.shape[3] == 3:
        return image, {sequence: values[..., channel] for channel, sequence in enumerate(CHANNELS)}
    raise InputError(
        f"{path}: an array of shape {values.shape}; give three axes (FLAIR), or a fourth of {len(CHANNELS)} channels "
        f"({', '.join(CHANNELS)})"
    )


def _grid(path: Path, image: nib.Nifti1Pair, values: np.ndarray) -> Grid:
    if values.ndim != 3:
        raise InputError(f"{path}: an array of shape {values.shape}; a file of one sequence has three axes")
    try:
        return Grid(image.affine, values.shape)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
