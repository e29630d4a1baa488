"""Scans in DICOM series; their masks are written as DICOM segmentations (SEG)."""

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
      frames: of FLAIR, in spatial order, without pixels.
      grid: of the frames; its axes are columns, rows and slices.
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
        """See `Scan.write`: writes masks as a binary SEG with one segment per target, other maps as NIfTI.

        Returns:
          None, or a note if the header of the series does not allow a SEG, so the mask is written as NIfTI.
        """
        (path,) = paths
        image = result_image(kind, values, description, self.grid)
        if kind != MASK:
            write_whole(path, partial(nib.save, image))
            return None
        nifti_path = path.with_suffix(".nii.gz")
        try:
            masks = np.moveaxis(self.grid.from_slices(values), (0, 1, 2), (2, 1, 0))
            write_whole(path, make_segmentation(self.frames, masks, description, words).save_as)
            nifti_path.unlink(missing_ok=True)  # from an earlier run without SEG
            return None
        except NoSegmentation as error:
            write_whole(nifti_path, partial(nib.save, image))
            path.unlink(missing_ok=True)  # from an earlier run; it would be mistaken for this mask
            return (
                f"the mask is NIfTI ({nifti_path.name}): the header of the series does not allow a DICOM SEG: {error}"
            )


@dataclasses.dataclass(frozen=True)
class SeriesSource(Source):
    """The series of one case.

    Attributes:
      files: of one series for each sequence, or of a single one at `ALL`, which is used as FLAIR.
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
            raise InputError(f"{self.name}: no FLAIR, and no other sequence can replace it; add FLAIR")
        folder, notes = files[0].parent, list(self.notes)
        frames, volume, grid = _read_series(files, notes)
        volumes = {FLAIR: volume}
        for sequence in [name for name in CHANNELS if name in self.files and name != FLAIR]:
            series_notes: list[str] = []
            _, other, other_grid = _read_series(self.files[sequence], series_notes)
            notes += [f"{sequence}: {note}" for note in series_notes]
            try:
                volumes[sequence] = other_grid.turned_onto(grid, other)
            except InputError as error:
                other_folder = self.files[sequence][0].parent
                raise InputError(
                    f"{other_folder}: its grid is not that of {folder.name}: {error}; resample it onto that grid"
                ) from None
        notes += _notes_on(frames)
        voxels, value_notes = to_channels(grid, volumes, folder)
        numbers = grid.slice_numbers
        if grid.slice_axis == 2:  # otherwise the axial slices cross the images, which then give them no number
            frame_numbers = _frame_numbers(frames, notes)
            numbers = tuple(frame_numbers[index] for index in numbers)
        return SeriesScan(voxels, grid.spacing, numbers, (*notes, *value_notes), frames, grid)

    def outputs(self, kind: str, description: Description) -> list[Path]:
        """See `Source.outputs`: one file."""
        return [self.folder / f"{self.stem}_{kind}{'.dcm' if kind == MASK else '.nii.gz'}"]


def is_dicom(path: Path) -> bool:
    """Whether the suffix is that of DICOM, or the file has the DICM prefix; False for a DICOMDIR.

    Raises:
      OSError: the file cannot be read, and its suffix is another.
    """
    if path.name == "DICOMDIR":
        return False
    if path.suffix.lower() in _SUFFIXES:
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def check_packages() -> None:
    """Raises InputError if the DICOM packages are not installed."""
    try:
        import highdicom  # noqa: F401
        import pydicom  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"DICOM needs packages that are not installed ({error}); install them, and start again: {INSTALL}"
        ) from error


def _read_series(paths: tuple[Path, ...], notes: list[str]) -> tuple[list[Frame], np.ndarray, Grid]:
    """Reads one series: its frames in spatial order, their values [columns, rows, frames], and their grid."""
    frames, file_notes = read_frames(paths)
    notes += file_notes
    normal = np.cross(*frames[0].directions)
    frames = sorted(frames, key=lambda frame: (float(normal @ frame.position), str(frame.path), frame.index))
    frames = _without_copies(frames, notes)
    _check_steps(frames, [float(normal @ frame.position) for frame in frames], file_notes)
    grid = _grid(frames, notes)
    return frames, decode_frames(frames, notes).transpose(2, 1, 0), grid


def _without_copies(frames: list[Frame], notes: list[str]) -> list[Frame]:
    """Removes copies of files, which archives sometimes contain, with a note."""
    unique: list[Frame] = []
    for frame in frames:
        last = unique[-1] if unique else None
        is_copy = (
            last is not None
            and frame.path != last.path
            and np.allclose(frame.position, last.position, atol=1e-3)
            and frame.header.PixelData == last.header.PixelData
        )
        if not is_copy:
            unique.append(frame)
    if copies := len(frames) - len(unique):
        notes.append(f"{copies} images are copies of others, and are ignored")
    return unique


def _check_steps(frames: list[Frame], depths: list[float], notes: list[str]) -> None:
    """Raises InputError if images have the same position, uneven distances, or are not on one line."""
    steps = np.diff(depths)
    if not len(steps):
        return
    left_out = "".join(f" ({note})" for note in notes if "left out" in note)
    median_step = float(np.median(steps))
    for step, before, after in zip(steps, frames, frames[1:], strict=False):
        if step < 1e-3:
            raise InputError(
                f"{after.path}: a second image at the position of {before.path.name}: {len(frames)} images at "
                f"{1 + int((steps >= 1e-3).sum())} positions, probably of several echoes or time points; give one of "
                "them"
            )
        if abs(step - median_step) > 0.1 * median_step:
            raise InputError(
                f"{before.path.parent}: a gap in the series: {step:.2f} mm from {_name_of(before)} to "
                f"{_name_of(after)}, elsewhere {median_step:.2f} mm; add the missing slices{left_out}"
            )
    positions = np.stack([frame.position for frame in frames])
    on_line = np.linspace(positions[0], positions[-1], len(frames))
    if (shift := np.abs(positions - on_line).max()) > max(0.5, 0.1 * median_step):
        raise InputError(
            f"{frames[0].path.parent}: its images are shifted against each other by {shift:.2f} mm, so they do not "
            "form a volume; convert the series to NIfTI (dcm2niix)"
        )


def _name_of(frame: Frame) -> str:
    return f"{frame.path.name}, image {frame.index + 1}" if _is_multiframe(frame) else frame.path.name


def _is_multiframe(frame: Frame) -> bool:
    return len(frame.header.get("PerFrameFunctionalGroupsSequence") or ()) > 1


def _grid(frames: list[Frame], notes: list[str]) -> Grid:
    first, last, (along_row, along_column) = frames[0].position, frames[-1].position, frames[0].directions
    row_spacing, column_spacing = frames[0].pixel_spacing
    if len(frames) > 1:
        step = (last - first) / (len(frames) - 1)  # with a tilted gantry not perpendicular to the image
    else:
        if frames[0].thickness is None:
            notes.append("its header has no SliceThickness: 1 mm is assumed, so its volume may be wrong")
        step = np.cross(along_row, along_column) * (frames[0].thickness or 1.0)
    affine = np.eye(4)
    affine[:3] = np.stack([along_row * column_spacing, along_column * row_spacing, step, first], axis=1)
    affine[:2] *= -1.0  # DICOM axes run to the left and the back, NIfTI axes to the right and the front
    rows, columns = frames[0].shape
    try:
        return Grid(affine, (columns, rows, len(frames)))
    except InputError as error:
        raise InputError(f"{frames[0].path.parent}: {error}") from None


def _notes_on(frames: list[Frame]) -> list[str]:
    """Notes on the header of the series that is used as FLAIR."""
    header, notes = frames[0].header, []
    if description := text(header, "SeriesDescription"):
        notes.append(f"the description of the series used as FLAIR is {description!r}")
    if (modality := text(header, "Modality")).upper() != "MR":
        notes.append(f"its modality is {modality or 'not given'}, but the networks are trained on MR")
    return notes + ([ONE_SLICE] if len(frames) == 1 else []) + header_notes(frames)


def _frame_numbers(frames: list[Frame], notes: list[str]) -> list[int]:
    """Numbers of the frames: InstanceNumber, or the index from 1 if one file has all frames.

    If the InstanceNumbers are not unique, frames are counted from 1 along the series, with a note.
    """
    if _is_multiframe(frames[0]) and len({frame.path for frame in frames}) == 1:
        return [frame.index + 1 for frame in frames]
    texts = [text(frame.header, "InstanceNumber") for frame in frames]
    if all(number.isdecimal() for number in texts) and len({int(number) for number in texts}) == len(frames):
        return [int(number) for number in texts]
    notes.append("its InstanceNumbers are missing or not unique: slices are counted from 1 along the series")
    return list(range(1, len(frames) + 1))
