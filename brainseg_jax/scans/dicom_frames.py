"""Reads the frames of DICOM files with their positions, and selects those that form one volume."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.scans.dicom_file import (
    MOST_BYTES,
    complete,
    declared_bytes,
    frame_count,
    numbers,
    read_dicom,
    text,
    whole,
)
from brainseg_jax.scans.dicom_pixels import decode, padding
from brainseg_jax.scans.nifti_file import MOST_VALUES

if TYPE_CHECKING:
    from pydicom import Dataset


class NotASlice(InputError):
    """A valid file without a slice of a volume; `read_frames` skips it if there are slices beside it."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """One image of a file, not yet decoded.

    Attributes:
      path: of its file.
      header: of its file.
      index: in the file, from 0.
      position: [3], of the first pixel, in mm in the patient coordinates of DICOM.
      directions: [2, 3], unit vectors along a row and along a column.
      pixel_spacing: [2], distance between rows and between columns in mm.
      thickness: in mm; None if the header does not give it.
      slope, intercept: the linear map from stored values to values.
    """

    path: Path
    header: "Dataset"
    index: int
    position: np.ndarray
    directions: np.ndarray
    pixel_spacing: np.ndarray
    thickness: float | None
    slope: float
    intercept: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.header.Rows), int(self.header.Columns)

    def like(self, other: "Frame") -> bool:
        """Whether both can be slices of one volume: same size, directions, spacing and photometric interpretation."""
        same = self.shape == other.shape and text(self.header, _KIND) == text(other.header, _KIND)
        return same and all(
            np.allclose(getattr(self, name), getattr(other, name), atol=1e-3)
            for name in ("directions", "pixel_spacing")
        )


_KIND = "PhotometricInterpretation"


def read_frames(paths: tuple[Path, ...]) -> tuple[list[Frame], list[str]]:
    """Reads the frames of a series that form one volume, unordered, with notes on omissions and assumptions.

    Raises:
      InputError: a file is damaged, or the files hold no volume.
    """
    frames: list[Frame] = []
    left_out: list[NotASlice] = []
    notes: list[str] = []
    size = 0
    for path in paths:
        try:
            if (size := size + path.stat().st_size) > MOST_BYTES:
                raise InputError(f"{path.parent}: a series of more than {MOST_BYTES} bytes; give one scan")
            frames += _frames_of(path, notes)
        except NotASlice as error:
            left_out.append(error)
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error})") from error
        except Exception as error:  # pydicom raises many exception types on malformed tags
            raise InputError(f"{path}: its header cannot be read ({type(error).__name__}: {error})") from error
    if not frames:
        raise left_out[0]
    if len({text(frame.header, "SeriesInstanceUID") for frame in frames}) > 1:
        other = next(frame for frame in frames if frame.header.get(_UID) != frames[0].header.get(_UID))
        raise InputError(
            f"{other.path}: {_UID} {other.header.get(_UID)}, but {frames[0].header.get(_UID)} in "
            f"{frames[0].path.name}; give the slices of one series in a folder"
        )
    for reason in dict.fromkeys(error.reason for error in left_out):
        names = [error.path.name for error in left_out if error.reason == reason]
        notes.append(f"{_listed(names)} left out: {reason}")
    frames = _majority(frames, notes)
    if len(frames) * np.prod(frames[0].shape, dtype=np.int64) > MOST_VALUES:
        raise InputError(
            f"{paths[0].parent}: {len(frames)} images of {frames[0].shape} pixels, more than the limit of "
            f"{MOST_VALUES} in all; give one series"
        )
    return frames, list(dict.fromkeys(notes))


_UID = "SeriesInstanceUID"


def _majority(frames: list[Frame], notes: list[str]) -> list[Frame]:
    """The largest group of alike frames; adds a note on the others.

    Raises:
      InputError: no group has more than half of the frames, as in a localizer with three directions.
    """
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            if frame.like(group[0]):
                group.append(frame)
                break
        else:
            groups.append([frame])
    groups.sort(key=len, reverse=True)
    if 2 * len(groups[0]) <= len(frames):
        sizes = ", ".join(f"{len(group)} like {group[0].path.name}" for group in groups[:4])
        raise InputError(
            f"{frames[0].path.parent}: {len(frames)} images of {len(groups)} sizes or directions, without a majority "
            f"({sizes}): a localizer, or several series; give the slices of one volume"
        )
    if others := [frame for group in groups[1:] for frame in group]:
        notes.append(
            f"{len(others)} of {len(frames)} images left out, of another size or direction than the others: "
            + _listed(sorted({frame.path.name for frame in others}))
        )
    return groups[0]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _frames_of(path: Path, notes: list[str]) -> list[Frame]:
    """The frames of one file."""
    dataset = read_dicom(path)
    kinds = text(dataset, "ImageType").upper().split("\\")
    if "PixelData" not in dataset or not dataset.PixelData:
        raise NotASlice(path, "no PixelData in it, so it is not a slice of a series; remove it")
    if "MOSAIC" in kinds:
        raise NotASlice(path, "a mosaic of many slices in one image; convert the series to NIfTI (dcm2niix)")
    if "LOCALIZER" in kinds:
        raise NotASlice(path, "a localizer; give the series of a scan")
    notes += complete(path, dataset)
    if whole(path, dataset, "SamplesPerPixel") != 1 or text(dataset, _KIND) not in ("MONOCHROME1", "MONOCHROME2"):
        raise NotASlice(
            path,
            f"{dataset.SamplesPerPixel} value(s) a pixel, {text(dataset, _KIND)}: a color image; give a scan in gray "
            "values (MONOCHROME2)",
        )
    declared_bytes(path, dataset)
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or None
    if groups is None and frame_count(path, dataset) > 1:
        raise NotASlice(
            path,
            f"{frame_count(path, dataset)} images in one file without their positions; convert the "
            "series to NIfTI (dcm2niix)",
        )
    if groups is None:
        return [_frame(path, dataset, 0, [dataset], notes)]
    if len(groups) != frame_count(path, dataset):
        raise InputError(
            f"{path}: NumberOfFrames is {frame_count(path, dataset)}, but {len(groups)} have a position; get a new copy"
        )
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or ())[:1]
    return [_frame(path, dataset, index, [group, *shared, dataset], notes) for index, group in enumerate(groups)]


def _frame(path: Path, dataset: "Dataset", index: int, holders: "list[Dataset]", notes: list[str]) -> Frame:
    """The frame `index` of a file. `holders` are the data sets that can hold its tags, in order of precedence."""

    def tag(sequence: str, name: str, count: int) -> np.ndarray | None:
        for holder in holders:
            inner = holder if holder is dataset else next(iter(holder.get(sequence) or ()), None)
            if inner is not None and (values := numbers(path, inner, name, count, notes)) is not None:
                return values
        return None

    def needed_tag(sequence: str, name: str, count: int) -> np.ndarray:
        if (values := tag(sequence, name, count)) is None:
            raise InputError(f"{path}: no {name} in it, so it is not a slice of a series; remove it, or fix its header")
        return values

    directions = needed_tag("PlaneOrientationSequence", "ImageOrientationPatient", 6).reshape(2, 3)
    lengths = np.linalg.norm(directions, axis=1)
    if not np.allclose(lengths, 1.0, atol=0.01) or abs(directions[0] @ directions[1]) > 0.01:
        raise InputError(
            f"{path}: ImageOrientationPatient is {directions.ravel().tolist()}, not two perpendicular unit vectors; "
            "correct the header, or convert the series to NIfTI (dcm2niix)"
        )
    spacing = needed_tag("PixelMeasuresSequence", "PixelSpacing", 2)
    if not ((spacing > 1e-3) & (spacing < 1e3)).all():
        raise InputError(f"{path}: PixelSpacing is {spacing.tolist()} mm; correct the header")
    position = needed_tag("PlanePositionSequence", "ImagePositionPatient", 3)
    thickness = tag("PixelMeasuresSequence", "SliceThickness", 1)
    slope = tag("PixelValueTransformationSequence", "RescaleSlope", 1)
    intercept = tag("PixelValueTransformationSequence", "RescaleIntercept", 1)
    if slope is not None and not slope[0]:
        raise InputError(f"{path}: RescaleSlope is 0, so all values are equal; correct the header")
    return Frame(
        path=path,
        header=dataset,
        index=index,
        position=position,
        directions=directions / lengths[:, None],
        pixel_spacing=spacing,
        thickness=float(thickness[0]) if thickness is not None and 0 < thickness[0] < 1e3 else None,
        slope=1.0 if slope is None else float(slope[0]),
        intercept=0.0 if intercept is None else float(intercept[0]),
    )


def decode_frames(frames: list[Frame], notes: list[str]) -> np.ndarray:
    """Decodes and rescales frames, and deletes the encoded pixels from their headers to free memory.

    Padding becomes background. MONOCHROME1 images, in which 0 is white, are inverted. Both add a note.

    Returns:
      [frames, rows, columns] of the stored type, or float32 if the values are rescaled.

    Raises:
      InputError: see `decode`.
    """
    rescaled = any((frame.slope, frame.intercept) != (1.0, 0.0) for frame in frames)
    volume: np.ndarray | None = None
    padded: np.ndarray | None = None
    stored: dict[Path, tuple[np.ndarray, np.ndarray | None]] = {}
    for index, frame in enumerate(frames):
        if frame.path not in stored:
            if len(frame.header.get("PerFrameFunctionalGroupsSequence") or ()) < 2:
                stored.clear()  # one slice per file: do not keep a second copy of the series
            values = decode(frame.path, frame.header)
            stored[frame.path] = values, padding(frame.path, frame.header, values)
            del frame.header.PixelData
        values, is_padding = stored[frame.path]
        if volume is None:
            volume = np.empty((len(frames), *frame.shape), np.float32 if rescaled else values.dtype)
        elif not rescaled:
            volume = volume.astype(np.promote_types(volume.dtype, values.dtype), copy=False)
        image = values[frame.index]
        volume[index] = image * np.float32(frame.slope) + np.float32(frame.intercept) if rescaled else image
        if is_padding is not None:
            padded = np.zeros(volume.shape, bool) if padded is None else padded
            padded[index] = is_padding[frame.index]
    assert volume is not None  # there is at least one frame
    if text(frames[0].header, _KIND) == "MONOCHROME1":
        notes.append("its gray values are inverted (MONOCHROME1), and are inverted back")
        white = np.percentile(volume if padded is None or padded.all() else volume[~padded], 99.9, method="nearest")
        volume = (np.float32(white) - volume.astype(np.float32)).clip(min=0.0)
    if padded is not None and not padded.all():
        background = min(np.percentile(volume[~padded], 0.1, method="nearest"), 0)
        if changed := int((volume[padded] != background).sum()):
            notes.append(f"{changed / volume.size:.1%} of its voxels are padding and count as background")
        volume[padded] = background
    return volume
