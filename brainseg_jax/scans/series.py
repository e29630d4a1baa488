"""Scans that lie in DICOM series; masks become DICOM segmentations (SEG)."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.files import write_whole
from brainseg_jax.scans.description import Description
from brainseg_jax.scans.dicom_file import text
from brainseg_jax.scans.dicom_frames import Frame, decode_frames, read_frames
from brainseg_jax.scans.dicom_pixels import INSTALL
from brainseg_jax.scans.grid import Grid
from brainseg_jax.scans.nifti_result import result_image
from brainseg_jax.scans.scan import MASK, ONE_SLICE, Scan, Source
from brainseg_jax.scans.segmentation import NoSegmentation, header_notes, make_segmentation
from brainseg_jax.scans.sequences import ALL, CHANNELS, FLAIR, to_channels

_SUFFIXES = (".dcm", ".ima", ".dicom")


@dataclasses.dataclass(frozen=True, eq=False)
class SeriesScan(Scan):
    """A scan read from DICOM.

    Attributes:
      frames: of FLAIR, in order along the series; without their pixels.
      grid: of them: columns, rows, slices.
    """

    frames: list[Frame]
    grid: Grid

    def write(
        self,
        kind: str,
        values: np.ndarray,
        paths: list[Path],
        description: Description,
        words: Sequence[str] = (),
    ) -> str | None:
        """See `Scan.write`: masks are a binary SEG with a segment a target, described by `words`, other maps are NIfTI.

        Returns:
          None; where the series' header allows no SEG, a note that says so: the mask is NIfTI then.
        """
        (path,) = paths
        image = result_image(kind, values, description, self.grid)
        if kind != MASK:
            write_whole(path, partial(nib.save, image))
            return None
        instead = path.with_suffix(".nii.gz")
        try:
            masks = np.moveaxis(self.grid.from_slices(values), (0, 1, 2), (2, 1, 0))
            write_whole(path, make_segmentation(self.frames, masks, description, words).save_as)
            instead.unlink(missing_ok=True)  # of an earlier run whose header allowed no SEG
            return None
        except NoSegmentation as error:
            write_whole(instead, partial(nib.save, image))
            path.unlink(missing_ok=True)  # of an earlier run: its mask would be taken for this one
            return f"the mask is NIfTI ({instead.name}), as no DICOM SEG can be made of the series' header: {error}"


@dataclasses.dataclass(frozen=True)
class SeriesSource(Source):
    """The series of one case.

    Attributes:
      files: of one series for each sequence that was found, or of one at `ALL`, which is taken as FLAIR.
    """

    files: Mapping[str, tuple[Path, ...]]

    @property
    def paths(self) -> tuple[Path, ...]:
        """See `Source.paths`."""
        return tuple(path for files in self.files.values() for path in files)

    def read(self) -> SeriesScan:
        """See `Source.read`."""
        files = self.files.get(ALL) or self.files.get(FLAIR)
        if not files:
            raise InputError(f"{self.name}: no FLAIR, and no other sequence can stand in for it")
        folder, notes = files[0].parent, list(self.notes)
        frames, volume, grid = _read_series(files, notes)
        volumes = {FLAIR: volume}
        for sequence in [name for name in CHANNELS if name in self.files and name != FLAIR]:
            own: list[str] = []
            _, other, other_grid = _read_series(self.files[sequence], own)
            notes += [f"{sequence}: {note}" for note in own]
            try:
                volumes[sequence] = other_grid.turned_onto(grid, other)
            except InputError as error:
                where = self.files[sequence][0].parent
                raise InputError(
                    f"{where}: its grid is not that of {folder.name}: {error}; resample it onto that grid"
                ) from None
        notes += _notes_on(frames)
        voxels, of_values = to_channels(grid, volumes, folder)
        numbers = grid.slice_numbers
        if grid.slice_axis == 2:  # else the slices are cut across the series, and have no number there
            of_frames = _frame_numbers(frames, notes)
            numbers = tuple(of_frames[place] for place in numbers)
        return SeriesScan(voxels, grid.spacing, numbers, (*notes, *of_values), frames, grid)

    def outputs(self, kind: str, description: Description) -> list[Path]:
        """See `Source.outputs`: one file."""
        return [self.place / f"{self.stem}_{kind}{'.dcm' if kind == MASK else '.nii.gz'}"]


def is_dicom(path: Path) -> bool:
    """Whether the name, or else the mark that begins a DICOM file, says so; a directory of a disc is no scan.

    Raises:
      OSError: neither does, as the file cannot be read.
    """
    if path.name == "DICOMDIR":
        return False
    if path.suffix.lower() in _SUFFIXES:
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def check_packages() -> None:
    """Raises InputError where the packages that read and write DICOM are not installed."""
    try:
        import highdicom  # noqa: F401
        import pydicom  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"DICOM needs packages that are not installed ({error}); install them, and start again: {INSTALL}"
        ) from error


def _read_series(paths: tuple[Path, ...], notes: list[str]) -> tuple[list[Frame], np.ndarray, Grid]:
    """The images of one series in order along it, their values [columns, rows, images], and their grid."""
    frames, of_files = read_frames(paths)
    notes += of_files
    across = np.cross(*frames[0].directions)
    frames = sorted(frames, key=lambda frame: (float(across @ frame.position), str(frame.path), frame.index))
    frames = _without_copies(frames, notes)
    _check_steps(frames, [float(across @ frame.position) for frame in frames], of_files)
    grid = _grid(frames, notes)
    return frames, decode_frames(frames, notes).transpose(2, 1, 0), grid


def _without_copies(frames: list[Frame], notes: list[str]) -> list[Frame]:
    """Leaves out files that are there twice, as archives hold them."""
    kept: list[Frame] = []
    for frame in frames:
        same = kept and frame.path != kept[-1].path and np.allclose(frame.position, kept[-1].position, atol=1e-3)
        if not (same and frame.header.PixelData == kept[-1].header.PixelData):
            kept.append(frame)
    if copies := len(frames) - len(kept):
        notes.append(f"{copies} files are there twice, and are used once")
    return kept


def _check_steps(frames: list[Frame], depths: list[float], notes: list[str]) -> None:
    """Raises InputError where images lie in one place, not at even distances, or not on one line."""
    steps = np.diff(depths)
    if not len(steps):
        return
    left_out = "".join(f" ({note})" for note in notes if "left out" in note)
    usual = float(np.median(steps))
    for step, before, after in zip(steps, frames, frames[1:], strict=False):
        if step < 1e-3:
            raise InputError(
                f"{after.path}: a second image in the place of {before.path.name}: {len(frames)} images lie in "
                f"{1 + int((steps >= 1e-3).sum())} places, as of several echoes, time points or kinds; give one of them"
            )
        if abs(step - usual) > 0.1 * usual:
            raise InputError(
                f"{before.path.parent}: a gap in the series: from {_called(before)} to {_called(after)} are "
                f"{step:.2f} mm, elsewhere {usual:.2f} mm; put back the slices that are missing{left_out}"
            )
    positions = np.stack([frame.position for frame in frames])
    line = np.linspace(positions[0], positions[-1], len(frames))
    if (away := np.abs(positions - line).max()) > max(0.5, 0.1 * usual):
        raise InputError(
            f"{frames[0].path.parent}: its images are shifted against each other by {away:.2f} mm, so they make no "
            "volume; convert the series to NIfTI (dcm2niix)"
        )


def _called(frame: Frame) -> str:
    return f"{frame.path.name}, image {frame.index + 1}" if _of_many(frame) else frame.path.name


def _of_many(frame: Frame) -> bool:
    return len(frame.header.get("PerFrameFunctionalGroupsSequence") or ()) > 1


def _grid(frames: list[Frame], notes: list[str]) -> Grid:
    first, last, (along_row, along_column) = frames[0].position, frames[-1].position, frames[0].directions
    row_gap, column_gap = frames[0].gaps
    if len(frames) > 1:
        step = (last - first) / (len(frames) - 1)  # of a tilted gantry not at a right angle to the image
    else:
        if frames[0].thickness is None:
            notes.append("its header has no SliceThickness: 1 mm is assumed, so its volume is a guess")
        step = np.cross(along_row, along_column) * (frames[0].thickness or 1.0)
    affine = np.eye(4)
    affine[:3] = np.stack([along_row * column_gap, along_column * row_gap, step, first], axis=1)
    affine[:2] *= -1.0  # DICOM's axes run to the left and to the back
    rows, columns = frames[0].shape
    try:
        return Grid(affine, (columns, rows, len(frames)))
    except InputError as error:
        raise InputError(f"{frames[0].path.parent}: {error}") from None


def _notes_on(frames: list[Frame]) -> list[str]:
    """What the header of the series taken as FLAIR says that a user must know."""
    header, notes = frames[0].header, []
    if description := text(header, "SeriesDescription"):
        notes.append(f"the series taken as FLAIR calls itself {description!r}")
    if (modality := text(header, "Modality")).upper() != "MR":
        notes.append(f"its modality is {modality or 'not given'}, and the networks know MR")
    return notes + ([ONE_SLICE] if len(frames) == 1 else []) + header_notes(frames)


def _frame_numbers(frames: list[Frame], notes: list[str]) -> list[int]:
    """What the images are called in the input: their InstanceNumber, or their number in the one file of all.

    Where the files do not tell them apart, images are counted from 1 along the series, with a note.
    """
    if _of_many(frames[0]) and len({frame.path for frame in frames}) == 1:
        return [frame.index + 1 for frame in frames]
    given = [text(frame.header, "InstanceNumber") for frame in frames]
    if all(number.isdecimal() for number in given) and len({int(number) for number in given}) == len(frames):
        return [int(number) for number in given]
    notes.append("its InstanceNumbers do not tell its images apart: slices are counted from 1 along the series")
    return list(range(1, len(frames) + 1))
