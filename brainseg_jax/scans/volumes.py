"""Scans in NIfTI files: one file with three channels, one with FLAIR alone, or one file per sequence."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.files import write_whole
from brainseg_jax.scans.description import Description
from brainseg_jax.scans.grid import Grid
from brainseg_jax.scans.nifti_file import SINGLE, Nifti, open_nifti
from brainseg_jax.scans.nifti_result import result_image
from brainseg_jax.scans.scan import Scan, Source
from brainseg_jax.scans.sequences import ALL, CHANNELS, FLAIR, to_channels


@dataclasses.dataclass(frozen=True, eq=False)
class VolumeScan(Scan):
    """A scan read from NIfTI.

    Attributes:
      header: of the file with FLAIR, which defines the grid.
      grid: of that file.
    """

    header: nib.Nifti1Header
    grid: Grid

    def write(
        self,
        kind: str,
        values: np.ndarray,
        paths: list[Path],
        description: Description,
        words: Sequence[str] = (),
    ) -> None:
        """See `Scan.write`: keeps the header of the input, with its affine and unit; see `result_image`."""
        (path,) = paths
        write_whole(path, partial(nib.save, result_image(kind, values, description, self.grid, self.header)))


@dataclasses.dataclass(frozen=True)
class VolumeSource(Source):
    """NIfTI files of one case.

    Attributes:
      files: files by sequence, or a single one at `ALL`.
      suffix: of the files; the results of a pair are .nii.gz.
    """

    files: Mapping[str, tuple[Path, ...]]
    suffix: str

    @property
    def paths(self) -> tuple[Path, ...]:
        """See `Source.paths`."""
        return tuple(path for files in self.files.values() for path in files)

    def read(self) -> VolumeScan:
        """See `Source.read`; reorders the axes of other sequences to the grid of FLAIR."""
        notes = list(self.notes)
        if ALL in self.files:
            (path,) = self.files[ALL]
            nifti = open_nifti(path)
            volumes = _by_sequence(path, nifti.values)
        else:
            (path,) = self.files[FLAIR]
            nifti = _open_sequence(path)
            volumes = {FLAIR: nifti.values}
            for sequence in [name for name in CHANNELS if name in self.files and name != FLAIR]:
                other_path = self.files[sequence][0]
                other = _open_sequence(other_path)
                try:
                    volumes[sequence] = other.grid.turned_onto(nifti.grid, other.values)
                except InputError as error:
                    raise InputError(
                        f"{other_path}: its grid is not that of {path.name}: {error}; resample it onto that grid"
                    ) from None
        voxels, value_notes = to_channels(nifti.grid, volumes, path)
        notes += [*nifti.notes, *value_notes]
        return VolumeScan(voxels, nifti.grid.spacing, nifti.grid.slice_numbers, tuple(notes), nifti.header, nifti.grid)

    def outputs(self, kind: str, description: Description) -> list[Path]:
        """See `Source.outputs`: one volume."""
        return [self.folder / f"{self.stem}_{kind}{result_suffix(self.suffix)}"]


def result_suffix(suffix: str) -> str:
    """The suffix of a result, by that of its scan: in lower case, as nibabel requires; `.nii.gz` for a pair."""
    return suffix.lower() if suffix.lower() in SINGLE else ".nii.gz"


def _by_sequence(path: Path, values: np.ndarray) -> dict[str, np.ndarray]:
    """The sequences in a file of FLAIR alone, or of all three along a fourth axis."""
    if values.ndim == 3:
        return {FLAIR: values}
    if values.ndim == 4 and values.shape[3] == len(CHANNELS):
        return {sequence: values[..., channel] for channel, sequence in enumerate(CHANNELS)}
    raise InputError(
        f"{path}: an array of shape {values.shape}; give three axes (FLAIR), or a fourth of {len(CHANNELS)} channels "
        f"({', '.join(CHANNELS)})"
    )


def _open_sequence(path: Path) -> Nifti:
    nifti = open_nifti(path)
    if nifti.values.ndim != 3:
        raise InputError(f"{path}: an array of shape {nifti.values.shape}; give three axes for a file of one sequence")
    return nifti
