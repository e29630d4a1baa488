"""Reads a folder of masks or label maps, predicted or true, ours or others', whatever files hold them."""

import re
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import logging

from brainseg_jax.errors import InputError
from brainseg_jax.scans.grid import Grid
from brainseg_jax.scans.images import read_image
from brainseg_jax.scans.nifti_file import is_image_of_pair, is_nifti, open_nifti, stem
from brainseg_jax.scans.seg_file import read_seg
from brainseg_jax.scans.slices import stack_slices
from brainseg_jax.scans.walk import UNREAD, list_passed_over, new, walk

_SLICE = re.compile(r"(?P<case>.+?)(?:_(?P<number>[0-9]+))?_(?:mask|pred)\.(?:tiff?|png)", re.IGNORECASE)
_SEG = re.compile(r"(?P<case>.+)_(?:mask|pred|seg)\.(?:dcm|dicom)", re.IGNORECASE)
_OF_A_MASK = re.compile(r"_(?:mask|pred)$")
_NEAR = 1e-3  # of the mask's value: what is so close to it, or to 0, is that value, rounded or scaled
# What `predict` puts beside its masks.
_MAP = re.compile(r".+_(?:probability|uncertainty)(?:\.nii(?:\.gz)?|\.hdr|\.img|(?:_[0-9]+)?\.tiff?)")
_BESIDE = re.compile(r".+_overlay\.png|predictions\.csv|areas\.csv")
# What nnU-Net puts beside its label maps.
_OF_NNUNET = re.compile(r"(?:dataset|plans|predict_from_raw_data_args|summary)\.json")


@dataclass(frozen=True)
class MaskFiles:
    """The files that hold the mask of one case.

    Attributes:
      case: its name.
      slices: numbers and files of single slices, in the order in which they were found.
      volumes: files of a whole volume each.
    """

    case: str
    slices: tuple[tuple[int, Path], ...] = ()
    volumes: tuple[Path, ...] = ()

    def read(self) -> "Mask":
        """Reads the mask; raises InputError, which names the files, where it cannot be used."""
        if len(self.volumes) + bool(self.slices) > 1:
            files = [path for _, path in self.slices] + list(self.volumes)
            listed = ", ".join(str(path) for path in files[:4])
            raise InputError(f"{self.case}: more than one mask: {listed}; keep one")
        return _read_volume(self.volumes[0]) if self.volumes else _read_slices(self.case, self.slices)


@dataclass(frozen=True)
class MaskInfo:
    """What is known of the mask of one case without its voxels.

    Attributes:
      spacing: see `Mask.spacing`.
      source: the first file.
      first_files: for each label but 0, in ascending order, the first file that holds it.
      notes: see `Mask.notes`.
      checksum: see `Mask.checksum`.
    """

    spacing: tuple[float, float, float] | None
    source: Path
    first_files: dict[int, Path]
    notes: tuple[str, ...]
    checksum: int

    @property
    def values(self) -> tuple[int, ...]:
        """The labels that there are, without 0."""
        return tuple(self.first_files)


@dataclass(frozen=True, eq=False)
class Mask:
    """The mask or label map of one case.

    Attributes:
      labels: [S, H, W] uint8, the values of the file: 0 and 1, or 0 and 255, or labels. Axial slices from foot to
        crown, turned as `Grid.to_slices` does; those of single files as they are.
      spacing: millimeters between voxels (slice, row, column); None for single slices, whose files do not say.
      numbers: of the slices, as in the names of their files; None for a volume.
      sources: the files, one a slice or one of all.
      grid: of a volume, as it lies in the file; None for single slices.
      open_ended: whether slices without a voxel of the mask may be missing, before, after and between, as in a DICOM
        segmentation.
      notes: what a user must know of how it was read.
    """

    labels: np.ndarray
    spacing: tuple[float, float, float] | None
    numbers: tuple[int, ...] | None
    sources: tuple[Path, ...]
    grid: Grid | None = None
    open_ended: bool = False
    notes: tuple[str, ...] = ()

    @property
    def voxels(self) -> np.ndarray:
        """What has any label, [S, H, W] bool."""
        return self.labels > 0

    @property
    def info(self) -> MaskInfo:
        """What remains known once the voxels are let go."""
        values = [int(value) for value in _distinct(self.labels) if value]
        return MaskInfo(
            spacing=self.spacing,
            source=self.sources[0],
            first_files={value: self._source_of(value) for value in values},
            notes=self.notes,
            checksum=self.checksum,
        )

    @property
    def checksum(self) -> int:
        """CRC-32 of the labels."""
        return zlib.crc32(np.ascontiguousarray(self.labels))

    def _source_of(self, value: int) -> Path:
        """The first file that holds a label."""
        if len(self.sources) == 1:
            return self.sources[0]
        return self.sources[int((self.labels == value).any(axis=(1, 2)).argmax())]

    @property
    def volume(self) -> np.ndarray:
        """The labels on `grid`, [I, J, K] uint8."""
        return self.grid.from_slices(self.labels)

    def on(self, grid: Grid) -> "Mask":
        """The same mask on another grid of the same voxels, see `Grid.turned_onto`."""
        return _of_volume(self.grid.turned_onto(grid, self.volume), grid, self.sources, self.notes)

    def widened(self, grid: Grid) -> "Mask":
        """The same mask with the empty slices that are missing where `grid` has some; itself if none can be missing."""
        if not self.open_ended:
            return self
        wider, before, after = self.grid.widened(grid)
        volume = np.pad(self.volume, ((0, 0), (0, 0), (before, after)))
        return _of_volume(volume, wider, self.sources, self.notes, open_ended=True)


def _of_volume(
    volume: np.ndarray, grid: Grid, sources: tuple[Path, ...], notes: tuple[str, ...], *, open_ended: bool = False
) -> Mask:
    """A mask of labels [I, J, K] uint8 on their grid."""
    return Mask(grid.to_slices(volume), grid.spacing, None, sources, grid, open_ended, notes)


def find_masks(folder: Path) -> dict[str, MaskFiles]:
    """Finds the files of all masks in a folder and below, and opens none.

    Slices are `<case>_<n>_mask` or `<case>_<n>_pred`, `.tif` or `.png`, nested as in the Kaggle set or flat; their
    numbers run without a gap. A name without a number is a case of one slice. Volumes are `<case>`, `<case>_mask` or
    `<case>_pred`, `.nii`, `.nii.gz` or a pair `.hdr` and `.img`; DICOM segmentations are
    `<case>_pred.dcm`, `<case>_mask.dcm` or `<case>_seg.dcm`, and segment n has label n. Values are 0 and 1, 0 and 255,
    or labels from 0 to 255, within one in a thousand. Links are followed. All else is passed over, and listed in a
    warning with the reasons; but not what `predict` and nnU-Net write beside their masks.

    Returns:
      the files by name of the case, in order of the name.

    Raises:
      InputError: there is no mask.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a folder of masks")
    slices: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    volumes: dict[str, list[Path]] = defaultdict(list)
    passed_over = new()
    for path in walk(folder, passed_over):
        beside = any(pattern.fullmatch(path.name) for pattern in (_MAP, _BESIDE, _OF_NNUNET))
        if beside or is_image_of_pair(path):
            continue
        if is_nifti(path):
            volumes[_OF_A_MASK.sub("", stem(path))].append(path)
        elif match := _SEG.fullmatch(path.name):
            volumes[match["case"]].append(path)
        elif match := _SLICE.fullmatch(path.name):
            slices[match["case"]].append((int(match["number"] or 1), path))
        else:
            passed_over[_why_no_mask(path)].append(path)
    listed = list_passed_over(passed_over, folder)
    if not slices and not volumes:
        raise InputError(
            f"{folder}: no mask in it; a mask is named <case>_<n>_mask.tif, <case>_<n>_pred.tif, <case>.nii.gz, "
            f"<case>_pred.nii.gz or <case>_pred.dcm{_below(listed)}"
        )
    if listed:
        logging.warning("%s: not all in it is a mask%s", folder, _below(listed))
    return {
        case: MaskFiles(case, tuple(slices.get(case, ())), tuple(volumes.get(case, ())))
        for case in sorted(slices.keys() | volumes.keys())
    }


def describe_faults(folder: Path, faults: list[str]) -> str:
    """The message for masks of a folder that cannot be read."""
    return f"{folder}: masks that cannot be used:\n" + "\n".join(faults)


def _why_no_mask(path: Path) -> str:
    if path.suffix.lower() in UNREAD:
        return "a format that is not read; convert masks to NIfTI (.nii.gz)"
    return "no mask by its name"


def _below(listed: list[str]) -> str:
    return "; passed over:" + "".join(f"\n  {line}" for line in listed) if listed else ""


def _read_volume(path: Path) -> Mask:
    if _SEG.fullmatch(path.name):
        values, grid, notes = read_seg(path)
        return _of_volume(_as_labels(values, path), grid, (path,), notes, open_ended=True)
    nifti = open_nifti(path)
    if nifti.values.ndim != 3:
        raise InputError(f"{path}: an array of shape {nifti.values.shape}; a mask has three axes")
    return _of_volume(_as_labels(nifti.values, path), nifti.grid, (path,), nifti.notes)


def _read_slices(case: str, found: tuple[tuple[int, Path], ...]) -> Mask:
    numbers, paths, voxels = stack_slices(case, tuple(sorted(found)), _read_slice)
    return Mask(voxels, None, numbers, paths)


def _read_slice(path: Path) -> np.ndarray:
    values = read_image(path)
    if values.ndim != 2:
        raise InputError(f"{path}: a color image; a mask has one channel")
    return _as_labels(values, path)


def _as_labels(values: np.ndarray, path: Path) -> np.ndarray:
    """Values as uint8; what is near 0 and near 1, or near 0 and near 255, is a mask, whatever its rounding."""
    if values.dtype == np.uint8:
        return values
    found = np.unique(values)
    for one in (1, 255):
        distances = np.minimum(np.abs(found - float(one)), np.abs(found - 0.0))
        if (distances <= _NEAR * one).all():
            return np.where(values > one / 2, np.uint8(one), np.uint8(0))
    with np.errstate(invalid="ignore"):
        labels = np.round(found.astype(np.float64))
        near = np.abs(found - labels) <= _NEAR * np.maximum(1.0, labels)
    if (near & (labels >= 0) & (labels <= 255)).all():
        return np.round(values).astype(np.uint8)
    listed = ", ".join(f"{value:.9g}" for value in found[:8]) + (", ..." if len(found) > 8 else "")
    raise InputError(
        f"{path}: values {listed}; a mask holds 0 and 1, or 0 and 255, or labels that are whole numbers from 0 to 255"
    )


def _distinct(labels: np.ndarray) -> np.ndarray:
    """`np.unique` of labels [S, H, W] uint8, in a quarter of its time."""
    return np.flatnonzero(sum(np.bincount(one.ravel(), minlength=256) for one in labels))
