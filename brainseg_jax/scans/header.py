"""Reads from the header of a DICOM file what identifies its series and sequence; does not read pixels."""

import math
import warnings
import zlib
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brainseg_jax.scans.sequences import FLAIR, OTHER, POST, PRE

if TYPE_CHECKING:  # optional and slow to import, so functions import it where they need it
    from pydicom import Dataset

_TAGS = (
    *("SOPClassUID", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    "StudyDate",
    *("SeriesNumber", "SeriesDescription", "ProtocolName", "SequenceName", "ImageType", "AcquisitionContrast"),
    *("ScanningSequence", "InversionTime", "EchoTime", "RepetitionTime", "ContrastBolusAgent", "AngioFlag"),
    *("Rows", "Columns", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
)
_LAST_TAG = 0x00280030  # PixelSpacing; tags are in ascending order
_MOST_HEADER = 2**18  # maximum bytes to read or unpack for these tags
_NO_AGENT = {"", "NONE", "NO", "N", "0", "NULL", "UNKNOWN", "NO CONTRAST", "WITHOUT"}
# AcquisitionContrast of enhanced MR: DICOM PS3.3, C.8.13.3.
_ACQUIRED = {"FLUID_ATTENUATED": FLAIR, "T1": PRE, "T2": OTHER, "T2_STAR": OTHER, "PROTON_DENSITY": OTHER}
_MR_IMAGES = {f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("4", "4.1", "4.3", "4.4")}  # SOP classes
_ACQUIRED |= dict.fromkeys(("DIFFUSION", "PERFUSION", "STIR", "TOF", "FLOW_ENCODED", "TAGGING"), OTHER)


@dataclass(frozen=True, eq=False)
class Header:
    """The tags of one header. A missing text is "", a missing number None.

    Attributes:
      path: of the file.
      image: whether the file has pixels.
      mr_image: whether the SOP class is that of MR images; without pixels such a file is truncated.
      sequence_name: name that the scanner gives, such as `*tir2d1_21`.
      repetition, echo, inversion: TR, TE and TI in ms.
      agent: whether the header names a contrast agent.
      frames: number of frames in the file.
      size: rows, columns.
      orientation: [6], directions of row and column.
      position: [3], of the first pixel in mm.
      spacing: [2], of rows and columns in mm.
    """

    path: Path
    image: bool
    mr_image: bool
    modality: str
    patient: str
    study: str
    date: str
    series: str
    frame_of_reference: str
    number: str
    description: str
    protocol: str
    sequence_name: str
    image_type: tuple[str, ...]
    acquired: str
    scanning: tuple[str, ...]
    angiography: bool
    repetition: float | None
    echo: float | None
    inversion: float | None
    agent: bool
    frames: int
    size: tuple[int, int] | None
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    spacing: tuple[float, ...] | None

    @property
    def by_times(self) -> str | None:
        """Sequence by acquisition parameters: one of `CHANNELS`, OTHER, or None if they are not conclusive.

        FLAIR suppresses fluid by inversion: TI of 1.6 to 2.8 s, with long TE and TR. Short TE and TR mean T1, also with
        TI below 1.2 s as in MPRAGE and T1-FLAIR. Long TE and TR without inversion mean T2 (Bernstein et al., Handbook
        of MRI Pulse Sequences, 2004).
        """
        t1 = POST if self.agent else PRE
        if self.angiography or "EP" in self.scanning:
            return OTHER
        if self.acquired in _ACQUIRED:
            return t1 if self.acquired == "T1" else _ACQUIRED[self.acquired]
        if self.echo is None or self.repetition is None:
            return None
        inverted = bool(self.inversion) or "IR" in self.scanning or "tir" in self.sequence_name.lower()
        if self.echo >= 60 and self.repetition >= 1500:
            if not inverted:
                return OTHER
            return OTHER if self.inversion and self.inversion < 1200 else FLAIR  # a short TI suppresses fat: STIR
        if self.echo < 20 and self.repetition < 1500:
            return t1
        if self.echo < 40 and inverted and (self.inversion or 0) >= 400:
            return t1
        return OTHER if self.echo < 60 and self.repetition >= 1500 else None  # proton density, or short-TI STIR

    @property
    def is_axial(self) -> bool | None:
        """Whether the slices are closer to axial than to sagittal or coronal; None if the orientation is unknown."""
        if self.orientation is None:
            return None
        return int(np.argmax(np.abs(np.cross(self.orientation[:3], self.orientation[3:])))) == 2


def read_header(path: Path) -> Header | None:
    """Reads the header of a file; None if the file is damaged or not DICOM."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns about invalid values; they count as missing here
            dataset = _read(path)
            if not any(_text(dataset, name) for name in ("SOPClassUID", "SeriesInstanceUID", "Rows")):
                return None
            return _header(path, dataset)
    except Exception:  # pydicom raises many exception types on damaged bytes
        return None


def _read(path: Path) -> "Dataset":
    from pydicom import config
    from pydicom.filereader import read_dataset, read_file_meta_info, read_partial
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    config.settings.reading_validation_mode = config.IGNORE
    tags, is_past_last = _tags(), lambda tag, *_: tag > _LAST_TAG
    with path.open("rb") as file:
        data = file.read(_MOST_HEADER)  # parsed from memory: a wrong, huge length then allocates nothing
    if DeflatedExplicitVRLittleEndian.encode() not in data[:1024]:
        # Files without the DICM prefix are here because of their suffix.
        return read_partial(BytesIO(data), is_past_last, force=data[128:132] != b"DICM", specific_tags=tags)
    start = 132 + 12 + read_file_meta_info(path).FileMetaInformationGroupLength  # preamble and prefix, length element
    plain = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:], _MOST_HEADER)
    return read_dataset(BytesIO(plain), False, True, stop_when=is_past_last, specific_tags=tags)


@cache
def _tags() -> list[int]:
    from pydicom.datadict import tag_for_keyword

    return [tag for name in _TAGS if (tag := tag_for_keyword(name)) is not None]


def _header(path: Path, dataset: "Dataset") -> Header:
    rows, columns = (_numbers(dataset, name, 1) for name in ("Rows", "Columns"))
    times = [_numbers(dataset, name, 1) for name in ("RepetitionTime", "EchoTime", "InversionTime")]
    repetition, echo, inversion = (value[0] if value else None for value in times)
    frames = _numbers(dataset, "NumberOfFrames", 1)
    return Header(
        path=path,
        image=rows is not None or "ImagePositionPatient" in dataset,
        mr_image=_text(dataset, "SOPClassUID") in _MR_IMAGES,
        modality=_text(dataset, "Modality").upper(),
        patient=_text(dataset, "PatientID"),
        study=_text(dataset, "StudyInstanceUID"),
        date=_text(dataset, "StudyDate"),
        series=_text(dataset, "SeriesInstanceUID"),
        frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
        number=_text(dataset, "SeriesNumber"),
        description=_text(dataset, "SeriesDescription"),
        protocol=_text(dataset, "ProtocolName"),
        sequence_name=_text(dataset, "SequenceName"),
        image_type=tuple(_text(dataset, "ImageType").upper().split("\\")),
        acquired=_text(dataset, "AcquisitionContrast").upper(),
        scanning=tuple(_text(dataset, "ScanningSequence").upper().split("\\")),
        angiography=_text(dataset, "AngioFlag").upper() == "Y",
        repetition=repetition,
        echo=echo,
        inversion=inversion,
        agent=_text(dataset, "ContrastBolusAgent").upper() not in _NO_AGENT,
        frames=int(frames[0]) if frames else 1,
        size=(int(rows[0]), int(columns[0])) if rows and columns else None,
        orientation=_numbers(dataset, "ImageOrientationPatient", 6),
        position=_numbers(dataset, "ImagePositionPatient", 3),
        spacing=_numbers(dataset, "PixelSpacing", 2),
    )


def _text(dataset: "Dataset", name: str) -> str:
    try:
        value = dataset.get(name)
        parts = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
        return "\\".join("" if part is None else str(part) for part in parts).strip(" \0")
    except Exception:  # a value that its value representation does not allow
        return ""


def _numbers(dataset: "Dataset", name: str, count: int) -> tuple[float, ...] | None:
    try:
        values = tuple(float(part) for part in _text(dataset, name).split("\\"))
    except ValueError:
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None
