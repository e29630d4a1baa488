"""Converts masks to a DICOM segmentation (SEG) that refers to the input series.

highdicom copies tags from the headers of the series, but rejects invalid values, which are common in archives. So it
gets new headers with the few tags that a SEG needs: geometry, and cleaned tags of patient and study.
"""

import datetime
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from brainseg_jax.scans.description import LGG, Description
from brainseg_jax.scans.dicom_file import quieten, text
from brainseg_jax.scans.dicom_frames import Frame

if TYPE_CHECKING:
    from pydicom import Dataset

_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_REQUIRED_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")


class NoSegmentation(Exception):
    """The headers of a series do not allow a SEG; the message gives the reason."""


def make_segmentation(
    frames: list[Frame], masks: np.ndarray, description: Description, words: Sequence[str] = ()
) -> "Dataset":
    """Creates a SEG with one segment per target; segments may overlap.

    Args:
      frames: of the series, in spatial order.
      masks: [frames, rows, columns, K] bool.
      description: of the K targets; their names label the segments.
      words: one text per mask, for the descriptions of segment and series; may be empty.

    Raises:
      NoSegmentation: the headers do not allow one.
    """
    quieten()
    try:
        sources = _sources(frames)
        order = np.arange(len(frames))
        if len(sources) < len(frames):  # one file with all frames: highdicom expects the order of the file
            order = np.argsort([frame.index for frame in frames])
        result = _segmentation(sources, masks[order], description, words)
        _check_writable(result)
        return result
    except NoSegmentation:
        raise
    except Exception as error:  # highdicom raises many exception types, and the caller must still save the mask
        raise NoSegmentation(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def header_notes(frames: list[Frame]) -> list[str]:
    """Notes on invalid header values that the SEG replaces or leaves empty."""
    header = frames[0].header
    notes = [
        f"its header has no valid {name}: its SEG gets a new one" for name in _REQUIRED_UIDS if not _uid(header, name)
    ]
    emptied = [name for name, clean in _COPIED.items() if text(header, name) and not clean(text(header, name))]
    return notes + [f"{name} is invalid by the DICOM standard, and is empty in its SEG" for name in emptied]


def _date(value: str) -> str:
    digits = re.sub(r"[.\-/ ]", "", value)
    try:
        return datetime.datetime.strptime(digits, "%Y%m%d").strftime("%Y%m%d") if len(digits) == 8 else ""
    except ValueError:
        return ""


def _time(value: str) -> str:
    match = re.fullmatch(r"([01][0-9]|2[0-3])(?::?([0-5][0-9])(?::?([0-5][0-9])(\.[0-9]{1,6})?)?)?", value)
    return "".join(part or "" for part in match.groups()) if match else ""


def _sex(value: str) -> str:
    codes = {"M": "M", "MALE": "M", "F": "F", "FEMALE": "F", "O": "O", "OTHER": "O"}
    return codes.get(value.upper(), "")


def _text_line(length: int) -> Callable[[str], str]:
    """A function that replaces forbidden characters, and cuts a text to a maximum length."""
    return lambda value: "".join(" " if letter == "\\" or ord(letter) < 32 else letter for letter in value)[:length]


_COPIED: dict[str, Callable[[str], str]] = {
    "PatientID": _text_line(64),
    "PatientName": _text_line(64),
    "PatientBirthDate": _date,
    "PatientSex": _sex,
    "StudyDate": _date,
    "StudyTime": _time,
    "StudyID": _text_line(16),
    "AccessionNumber": _text_line(16),
    "ReferringPhysicianName": _text_line(64),
    "StudyDescription": _text_line(64),
}


def _uid(header: "Dataset", name: str) -> str:
    value = text(header, name)
    return value if len(value) <= 64 and _UID.fullmatch(value) else ""


def _sources(frames: list[Frame]) -> "list[Dataset]":
    """New headers with the tags that a SEG needs, one per file."""
    from pydicom import Dataset
    from pydicom.uid import generate_uid

    headers = list({id(frame.header): frame.header for frame in frames}.values())
    instances = [_uid(header, "SOPInstanceUID") for header in headers]
    if not all(instances) or len(set(instances)) < len(headers) or not _uid(headers[0], "SOPClassUID"):
        raise NoSegmentation(
            "its files have no SOPClassUID and SOPInstanceUID, or share one, so a SEG cannot refer to them"
        )
    common = Dataset()
    common.SpecificCharacterSet = "ISO_IR 192"
    common.Modality = "MR"
    common.Manufacturer = ""
    common.LossyImageCompression = "01" if text(headers[0], "LossyImageCompression") == "01" else "00"
    common.Rows, common.Columns = frames[0].shape
    for name in _REQUIRED_UIDS:
        setattr(common, name, _uid(headers[0], name) or generate_uid())
    for name, clean in _COPIED.items():
        setattr(common, name, clean(text(headers[0], name)))
    common.update(_geometry(frames))
    sources = []
    for header, instance in zip(headers, instances, strict=True):
        frames_of_file = [frame for frame in frames if frame.header is header]
        source = Dataset()
        source.update(common)
        source.SOPClassUID, source.SOPInstanceUID = _uid(headers[0], "SOPClassUID"), instance
        source.ImagePositionPatient = _decimals(frames_of_file[0].position)
        if "PerFrameFunctionalGroupsSequence" in header:
            _add_groups(source, header, frames_of_file)
        sources.append(source)
    return sources


def _geometry(frames: list[Frame]) -> "Dataset":
    """Directions and spacing, common to all frames. A missing thickness is replaced by the slice distance."""
    from pydicom import Dataset

    geometry, first = Dataset(), frames[0]
    geometry.ImageOrientationPatient = _decimals(first.directions.ravel())
    geometry.PixelSpacing = _decimals(first.pixel_spacing)
    distance = np.cross(*first.directions) @ (frames[1].position - first.position) if len(frames) > 1 else 1.0
    geometry.SliceThickness = _decimals([first.thickness or distance])[0]
    if len(frames) > 1:  # perpendicular to the images, even with a tilted gantry
        length = np.cross(*first.directions) @ (frames[-1].position - first.position)
        geometry.SpacingBetweenSlices = _decimals([length / (len(frames) - 1)])[0]
    return geometry


def _add_groups(source: "Dataset", header: "Dataset", frames: list[Frame]) -> None:
    """Adds the functional groups of a file with several frames: orientation, spacing and positions."""
    from pydicom import Dataset

    count = len(header.PerFrameFunctionalGroupsSequence)
    if count != len(frames):
        raise NoSegmentation(f"{count - len(frames)} images of its file are left out")
    orientation, measures = Dataset(), _geometry(frames)
    orientation.ImageOrientationPatient = measures.ImageOrientationPatient
    del measures.ImageOrientationPatient
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    source.NumberOfFrames, source.SharedFunctionalGroupsSequence = count, [shared]
    groups = []
    for frame in sorted(frames, key=lambda frame: frame.index):
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = _decimals(frame.position)
        group.PlanePositionSequence = [position]
        groups.append(group)
    source.PerFrameFunctionalGroupsSequence = groups


def _decimals(values: "np.ndarray | list[float]") -> list[str]:
    """Formats numbers as DICOM decimal strings of at most 16 characters."""
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(value)) for value in values]


def _check_writable(segmentation: "Dataset") -> None:
    """Raises if the SEG cannot be encoded, before a file is created."""
    from io import BytesIO

    segmentation.save_as(BytesIO())


def _segmentation(
    sources: "list[Dataset]", masks: np.ndarray, description: Description, words: Sequence[str]
) -> "Dataset":
    import highdicom as hd
    from pydicom.sr.codedict import codes

    # The meaning of the LGG target is known. Other targets have only a name, so their code is just "tissue".
    if description == LGG:
        labels = ["FLAIR abnormality"]
        category, kind = codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Neoplasm
    else:
        labels = [_text_line(64)(name) for name in description.names]
        category = kind = codes.SCT.Tissue
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=category,
            segmented_property_type=kind,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=hd.AlgorithmIdentificationSequence(
                name="brainseg_jax", family=codes.DCM.ArtificialIntelligence, version="1"
            ),
        )
        for number, label in enumerate(labels, start=1)
    ]
    for segment, text_of_segment in zip(segments, words, strict=False):
        segment.SegmentDescription = text_of_segment
    series_description = f"Predicted, {words[0]}" if len(words) == 1 else "Predicted masks"
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=masks.astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        omit_empty_frames=bool(masks.any()),
        series_instance_uid=hd.UID(),
        series_number=100,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="brainseg_jax",
        manufacturer_model_name="brainseg_jax",
        software_versions="1",
        device_serial_number="none",
        series_description=_text_line(64)(series_description),
        content_description="Predicted; research only, not a medical device",
    )
