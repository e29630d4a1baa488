"""Masks as a DICOM segmentation (SEG) that refers to the series they were predicted on.

highdicom copies from the series' headers, and is stricter than what archives hold. So it is given new headers, with the
few tags that a SEG needs: the place of each image as it was read, and what is known of patient and study, cleaned.
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
_NEEDED_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")


class NoSegmentation(Exception):
    """No SEG can be made of a series; the message says why."""


def make_segmentation(
    frames: list[Frame], masks: np.ndarray, description: Description, words: Sequence[str] = ()
) -> "Dataset":
    """A SEG with a segment for each target; they may overlap.

    Args:
      frames: of the series, in order along it.
      masks: [frames, rows, columns, K] bool.
      description: of the K targets, whose names label the segments.
      words: what is known of each mask, for the descriptions of segment and series; may be left out.

    Raises:
      NoSegmentation: their headers do not allow one.
    """
    quieten()
    try:
        sources = _sources(frames)
        order = np.arange(len(frames))
        if len(sources) < len(frames):  # one file of all: highdicom takes them in the file's order
            order = np.argsort([frame.index for frame in frames])
        made = _segmentation(sources, masks[order], description, words)
        _check_written(made)
        return made
    except NoSegmentation:
        raise
    except Exception as error:  # highdicom raises many kinds; whatever it is, the mask must not be lost
        raise NoSegmentation(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def header_notes(frames: list[Frame]) -> list[str]:
    """What of the header cannot be repeated in the SEG."""
    header = frames[0].header
    notes = [
        f"its header has no valid {name}: its SEG gets a new one" for name in _NEEDED_UIDS if not _uid(header, name)
    ]
    emptied = [name for name, clean in _REPEATED.items() if text(header, name) and not clean(text(header, name))]
    return notes + [f"{name} is not as the standard wants it, and is empty in its SEG" for name in emptied]


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
    known = {"M": "M", "MALE": "M", "F": "F", "FEMALE": "F", "O": "O", "OTHER": "O"}
    return known.get(value.upper(), "")


def _line(length: int) -> Callable[[str], str]:
    """Cuts to what a line of text may hold."""
    return lambda value: "".join(" " if letter == "\\" or ord(letter) < 32 else letter for letter in value)[:length]


_REPEATED: dict[str, Callable[[str], str]] = {
    "PatientID": _line(64),
    "PatientName": _line(64),
    "PatientBirthDate": _date,
    "PatientSex": _sex,
    "StudyDate": _date,
    "StudyTime": _time,
    "StudyID": _line(16),
    "AccessionNumber": _line(16),
    "ReferringPhysicianName": _line(64),
    "StudyDescription": _line(64),
}


def _uid(header: "Dataset", name: str) -> str:
    value = text(header, name)
    return value if len(value) <= 64 and _UID.fullmatch(value) else ""


def _sources(frames: list[Frame]) -> "list[Dataset]":
    """New headers of the files, with what a SEG needs of them."""
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
    for name in _NEEDED_UIDS:
        setattr(common, name, _uid(headers[0], name) or generate_uid())
    for name, clean in _REPEATED.items():
        setattr(common, name, clean(text(headers[0], name)))
    common.update(_geometry(frames))
    made = []
    for header, instance in zip(headers, instances, strict=True):
        own = [frame for frame in frames if frame.header is header]
        source = Dataset()
        source.update(common)
        source.SOPClassUID, source.SOPInstanceUID = _uid(headers[0], "SOPClassUID"), instance
        source.ImagePositionPatient = _decimals(own[0].position)
        if "PerFrameFunctionalGroupsSequence" in header:
            _add_groups(source, header, own)
        made.append(source)
    return made


def _geometry(frames: list[Frame]) -> "Dataset":
    """Directions and spacing, the same for all; the distance is the thickness where the header has none."""
    from pydicom import Dataset

    made, first = Dataset(), frames[0]
    made.ImageOrientationPatient = _decimals(first.directions.ravel())
    made.PixelSpacing = _decimals(first.gaps)
    away = np.cross(*first.directions) @ (frames[1].position - first.position) if len(frames) > 1 else 1.0
    made.SliceThickness = _decimals([first.thickness or away])[0]
    if len(frames) > 1:  # at a right angle to the images, also of a tilted gantry
        whole = np.cross(*first.directions) @ (frames[-1].position - first.position)
        made.SpacingBetweenSlices = _decimals([whole / (len(frames) - 1)])[0]
    return made


def _add_groups(source: "Dataset", header: "Dataset", frames: list[Frame]) -> None:
    """The places of the images of one file, as its functional groups say them."""
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
    """Numbers in the 16 characters that DICOM has for one."""
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(value)) for value in values]


def _check_written(made: "Dataset") -> None:
    """Raises where the SEG cannot be written, before a file is begun."""
    from io import BytesIO

    made.save_as(BytesIO())


def _segmentation(
    sources: "list[Dataset]", masks: np.ndarray, description: Description, words: Sequence[str]
) -> "Dataset":
    import highdicom as hd
    from pydicom.sr.codedict import codes

    # What the LGG set marks is known. Of other targets only the name is, so the code says no more than tissue.
    if description == LGG:
        labels = ["FLAIR abnormality"]
        category, kind = codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Neoplasm
    else:
        labels = [_line(64)(name) for name in description.names]
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
    for segment, said in zip(segments, words, strict=False):
        segment.SegmentDescription = said
    of_series = f"Predicted, {words[0]}" if len(words) == 1 else "Predicted masks"
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
        series_description=_line(64)(of_series),
        content_description="Predicted; research only, not a medical device",
    )
