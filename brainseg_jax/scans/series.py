"""Scans that lie in folders as DICOM series, a file a slice; masks become DICOM segmentations (SEG)."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.files import write_whole
from brainseg_jax.scans.grid import Grid
from brainseg_jax.scans.scan import MASK, ONE_SLICE, Scan, Source
from brainseg_jax.scans.sequences import ALL, CHANNELS, FLAIR, to_channels

if TYPE_CHECKING:  # an extra, and slow to import: only where there is a series to read
    from pydicom import Dataset

_SUFFIXES = (".dcm", ".ima", ".dicom")
_NEEDED = ("PixelData", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SeriesInstanceUID")
_SAME = ("SeriesInstanceUID", "Rows", "Columns", "ImageOrientationPatient", "PixelSpacing")
# A segmentation repeats them from its series, where anonymization may have taken them out; they may be empty.
_REPEATED = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
_REPEATED += ("AccessionNumber", "ReferringPhysicianName", "Manufacturer")


@dataclasses.dataclass(frozen=True, eq=False)
class SeriesScan(Scan):
    """A scan read from DICOM.

    Attributes:
      slices: files of FLAIR, in order along the series.
      grid: of them: columns, rows, slices.
    """

    slices: "list[Dataset]"
    grid: Grid

    def write(self, kind: str, values: np.ndarray, paths: list[Path]) -> None:
        """See `Scan.write`: a mask is a binary SEG that refers to the slices, other maps are NIfTI."""
        (path,) = paths
        volume = self.grid.from_slices(values)
        if kind == MASK:
            write_whole(path, _segmentation(self.slices, volume.transpose(2, 1, 0)).save_as)
        else:
            write_whole(path, partial(nib.save, nib.Nifti1Image(volume.astype(np.float32), self.grid.affine)))


@dataclasses.dataclass(frozen=True)
class SeriesSource(Source):
    """Series of one case.

    Attributes:
      files: of each series by sequence, or of one at `ALL`, which is taken as FLAIR.
    """

    files: Mapping[str, tuple[Path, ...]]

    def read(self) -> SeriesScan:
        """See `Source.read`."""
        flair = self.files[ALL] if ALL in self.files else self.files[FLAIR]
        folder = flair[0].parent
        slices, volume, grid = _read_series(folder, flair)
        volumes, notes = {FLAIR: volume}, list(self.notes)
        for sequence in [name for name in CHANNELS if name in self.files and name != FLAIR]:
            other = self.files[sequence]
            _, volumes[sequence], own = _read_series(other[0].parent, other)
            grid.check_same(own, other[0].parent, folder)
        if description := str(slices[0].get("SeriesDescription", "")):
            notes.append(f"the series taken as FLAIR calls itself {description!r}")
        if (modality := slices[0].get("Modality")) != "MR":
            notes.append(f"its modality is {modality}, and the networks know MR")
        notes += [ONE_SLICE] if len(slices) == 1 else []
        voxels, of_values = to_channels(grid, volumes, folder)
        numbers = grid.slice_numbers
        if grid.slice_axis == 2:  # else the slices are cut across the series, and have no number there
            numbers = tuple(int(slices[place].get("InstanceNumber") or place + 1) for place in numbers)
        return SeriesScan(voxels, grid.spacing, numbers, (*notes, *of_values), slices, grid)

    def outputs(self, kind: str) -> list[Path]:
        """See `Source.outputs`: one file."""
        return [self.place / f"{self.stem}_{kind}{'.dcm' if kind == MASK else '.nii.gz'}"]


def is_dicom(path: Path) -> bool:
    """Whether the name, or else the mark that begins a DICOM file, says so; a directory of a disc is no scan."""
    if path.name == "DICOMDIR":
        return False
    if path.suffix.lower() in _SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def check_packages() -> None:
    """Raises InputError where the packages that read and write DICOM are not installed."""
    try:
        import highdicom  # noqa: F401
        import pydicom  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"DICOM needs packages that are not installed ({error}); install them, and start again: "
            "python -m pip install -e '.[dicom]' -c constraints.txt"
        ) from error


def _read_series(folder: Path, paths: tuple[Path, ...]) -> "tuple[list[Dataset], np.ndarray, Grid]":
    """The slices of one series in order along it, its values [columns, rows, slices], and its grid."""
    from pydicom.pixels import apply_rescale

    slices = [_read_file(path) for path in paths]
    for path, one in zip(paths, slices, strict=True):
        for name in _SAME:
            if not _alike(one[name].value, slices[0][name].value):
                raise InputError(
                    f"{path}: {name} {one[name].value}, but {slices[0][name].value} in {paths[0].name}; give the "
                    "slices of one series in a folder"
                )
    across = np.cross(*np.reshape(np.array(slices[0].ImageOrientationPatient, float), (2, 3)))
    depths = [float(across @ np.array(one.ImagePositionPatient, float)) for one in slices]
    order = np.argsort(depths)
    slices, paths = [slices[place] for place in order], [paths[place] for place in order]
    _check_steps(np.sort(depths), paths)
    try:
        frames = [apply_rescale(one.pixel_array, one) for one in slices]
    except Exception as error:  # pydicom's decoders raise many kinds on damaged or compressed pixels
        raise InputError(
            f"{folder}: its pixels cannot be decoded ({error}); write the series without compression, or get a new copy"
        ) from error
    try:
        return slices, np.stack(frames).transpose(2, 1, 0), _grid(slices)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None


def _read_file(path: Path) -> "Dataset":
    import pydicom

    try:
        one = pydicom.dcmread(path)
        missing = [name for name in _NEEDED if not one.get(name)]
    except Exception as error:  # pydicom raises many kinds on damaged bytes; each means this one file
        raise InputError(f"{path}: not a DICOM file, or a damaged one ({error})") from error
    if missing:
        raise InputError(f"{path}: no {', '.join(missing)} in it, so it is no slice of a series; take it out")
    frames, samples = int(one.get("NumberOfFrames") or 1), int(one.SamplesPerPixel)
    if frames > 1 or samples > 1 or one.PhotometricInterpretation != "MONOCHROME2":
        raise InputError(
            f"{path}: {frames} frame(s), {samples} value(s) a pixel, {one.PhotometricInterpretation}; give a file a "
            "slice, MONOCHROME2, or convert the series to NIfTI (dcm2niix)"
        )
    for name in _REPEATED:
        if name not in one:
            setattr(one, name, "")
    return one


def _alike(a: object, b: object) -> bool:
    if isinstance(a, (str, int)):
        return a == b
    return np.allclose(np.array(a, float), np.array(b, float), atol=1e-3)


def _check_steps(depths: np.ndarray, paths: list[Path]) -> None:
    """Raises InputError where slices lie in one place, or not at even distances, as where one is missing."""
    steps = np.diff(depths)
    if not len(steps):
        return
    usual = float(np.median(steps))
    for step, before, after in zip(steps, paths, paths[1:], strict=False):
        if step < 1e-3:
            raise InputError(
                f"{after}: a second slice in the place of {before.name}; give one series of one time point"
            )
        if abs(step - usual) > 0.1 * usual:
            raise InputError(
                f"{before.parent}: a gap in the series: from {before.name} to {after.name} are {step:.2f} mm, "
                f"elsewhere {usual:.2f} mm; put back the slices that are missing"
            )


def _grid(slices: "list[Dataset]") -> Grid:
    first, last = (np.array(slices[place].ImagePositionPatient, float) for place in (0, -1))
    along_row, along_column = np.reshape(np.array(slices[0].ImageOrientationPatient, float), (2, 3))
    row_gap, column_gap = (float(gap) for gap in slices[0].PixelSpacing)
    if len(slices) > 1:
        step = (last - first) / (len(slices) - 1)
    else:
        step = np.cross(along_row, along_column) * float(slices[0].get("SliceThickness") or 1.0)
    affine = np.eye(4)
    affine[:3] = np.stack([along_row * column_gap, along_column * row_gap, step, first], axis=1)
    affine[:2] *= -1.0  # DICOM's axes run to the left and to the back
    return Grid(affine, (int(slices[0].Columns), int(slices[0].Rows), len(slices)))


def _segmentation(slices: "list[Dataset]", mask: np.ndarray) -> "Dataset":
    """A SEG of one segment; mask [slices, rows, columns] bool."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="FLAIR abnormality",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Neoplasm,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="brainseg_jax", family=codes.DCM.ArtificialIntelligence, version="1"
        ),
    )
    return hd.seg.Segmentation(
        source_images=slices,
        pixel_array=mask.astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        series_instance_uid=hd.UID(),
        series_number=100,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="brainseg_jax",
        manufacturer_model_name="brainseg_jax",
        software_versions="1",
        device_serial_number="none",
        content_description="Predicted; research only, not a medical device",
    )
