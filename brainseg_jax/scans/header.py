"""What the header of one DICOM file tells of its series and sequence; the pixels are not read."""

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

if TYPE_CHECKING:  # an extra, and slow to import: only where there is a series to read
    from pydicom import Dataset

_TAGS = (
    *("SOPClassUID", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    "StudyDate",
    *("SeriesNumber", "SeriesDescription", "ProtocolName", "SequenceName", "ImageType", "AcquisitionContrast"),
    *("ScanningSequence", "InversionTime", "EchoTime", "RepetitionTime", "ContrastBolusAgent", "AngioFlag"),
    *("Rows", "Columns", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
)
_LAST_TAG = 0x00280030  # PixelSpacing; tags stand in order
_MOST_HEADER = 2**18  # bytes that are read or unpacked to find these tags
_NO_AGENT = {"", "NONE", "NO", "N", "0", "NULL", "UNKNOWN", "NO CONTRAST", "WITHOUT"}
# AcquisitionContrast of enhanced MR: DICOM PS3.3, C.8.13.3.
_ACQUIRED = {"FLUID_ATTENUATED": FLAIR, "T1": PRE, "T2": OTHER, "T2_STAR": OTHER, "PROTON_DENSITY": OTHER}
_MR_IMAGES = {f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("4", "4.1", "4.3", "4.4")}  # SOP classes
_ACQUIRED |= dict.fromkeys(("DIFFUSION", "PERFUSION", "STIR", "TOF", "FLOW_ENCODED", "TAGGING"), OTHER)


@dataclass(frozen=True, eq=False)
class Header:
    """What is needed of a header; texts are empty and numbers None where it does not say.

    Attributes:
      path: of the file.
      image: whether it has pixels.
      mr_image: whether it is of a class of MR images; one without pixels is cut short.
      sequence_name: the scanner's, such as `*tir2d1_21`.
      repetition, echo, inversion: times in ms.
      agent: whether a contrast agent is named.
      frames: in the file.
      size: rows, columns.
      orientation: of row and column, [6].
      position: of the first pixel in mm, [3].
      spacing: of rows and columns in mm, [2].
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
        """Sequence by times and acquisition: one of `CHANNELS`, OTHER, or None where they do not tell.

        FLAIR inverts the fluid's signal away: TI of 1.6 to 2.8 s, with TE and TR long. A short TE and TR is T1, also
        with the TI below 1.2 s of MPRAGE and T1-FLAIR; a long TE and TR without inversion is T2 (Bernstein et al.,
        Handbook of MRI Pulse Sequences, 2004).
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
        """Whether its slices are nearer to axial than to anything else; None where it does not say."""
        if self.orientation is None:
            return None
        return int(np.argmax(np.abs(np.cross(self.orientation[:3], self.orientation[3:])))) == 2


def read_header(path: Path) -> Header | None:
    """Reads the header of a file; None where it is not DICOM, or damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of odd values, which are left out here
            one = _read(path)
            if not any(_text(one, name) for name in ("SOPClassUID", "SeriesInstanceUID", "Rows")):
                return None
            return _header(path, one)
    except Exception:  # pydicom raises many kinds on damaged bytes; each means this one file
        return None


def _read(path: Path) -> "Dataset":
    from pydicom import config
    from pydicom.filereader import read_dataset, read_file_meta_info, read_partial
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    config.settings.reading_validation_mode = config.IGNORE
    tags, behind = _tags(), lambda tag, *_: tag > _LAST_TAG
    with path.open("rb") as file:
        data = file.read(_MOST_HEADER)  # from memory: a length in the header that is too large then asks for none
    if DeflatedExplicitVRLittleEndian.encode() not in data[:1024]:
        # Without the mark of the format, the name alone says DICOM.
        return read_partial(BytesIO(data), behind, force=data[128:132] != b"DICM", specific_tags=tags)
    start = 132 + 12 + read_file_meta_info(path).FileMetaInformationGroupLength  # preamble and mark, that length
    plain = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:], _MOST_HEADER)
    return read_dataset(BytesIO(plain), False, True, stop_when=behind, specific_tags=tags)


@cache
def _tags() -> list[int]:
    from pydicom.datadict import tag_for_keyword

    return [tag_for_keyword(name) for name in _TAGS]


def _header(path: Path, one: "Dataset") -> Header:
    rows, columns = (_numbers(one, name, 1) for name in ("Rows", "Columns"))
    times = [_numbers(one, name, 1) for name in ("RepetitionTime", "EchoTime", "InversionTime")]
    repetition, echo, inversion = (value and value[0] for value in times)
    frames = _numbers(one, "NumberOfFrames", 1)
    return Header(
        path=path,
        image=rows is not None or "ImagePositionPatient" in one,
        mr_image=_text(one, "SOPClassUID") in _MR_IMAGES,
        modality=_text(one, "Modality").upper(),
        patient=_text(one, "PatientID"),
        study=_text(one, "StudyInstanceUID"),
        date=_text(one, "StudyDate"),
        series=_text(one, "SeriesInstanceUID"),
        frame_of_reference=_text(one, "FrameOfReferenceUID"),
        number=_text(one, "SeriesNumber"),
        description=_text(one, "SeriesDescription"),
        protocol=_text(one, "ProtocolName"),
        sequence_name=_text(one, "SequenceName"),
        image_type=tuple(_text(one, "ImageType").upper().split("\\")),
        acquired=_text(one, "AcquisitionContrast").upper(),
        scanning=tuple(_text(one, "ScanningSequence").upper().split("\\")),
        angiography=_text(one, "AngioFlag").upper() == "Y",
        repetition=repetition,
        echo=echo,
        inversion=inversion,
        agent=_text(one, "ContrastBolusAgent").upper() not in _NO_AGENT,
        frames=int(frames[0]) if frames else 1,
        size=(int(rows[0]), int(columns[0])) if rows and columns else None,
        orientation=_numbers(one, "ImageOrientationPatient", 6),
        position=_numbers(one, "ImagePositionPatient", 3),
        spacing=_numbers(one, "PixelSpacing", 2),
    )


def _text(one: "Dataset", name: str) -> str:
    try:
        value = one.get(name)
        parts = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
        return "\\".join("" if part is None else str(part) for part in parts).strip(" \0")
    except Exception:  # a value that its own kind does not allow
        return ""


def _numbers(one: "Dataset", name: str, count: int) -> tuple[float, ...] | None:
    try:
        values = tuple(float(part) for part in _text(one, name).split("\\"))
    except ValueError:
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None
