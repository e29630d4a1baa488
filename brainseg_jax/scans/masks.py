"""Reads a folder of masks or label maps, predicted or reference, in any supported file format."""

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
_MASK_ENDING = re.compile(r"_(?:mask|pred)$")
_NEAR = 1e-3  # relative tolerance for values that were rounded or scaled
# Other files that `predict` writes beside its masks.
_MAP_FILES = re.compile(r".+_(?:probability|uncertainty)(?:\.nii(?:\.gz)?|\.hdr|\.img|(?:_[0-9]+)?\.tiff?)")
_EXTRA_FILES = re.compile(r".+_overlay\.png|predictions\.csv|areas\.csv")
# Other files that nnU-Net writes beside its label maps.
_NNUNET_FILES = re.compile(r"(?:dataset|plans|predict_from_raw_data_args|summary)\.json")


@dataclass(frozen=True)
class MaskFiles:
    """The files of the mask of one case.

    Attributes:
      case: its name.
      slices: numbers and files of single slices, unsorted.
      volumes: files of a whole volume each.
    """

    case: str
    slices: tuple[tuple[int, Path], ...] = ()
    volumes: tuple[Path, ...] = ()

    def read(self) -> "Mask":
        """Reads the mask; raises InputError, which names the files, if the mask is invalid."""
        if len(self.volumes) + bool(self.slices) > 1:
            files = [path for _, path in self.slices] + list(self.volumes)
            listed = ", ".join(str(path) for path in files[:4])
            raise InputError(f"{self.case}: more than one mask: {listed}; keep one")
        return _read_volume(self.volumes[0]) if self.volumes else _read_slices(self.case, self.slices)


@dataclass(frozen=True)
class MaskInfo:
    """Metadata of the mask of one case, without its voxels.

    Attributes:
      spacing: see `Mask.spacing`.
      source: the first file.
      first_files: for each label except 0, in ascending order, the first file that contains it.
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
        """The labels in the mask, without 0."""
        return tuple(self.first_files)


@dataclass(frozen=True, eq=False)
class Mask:
    """The mask or label map of one case.

    Attributes:
      labels: [S, H, W] uint8, the values of the file: 0 and 1, 0 and 255, or labels. Volumes are turned to axial slices
        from foot to crown by `Grid.to_slices`; slices from single files stay as they are.
      spacing: mm between voxels (slice, row, column); None for single files, which do not store it.
      numbers: of the slices, from the names of their files; None for a volume.
      sources: one file per slice, or one file for all.
      grid: of a volume in its file; None for single files.
      open_ended: whether the file may lack empty slices (before, after or between the others), as a DICOM segmentation.
      notes: what a user must know about the files.
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
        """Whether a voxel has any label, [S, H, W] bool."""
        return self.labels > 0

    @property
    def info(self) -> MaskInfo:
        """The metadata, which does not keep the voxels in memory."""
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
        return zlib.crc32(np.ascontiguousarray(self.labels).data)

    def _source_of(self, value: int) -> Path:
        """The first file that contains a label."""
        if len(self.sources) == 1:
            return self.sources[0]
        return self.sources[int((self.labels == value).any(axis=(1, 2)).argmax())]

    @property
    def volume(self) -> np.ndarray:
        """The labels on `grid`, [I, J, K] uint8."""
        assert self.grid is not None  # the mask is a volume
        return self.grid.from_slices(self.labels)

    def on(self, grid: Grid) -> "Mask":
        """The mask on another grid of the same voxels; see `Grid.turned_onto`."""
        assert self.grid is not None  # the mask is a volume
        return _of_volume(self.grid.turned_onto(grid, self.volume), grid, self.sources, self.notes)

    def widened(self, grid: Grid) -> "Mask":
        """The mask with empty slices added until it spans `grid`; unchanged if it is not `open_ended`."""
        if not self.open_ended:
            return self
        assert self.grid is not None  # an open-ended mask is a volume
        wider, before, after = self.grid.widened(grid)
        volume = np.pad(self.volume, ((0, 0), (0, 0), (before, after)))
        return _of_volume(volume, wider, self.sources, self.notes, open_ended=True)


def _of_volume(
    volume: np.ndarray, grid: Grid, sources: tuple[Path, ...], notes: tuple[str, ...], *, open_ended: bool = False
) -> Mask:
    """A mask from labels [I, J, K] uint8 on their grid."""
    return Mask(grid.to_slices(volume), grid.spacing, None, sources, grid, open_ended, notes)


def find_masks(folder: Path) -> dict[str, MaskFiles]:
    """Finds the files of all masks in a folder and its subfolders, without opening them; follows links.

    - Slices: `<case>_<n>_mask` or `<case>_<n>_pred`, `.tif` or `.png`, in one folder or nested as in the Kaggle set.
      Their numbers have no gap. A name without a number is a case of one slice.
    - Volumes: `<case>`, `<case>_mask` or `<case>_pred`, `.nii`, `.nii.gz` or a pair `.hdr` and `.img`.
    - DICOM segmentations: `<case>_pred.dcm`, `<case>_mask.dcm` or `<case>_seg.dcm`; segment n has label n.

    Values are 0 and 1, 0 and 255, or labels from 0 to 255, within a tolerance of 0.1 %. A warning lists all other files
    with the reasons, except those that `predict` and nnU-Net write beside their masks.

    Returns:
      the files by name of the case, sorted by name.

    Raises:
      InputError: there is no mask.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a folder of masks")
    slices: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    volumes: dict[str, list[Path]] = defaultdict(list)
    passed_over = new()
    for path in walk(folder, passed_over):
        is_extra = any(pattern.fullmatch(path.name) for pattern in (_MAP_FILES, _EXTRA_FILES, _NNUNET_FILES))
        if is_extra or is_image_of_pair(path):
            continue
        if is_nifti(path):
            volumes[_MASK_ENDING.sub("", stem(path))].append(path)
        elif match := _SEG.fullmatch(path.name):
            volumes[match["case"]].append(path)
        elif match := _SLICE.fullmatch(path.name):
            slices[match["case"]].append((int(match["number"] or 1), path))
        else:
            passed_over[_reason_for_no_mask(path)].append(path)
    listed = list_passed_over(passed_over, folder)
    if not slices and not volumes:
        raise InputError(
            f"{folder}: no mask in it; a mask is named <case>_<n>_mask.tif, <case>_<n>_pred.tif, <case>.nii.gz, "
            f"<case>_pred.nii.gz or <case>_pred.dcm{_passed_over_lines(listed)}"
        )
    if listed:
        logging.warning("%s: not all files are masks%s", folder, _passed_over_lines(listed))
    return {
        case: MaskFiles(case, tuple(slices.get(case, ())), tuple(volumes.get(case, ())))
        for case in sorted(slices.keys() | volumes.keys())
    }


def describe_faults(folder: Path, faults: list[str]) -> str:
    """The message that lists the invalid masks of a folder."""
    return f"{folder}: masks that cannot be used:\n" + "\n".join(faults)


def _reason_for_no_mask(path: Path) -> str:
    if path.suffix.lower() in UNREAD:
        return "an unsupported format; convert masks to NIfTI (.nii.gz)"
    return "not a mask by its name"


def _passed_over_lines(listed: list[str]) -> str:
    return "; passed over:" + "".join(f"\n  {line}" for line in listed) if listed else ""


def _read_volume(path: Path) -> Mask:
    if _SEG.fullmatch(path.name):
        values, grid, notes = read_seg(path)
        return _of_volume(_as_labels(values, path), grid, (path,), notes, open_ended=True)
    nifti = open_nifti(path)
    if nifti.values.ndim != 3:
        raise InputError(f"{path}: an array of shape {nifti.values.shape}; a mask has three axes")
    return _of_volume(_as_labels(nifti.values, path), nifti.grid, (path,), nifti.notes)


def _read_slices(case: str, files: tuple[tuple[int, Path], ...]) -> Mask:
    numbers, paths, voxels = stack_slices(case, tuple(sorted(files)), _read_slice)
    return Mask(voxels, None, numbers, paths)


def _read_slice(path: Path) -> np.ndarray:
    values = read_image(path)
    if values.ndim != 2:
        raise InputError(f"{path}: a color image; a mask has one channel")
    return _as_labels(values, path)


def _as_labels(values: np.ndarray, path: Path) -> np.ndarray:
    """Rounds values to uint8 labels; values near 0 and 1, or near 0 and 255, form a mask."""
    if values.dtype == np.uint8:
        return values
    distinct = np.unique(values)
    for foreground in (1, 255):
        distances = np.minimum(np.abs(distinct - float(foreground)), np.abs(distinct - 0.0))
        if (distances <= _NEAR * foreground).all():
            return np.where(values > foreground / 2, np.uint8(foreground), np.uint8(0))
    with np.errstate(invalid="ignore"):
        labels = np.round(distinct.astype(np.float64))
        near = np.abs(distinct - labels) <= _NEAR * np.maximum(1.0, labels)
    if (near & (labels >= 0) & (labels <= 255)).all():
        return np.round(values).astype(np.uint8)
    listed = ", ".join(f"{value:.9g}" for value in distinct[:8]) + (", ..." if len(distinct) > 8 else "")
    raise InputError(
        f"{path}: values {listed}; a mask has values 0 and 1, or 0 and 255, or whole numbers from 0 to 255 as labels"
    )


def _distinct(labels: np.ndarray) -> np.ndarray:
    """`np.unique` of labels [S, H, W] uint8, four times as fast."""
    return np.flatnonzero(sum(np.bincount(image.ravel(), minlength=256) for image in labels))
