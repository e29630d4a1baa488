"""Reads a mask or label map from a DICOM segmentation (SEG)."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.scans.grid import Grid

if TYPE_CHECKING:  # optional and slow to import, so functions import it where they need it
    from pydicom import Dataset

MOST_VOXELS = 2**28  # declared, in all frames together
_MOST_SLICES = 4096
_JITTER, _MOST_OFF = 0.1 + 1e-6, 0.25  # tolerances as shares of a step: per step, and in all
_DEFLATED = "1.2.840.10008.1.2.1.99"


def read_seg(path: Path) -> tuple[np.ndarray, Grid, tuple[str, ...]]:
    """Reads a segmentation as a label map: segment n has label n; the only segment of a file has label 1.

    Such files often omit empty frames, between other frames as well as at both ends of the scan.

    Returns:
      [columns, rows, slices] uint8 from the first to the last stored frame, 0 for omitted frames between; their grid;
      and a note if the file does not store the slice distance.

    Raises:
      InputError: the file is not a segmentation, is damaged or too large, its segments overlap or are fractional, or
        pydicom is not installed. The message names the file.
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
            raise InputError("a deflated file, of unknown size before it is unpacked; write it without deflation")
        return _read(pydicom.dcmread(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # pydicom raises many exception types on damaged bytes
        raise InputError(f"{path}: not a DICOM segmentation, or a damaged one ({error})") from error


def _read(dataset: "Dataset") -> tuple[np.ndarray, Grid, tuple[str, ...]]:
    if dataset.get("Modality") != "SEG":
        raise InputError(f"modality {dataset.get('Modality')}, but a mask must be a segmentation (SEG)")
    count, rows, columns = int(dataset.NumberOfFrames), int(dataset.Rows), int(dataset.Columns)
    if min(count, rows, columns) < 1 or count * rows * columns > MOST_VOXELS:
        raise InputError(
            f"its header declares {count} frames of {columns} x {rows} voxels; give 1 to {MOST_VOXELS} voxels in all"
        )
    frames = [_Frame(dataset, frame) for frame in dataset.PerFrameFunctionalGroupsSequence]
    first = frames[0]
    if any(not np.allclose(frame.directions, first.directions, atol=1e-4) for frame in frames):
        raise InputError("its frames differ in direction; give a segmentation of one volume")
    across = np.cross(*first.directions)
    depths = np.array([across @ frame.position for frame in frames])
    step, notes = _step(first, np.unique(depths.round(3)))
    labels = _labels(dataset)
    distinct, which = np.unique(depths.round(3), return_inverse=True) if len(set(labels)) > 1 else (depths, slice(None))
    indices = _indices(distinct, step)
    indices = None if indices is None else indices[which]
    if indices is None or indices.max() >= _MOST_SLICES:
        raise InputError(f"its frames are not evenly spaced by {step:g} mm; give a segmentation of one volume")
    if len(set(zip(labels, indices.tolist(), strict=True))) < count and 0 not in labels:
        raise InputError("two frames of one segment are on the same slice; give a segmentation of one volume")
    values = np.zeros((indices.max() + 1, rows, columns), np.uint8)
    for index, label, mask in zip(indices, labels, dataset.pixel_array.reshape(count, rows, columns), strict=True):
        if (values[index][mask > 0] > 0).any():
            raise InputError(
                f"segment {label} overlaps another one, but a voxel has one label only; give a label map as NIfTI"
            )
        values[index][mask > 0] = label or mask[mask > 0]
    along, start = _line(np.stack([frame.position for frame in frames]), indices, across, step)
    affine = np.eye(4)
    axes = [first.directions[0] * first.pixel_spacing[1], first.directions[1] * first.pixel_spacing[0], along, start]
    affine[:3] = np.stack(axes, axis=1)
    affine[:2] *= -1.0  # DICOM axes run to the left and the back, NIfTI axes to the right and the front
    return values.transpose(2, 1, 0), Grid(affine, (columns, rows, len(values))), notes


def _labels(dataset: "Dataset") -> list[int]:
    """The label of each frame: the number of its segment, or 0 if its values are the labels (LABELMAP).

    Raises:
      InputError: the values are fractional, or a segment number is not a valid label.
    """
    kind, frames = dataset.get("SegmentationType", "BINARY"), dataset.PerFrameFunctionalGroupsSequence
    if kind == "LABELMAP":
        return [0] * len(frames)
    if kind == "FRACTIONAL" and not np.isin(dataset.pixel_array, (0, dataset.MaximumFractionalValue)).all():
        raise InputError("fractional values, which are not a mask; give a binary segmentation")
    if len(dataset.SegmentSequence) == 1:
        return [1] * len(frames)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    name = "SegmentIdentificationSequence"
    labels = [int((frame if name in frame else shared)[name].value[0].ReferencedSegmentNumber) for frame in frames]
    if min(labels) < 1 or max(labels) > 255:
        raise InputError(f"segments numbered from {min(labels)} to {max(labels)}; number them from 1 to 255")
    return labels


class _Frame:
    """Geometry of a frame: `directions` [2, 3] of row and column; `position` [3] and `pixel_spacing` [2] in mm."""

    def __init__(self, dataset: "Dataset", frame: "Dataset") -> None:
        shared = dataset.SharedFunctionalGroupsSequence[0]

        def functional_group(group: str) -> "Dataset":
            return (frame if group in frame else shared)[group].value[0]

        orientation = functional_group("PlaneOrientationSequence").ImageOrientationPatient
        self.directions = np.reshape(np.array(orientation, float), (2, 3))
        self.position = np.reshape(np.array(functional_group("PlanePositionSequence").ImagePositionPatient, float), 3)
        self.measures = functional_group("PixelMeasuresSequence")
        self.pixel_spacing = np.reshape(np.array(self.measures.PixelSpacing, float), 2)


def _indices(depths: np.ndarray, step: float) -> np.ndarray | None:
    """The slice index of each frame, from 0 at the minimum depth; None if the frames are not `step` mm apart.

    As in a series, each step may vary by a tenth. Frames several steps apart may be off by more, up to `_MOST_OFF`.
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
    """Fits a line to the frames: the vector from slice to slice [3], and the position of the first slice [3].

    The end frames alone measure an uneven step too roughly. So `step` is used if it agrees with them.
    """
    last = int(indices.max())
    if not last:
        return across * step, positions[0]
    along = (positions[indices.argmax()] - positions[indices.argmin()]) / last
    measured = float(across @ along)
    if abs(measured - step) * last <= _JITTER * step:
        along = along * (step / measured)
    return along, (positions - indices[:, None] * along).mean(axis=0)


def _step(first: _Frame, depths: np.ndarray) -> tuple[float, tuple[str, ...]]:
    """Slice distance in mm: as declared, else the minimum distance between frames, with a note."""
    declared = float(first.measures.get("SpacingBetweenSlices") or 0.0)
    if declared > 0:
        return declared, ()
    several = len(depths) > 1
    step = float(np.diff(depths).min()) if several else float(first.measures.get("SliceThickness") or 1.0)
    origin = "the minimum distance between its frames" if several else "the thickness of its only slice"
    return step, (f"it does not store the slice distance: {step:g} mm is assumed, {origin}",)
