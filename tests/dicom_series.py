"""Synthetic DICOM series for the tests: classic (one file per slice) and enhanced (one file for all slices)."""

from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from brainseg_jax.scans.sequences import ALL
from brainseg_jax.scans.series import SeriesScan, SeriesSource

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # columns run to the left, rows to the back
STUDY, FRAME = generate_uid(), generate_uid()


def header(shape, storage=MRImageStorage, series=None):
    """A data set with the attributes that all images of a series share; no pixels, no position."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = storage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    one.SOPClassUID, one.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
    one.StudyInstanceUID, one.FrameOfReferenceUID = STUDY, FRAME
    one.SeriesInstanceUID = series or generate_uid()
    one.PatientID, one.PatientName, one.Modality, one.SeriesNumber = "P1", "Made^Up", "MR", 3
    one.Rows, one.Columns = shape
    one.SamplesPerPixel, one.PhotometricInterpretation, one.PixelRepresentation = 1, "MONOCHROME2", 0
    one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
    return one


def write_series(folder, frames, *, orientation=AXIAL, step=5.0, change=None, study=STUDY):
    """Writes a file per frame [S, rows, columns], `step` mm apart, names unordered; `change(dataset, number)` last."""
    folder.mkdir(parents=True)
    series, across = generate_uid(), np.cross(orientation[:3], orientation[3:])
    for number, frame in enumerate(frames, start=1):
        one = header(frame.shape, series=series)
        one.StudyInstanceUID = study
        one.InstanceNumber, one.SliceThickness, one.PixelSpacing = number, step, [1.0, 1.0]
        one.ImageOrientationPatient = list(orientation)
        one.ImagePositionPatient = [float(x) for x in -100.0 + across * step * (number - 1)]
        one.PixelData = frame.astype(np.uint16).tobytes()
        if change:
            change(one, number)
        one.save_as(folder / f"{number * 577 % 1009:04d}.dcm", enforce_file_format=True)
    return folder


def write_enhanced(path, frames, depths, *, change=None):
    """Writes one file of axial frames, [S, rows, columns], at `depths` mm; calls `change(dataset)` last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    one = header(frames[0].shape, EnhancedMRImageStorage)
    one.InstanceNumber, one.NumberOfFrames, shared = 1, len(frames), Dataset()
    shared.PlaneOrientationSequence = [tags(ImageOrientationPatient=list(AXIAL))]
    shared.PixelMeasuresSequence = [tags(PixelSpacing=[0.5, 2.0], SliceThickness=4.0)]
    shared.PixelValueTransformationSequence = [tags(RescaleSlope=2.0, RescaleIntercept=10.0)]
    one.SharedFunctionalGroupsSequence = [shared]
    one.PerFrameFunctionalGroupsSequence = [
        tags(PlanePositionSequence=[tags(ImagePositionPatient=[-100.0, -100.0, depth])]) for depth in depths
    ]
    one.PixelData = frames.astype(np.uint16).tobytes()
    if change:
        change(one)
    one.save_as(path, enforce_file_format=True)
    return path


def tags(**values):
    """A data set with these tags."""
    made = Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def raw_tag(one, name, text):
    """Sets a tag to any text without checks, as other software may write it."""
    tag = pydicom.datadict.tag_for_keyword(name)
    vr = pydicom.datadict.dictionary_VR(tag)
    one[name] = pydicom.dataelem.RawDataElement(
        pydicom.tag.Tag(tag), vr, len(text), text.encode("latin-1"), 0, False, True
    )


def source_of(folder: Path, name="P1") -> SeriesSource:
    """The files of a folder as one series, taken as FLAIR."""
    return SeriesSource(name, Path(), {ALL: tuple(sorted(folder.iterdir()))})


def read_series(folder: Path) -> SeriesScan:
    """Reads the files of a folder as one series."""
    return source_of(folder).read()


def notes_of(scan: SeriesScan) -> list[str]:
    """The notes, except those that any series with only FLAIR has."""
    usual = ("used as FLAIR; the", "FLAIR: values")
    return [note for note in scan.notes if not note.startswith(usual)]


def read_segmentation(path, count):
    """The mask [S, rows, columns], ordered by the depth of the referenced slices, and the file."""
    seg = hd.seg.segread(path)
    uids = [uid for _, _, uid in seg.get_source_image_uids()]
    mask = seg.get_pixels_by_source_instance(uids, combine_segments=True, ignore_spatial_locations=False)
    assert len(uids) == count
    return mask, uids, seg


def in_order(folder):
    """SOP instances of a series by instance number."""
    read = [pydicom.dcmread(path) for path in folder.iterdir()]
    return [one.SOPInstanceUID for one in sorted(read, key=lambda one: one.InstanceNumber)]
