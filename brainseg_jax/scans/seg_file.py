"""Reads a mask or label map from a DICOM segmentation (SEG)."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.scans.grid import Grid

if TYPE_CHECKING:  # an extra, and slow to import: only where there is a segmentation to read
    from pydicom import Dataset

MOST_VOXELS = 2**28  # in all frames, as they are declared
_MOST_SLICES = 4096
_JITTER, _MOST_OFF = 0.1 + 1e-6, 0.25  # of a step: for one, and for many together
_DEFLATED = "1.2.840.10008.1.2.1.99"


def read_seg(path: Path) -> tuple[np.ndarray, Grid, tuple[str, ...]]:
    """Reads a segmentation as a label map: segment n has label n, and the only segment of a file has label 1.

    Frames without a voxel of the mask are often left out in such a file, so they are at the ends of the volume too.

    Returns:
      [columns, rows, slices] uint8, from the first to the last frame there is, 0 where a frame between is left out; the
      grid of these; and a note where their distance is not in the file.

    Raises:
      InputError: it is no segmentation, its segments overlap or are fractional, it is damaged or too large, or pydicom
        is not installed; the message names the file.
    """
    try:
        import pydicom
    except ImportError as error:
        raise InputError(
            f"{path}: DICOM needs packages that are not installed ({error}); install them, and start again: "
            "python -m pip install 'brainseg_jax[dicom]'"
        ) from error
    try:
        if pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID == _DEFLATED:
            raise InputError("a deflated file, whose size cannot be known before it is unpacked; write it otherwise")
        return _read(pydicom.dcmread(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # pydicom raises many kinds on damaged bytes; each means this one file
        raise InputError(f"{path}: not a DICOM segmentation, or a damaged one ({error})") from error


def _read(one: "Dataset") -> tuple[np.ndarray, Grid, tuple[str, ...]]:
    if one.get("Modality") != "SEG":
        raise InputError(f"modality {one.get('Modality')}, and a mask is a segmentation (SEG)")
    count, rows, columns = int(one.NumberOfFrames), int(one.Rows), int(one.Columns)
    if min(count, rows, columns) < 1 or count * rows * columns > MOST_VOXELS:
        raise InputError(f"its header declares {count} frames of {columns} x {rows} voxels, which are not read")
    frames = [_Frame(one, frame) for frame in one.PerFrameFunctionalGroupsSequence]
    first = frames[0]
    if any(not np.allclose(frame.directions, first.directions, atol=1e-4) for frame in frames):
        raise InputError("its frames differ in direction; give a segmentation of one volume")
    across = np.cross(*first.directions)
    depths = np.array([across @ frame.position for frame in frames])
    step, notes = _step(first, np.unique(depths.round(3)))
    labels = _labels(one)
    distinct, which = np.unique(depths.round(3), return_inverse=True) if len(set(labels)) > 1 else (depths, slice(None))
    indices = _indices(distinct, step)
    indices = None if indices is None else indices[which]
    if indices is None or indices.max() >= _MOST_SLICES:
        raise InputError(f"its frames do not lie at even distances of {step:g} mm; give a segmentation of one volume")
    if len(set(zip(labels, indices.tolist(), strict=True))) < count and 0 not in labels:
        raise InputError("two frames of one segment lie on one slice; give a segmentation of one volume")
    values = np.zeros((indices.max() + 1, rows, columns), np.uint8)
    for index, label, mask in zip(indices, labels, one.pixel_array.reshape(count, rows, columns), strict=True):
        if (values[index][mask > 0] > 0).any():
            raise InputError(
                f"segment {label} overlaps another one, and a voxel has one label; give a label map as NIfTI"
            )
        values[index][mask > 0] = label or mask[mask > 0]
    along, start = _line(np.stack([frame.position for frame in frames]), indices, across, step)
    affine = np.eye(4)
    axes = [first.directions[0] * first.gaps[1], first.directions[1] * first.gaps[0], along, start]
    affine[:3] = np.stack(axes, axis=1)
    affine[:2] *= -1.0  # DICOM's axes run to the left and to the back
    return values.transpose(2, 1, 0), Grid(affine, (columns, rows, len(values))), notes


def _labels(one: "Dataset") -> list[int]:
    """The label of each frame: the number of its segment, or 0 where its values are the labels (LABELMAP).

    Raises:
      InputError: the values are fractional, or a number is no label.
    """
    kind, frames = one.get("SegmentationType", "BINARY"), one.PerFrameFunctionalGroupsSequence
    if kind == "LABELMAP":
        return [0] * len(frames)
    if kind == "FRACTIONAL" and not np.isin(one.pixel_array, (0, one.MaximumFractionalValue)).all():
        raise InputError("fractional values, which are no mask; give a binary segmentation")
    if len(one.SegmentSequence) == 1:
        return [1] * len(frames)
    shared = one.SharedFunctionalGroupsSequence[0]
    name = "SegmentIdentificationSequence"
    labels = [int((frame if name in frame else shared)[name].value[0].ReferencedSegmentNumber) for frame in frames]
    if min(labels) < 1 or max(labels) > 255:
        raise InputError(f"segments numbered from {min(labels)} to {max(labels)}; numbers from 1 to 255 are read")
    return labels


class _Frame:
    """Where a frame lies: `directions` [2, 3] along row and column, `position` [3] and `gaps` [2] of rows, in mm."""

    def __init__(self, one: "Dataset", frame: "Dataset") -> None:
        shared = one.SharedFunctionalGroupsSequence[0]

        def find(group: str) -> "Dataset":
            return (frame if group in frame else shared)[group].value[0]

        orientation = find("PlaneOrientationSequence").ImageOrientationPatient
        self.directions = np.reshape(np.array(orientation, float), (2, 3))
        self.position = np.reshape(np.array(find("PlanePositionSequence").ImagePositionPatient, float), 3)
        self.measures = find("PixelMeasuresSequence")
        self.gaps = np.reshape(np.array(self.measures.PixelSpacing, float), 2)


def _indices(depths: np.ndarray, step: float) -> np.ndarray | None:
    """Which slice each frame is, from 0 at the least depth; None where frames do not lie on slices `step` mm apart.

    As in a series, each step may be a tenth longer or shorter, so frames of slices further apart may be off by more.
    """
    order = np.argsort(depths, kind="stable")
    gaps = np.diff(depths[order]) / step
    counts = gaps.round()
    if (counts < 1).any() or (np.abs(gaps - counts) > np.minimum(_JITTER * counts, _MOST_OFF)).any():
        return None
    indices = np.zeros(len(depths), int)
    indices[order[1:]] = counts.cumsum().astype(int)
    return indices


def _line(positions: np.ndarray, indices: np.ndarray, across: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """From slice to slice [3], and the place of the first one [3], with each frame as near as can be.

    Where frames lie unevenly the ends alone tell the step too roughly, so it is the given one where both agree.
    """
    last = int(indices.max())
    if not last:
        return across * step, positions[0]
    along = (positions[indices.argmax()] - positions[indices.argmin()]) / last
    found = float(across @ along)
    if abs(found - step) * last <= _JITTER * step:
        along = along * (step / found)
    return along, (positions - indices[:, None] * along).mean(axis=0)


def _step(first: _Frame, depths: np.ndarray) -> tuple[float, tuple[str, ...]]:
    """Millimeters from slice to slice: as declared, else the smallest distance between frames, with a note."""
    declared = float(first.measures.get("SpacingBetweenSlices") or 0.0)
    if declared > 0:
        return declared, ()
    apart = len(depths) > 1
    step = float(np.diff(depths).min()) if apart else float(first.measures.get("SliceThickness") or 1.0)
    of_what = "the smallest distance between its frames" if apart else "the thickness of its only slice"
    return step, (f"it does not give the distance from slice to slice: {step:g} mm, {of_what}, is taken",)
