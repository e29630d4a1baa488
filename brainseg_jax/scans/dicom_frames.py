"""The images of DICOM files, one a file or many, with the place of each; and which of them are one volume."""

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
    """The file is whole, but holds no slice of a volume; beside slices it is passed over."""

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
      position: [3], millimeters in DICOM's words, of the first pixel.
      directions: [2, 3], unit vectors along a row and along a column.
      gaps: [2], millimeters between rows and between columns.
      thickness: millimeters; None where the header does not say.
      slope, intercept: from stored values to values.
    """

    path: Path
    header: "Dataset"
    index: int
    position: np.ndarray
    directions: np.ndarray
    gaps: np.ndarray
    thickness: float | None
    slope: float
    intercept: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.header.Rows), int(self.header.Columns)

    def like(self, other: "Frame") -> bool:
        """Whether the two can be slices of one volume: size, directions, spacing and kind of gray values."""
        same = self.shape == other.shape and text(self.header, _KIND) == text(other.header, _KIND)
        return same and all(
            np.allclose(getattr(self, name), getattr(other, name), atol=1e-3) for name in ("directions", "gaps")
        )


_KIND = "PhotometricInterpretation"


def read_frames(paths: tuple[Path, ...]) -> tuple[list[Frame], list[str]]:
    """The images of a series' files that make one volume, in no order, and notes on what was left out or assumed.

    Raises:
      InputError: a file is damaged, or there is no volume in them.
    """
    frames, left_out, notes, size = [], [], [], 0
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
        except Exception as error:  # of a tag of a kind that nothing expects
            raise InputError(f"{path}: its header cannot be read ({type(error).__name__}: {error})") from error
    if not frames:
        raise left_out[0]
    if len({text(frame.header, "SeriesInstanceUID") for frame in frames}) > 1:
        other = next(one for one in frames if one.header.get(_UID) != frames[0].header.get(_UID))
        raise InputError(
            f"{other.path}: {_UID} {other.header.get(_UID)}, but {frames[0].header.get(_UID)} in "
            f"{frames[0].path.name}; give the slices of one series in a folder"
        )
    for reason in dict.fromkeys(error.reason for error in left_out):
        names = [error.path.name for error in left_out if error.reason == reason]
        notes.append(f"{_listed(names)} left out: {reason}")
    kept = _majority(frames, notes)
    if len(kept) * np.prod(kept[0].shape, dtype=np.int64) > MOST_VALUES:
        raise InputError(
            f"{paths[0].parent}: {len(kept)} images of {kept[0].shape} pixels, more than are read; give one series"
        )
    return kept, list(dict.fromkeys(notes))


_UID = "SeriesInstanceUID"


def _majority(frames: list[Frame], notes: list[str]) -> list[Frame]:
    """The images that are like most others; a note on the others. Localizers have three directions and no majority."""
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
            f"{frames[0].path.parent}: {len(frames)} images of {len(groups)} sizes or directions, and none is that of "
            f"most ({sizes}): a localizer, or several series; give the slices of one volume"
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
    """The images of one file."""
    one = read_dicom(path)
    kinds = text(one, "ImageType").upper().split("\\")
    if "PixelData" not in one or not one.PixelData:
        raise NotASlice(path, "no PixelData in it, so it is no slice of a series; take it out")
    if "MOSAIC" in kinds:
        raise NotASlice(path, "a mosaic of many slices in one image; convert the series to NIfTI (dcm2niix)")
    if "LOCALIZER" in kinds:
        raise NotASlice(path, "a localizer; give the series of a scan")
    notes += complete(path, one)
    if whole(path, one, "SamplesPerPixel") != 1 or text(one, _KIND) not in ("MONOCHROME1", "MONOCHROME2"):
        raise NotASlice(
            path,
            f"{one.SamplesPerPixel} value(s) a pixel, {text(one, _KIND)}: a color image; give a scan in gray "
            "values (MONOCHROME2)",
        )
    declared_bytes(path, one)
    own = one.get("PerFrameFunctionalGroupsSequence") or None
    if own is None and frame_count(path, one) > 1:
        raise NotASlice(
            path,
            f"{frame_count(path, one)} images in one file that does not say where each lies; convert the "
            "series to NIfTI (dcm2niix)",
        )
    if own is None:
        return [_frame(path, one, 0, [one], notes)]
    if len(own) != frame_count(path, one):
        raise InputError(
            f"{path}: NumberOfFrames is {frame_count(path, one)}, but {len(own)} have a place; get a new copy"
        )
    shared = list(one.get("SharedFunctionalGroupsSequence") or ())[:1]
    return [_frame(path, one, index, [item, *shared, one], notes) for index, item in enumerate(own)]


def _frame(path: Path, one: "Dataset", index: int, holders: "list[Dataset]", notes: list[str]) -> Frame:
    """The image `index`; `holders`: where its tags can be, those of this image first."""

    def tag(sequence: str, name: str, count: int, needed: bool = True) -> np.ndarray | None:
        for holder in holders:
            inner = holder if holder is one else next(iter(holder.get(sequence) or ()), None)
            if inner is not None and (found := numbers(path, inner, name, count, notes)) is not None:
                return found
        if needed:
            raise InputError(f"{path}: no {name} in it, so it is no slice of a series; take it out, or mend its header")
        return None

    directions = tag("PlaneOrientationSequence", "ImageOrientationPatient", 6).reshape(2, 3)
    lengths = np.linalg.norm(directions, axis=1)
    if not np.allclose(lengths, 1.0, atol=0.01) or abs(directions[0] @ directions[1]) > 0.01:
        raise InputError(
            f"{path}: ImageOrientationPatient is {directions.ravel().tolist()}, no two directions at a right angle; "
            "correct the header, or convert the series to NIfTI (dcm2niix)"
        )
    gaps = tag("PixelMeasuresSequence", "PixelSpacing", 2)
    if not ((gaps > 1e-3) & (gaps < 1e3)).all():
        raise InputError(f"{path}: PixelSpacing is {gaps.tolist()} mm; correct the header")
    position = tag("PlanePositionSequence", "ImagePositionPatient", 3)
    thickness = tag("PixelMeasuresSequence", "SliceThickness", 1, needed=False)
    slope = tag("PixelValueTransformationSequence", "RescaleSlope", 1, needed=False)
    intercept = tag("PixelValueTransformationSequence", "RescaleIntercept", 1, needed=False)
    if slope is not None and not slope[0]:
        raise InputError(f"{path}: RescaleSlope is 0, which makes all values one; correct the header")
    return Frame(
        path=path,
        header=one,
        index=index,
        position=position,
        directions=directions / lengths[:, None],
        gaps=gaps,
        thickness=float(thickness[0]) if thickness is not None and 0 < thickness[0] < 1e3 else None,
        slope=1.0 if slope is None else float(slope[0]),
        intercept=0.0 if intercept is None else float(intercept[0]),
    )


def decode_frames(frames: list[Frame], notes: list[str]) -> np.ndarray:
    """The values of images, rescaled; their files' pixels are given back to memory.

    Padding becomes background. MONOCHROME1, in which 0 is white, is inverted; a note on either.

    Returns:
      [frames, rows, columns], of the type that is stored, or float32 where it is rescaled.

    Raises:
      InputError: see `decode`.
    """
    rescaled = any((frame.slope, frame.intercept) != (1.0, 0.0) for frame in frames)
    volume: np.ndarray | None = None
    padded: np.ndarray | None = None
    stored: dict[Path, tuple[np.ndarray, np.ndarray | None]] = {}
    for place, frame in enumerate(frames):
        if frame.path not in stored:
            if len(frame.header.get("PerFrameFunctionalGroupsSequence") or ()) < 2:
                stored.clear()  # a file a slice: no second copy of the series
            values = decode(frame.path, frame.header)
            stored[frame.path] = values, padding(frame.path, frame.header, values)
            del frame.header.PixelData
        values, where = stored[frame.path]
        if volume is None:
            volume = np.empty((len(frames), *frame.shape), np.float32 if rescaled else values.dtype)
        elif not rescaled:
            volume = volume.astype(np.promote_types(volume.dtype, values.dtype), copy=False)
        image = values[frame.index]
        volume[place] = image * np.float32(frame.slope) + np.float32(frame.intercept) if rescaled else image
        if where is not None:
            padded = np.zeros(volume.shape, bool) if padded is None else padded
            padded[place] = where[frame.index]
    if text(frames[0].header, _KIND) == "MONOCHROME1":
        notes.append("its gray values are inverted (MONOCHROME1), and are turned back")
        white = np.percentile(volume if padded is None or padded.all() else volume[~padded], 99.9, method="nearest")
        volume = (np.float32(white) - volume.astype(np.float32)).clip(min=0.0)
    if padded is not None and not padded.all():
        background = min(np.percentile(volume[~padded], 0.1, method="nearest"), 0)
        if changed := int((volume[padded] != background).sum()):
            notes.append(f"{changed / volume.size:.1%} of its voxels are padding, and are taken as background")
        volume[padded] = background
    return volume
