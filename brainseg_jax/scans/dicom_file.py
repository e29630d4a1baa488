"""One DICOM file, read within bounds, and its tags, read even where other software wrote them oddly."""

import logging
import warnings
import zlib
from collections.abc import MutableSequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.scans.nifti_file import MOST_VALUES

if TYPE_CHECKING:  # an extra, and slow to import: only where there is a series to read
    from pydicom import Dataset

MOST_BYTES = 2**31  # of a file; the largest enhanced series have some 500 MB
_MOST_HEADER = 2**23  # bytes of a deflated file that are unpacked before its header says how many to expect
# Absent or empty, these are what the standard's other tags imply in a file of gray values.
_IMPLIED = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0}


def read_dicom(path: Path) -> "Dataset":
    """Reads a DICOM file; a deflated one is unpacked only as far as its header says.

    Raises:
      InputError: it cannot be read, is damaged, or too large.
    """
    from pydicom import dcmread

    quieten()
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise InputError(f"{path}: {size} bytes, and {MOST_BYTES} are read at most; split the series (dcm2niix)")
        data = path.read_bytes()
        # From memory: a length in the header that exceeds the file's then asks for no memory.
        dataset = dcmread(BytesIO(_inflated(path, data)))
        dataset.buffer = None  # which would keep the file's bytes
        return dataset
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except Exception as error:  # pydicom raises many kinds on damaged bytes; each means this one file
        raise InputError(f"{path}: not a DICOM file, or a damaged one ({error}); get a new copy") from error


def quieten() -> None:
    """Keeps pydicom and highdicom from warning of odd headers on the console: what a user must know is a note."""
    from pydicom import config

    config.settings.reading_validation_mode = config.IGNORE
    warnings.filterwarnings("ignore", module="pydicom")
    for name in ("pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _inflated(path: Path, data: bytes) -> bytes:
    """The bytes of a file, those of a deflated one as if it had never been; bounded by what its header declares."""
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return data
    plain = BytesIO()
    plain.write(bytes(128) + b"DICM")
    start = plain.tell() + 12 + meta.FileMetaInformationGroupLength  # 12 bytes are the length's own
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    write_file_meta_info(plain, meta, enforce_standard=False)
    unpacking = zlib.decompressobj(-zlib.MAX_WBITS)
    plain.write(unpacking.decompress(data[start:], _MOST_HEADER))
    if rest := unpacking.unconsumed_tail:
        header = dcmread(BytesIO(plain.getvalue()), stop_before_pixels=True)
        plain.write(unpacking.decompress(rest, declared_bytes(path, header) + _MOST_HEADER))
        if unpacking.unconsumed_tail:
            raise InputError(f"{path}: unpacks to more than its header declares, so it is damaged; get a new copy")
    return plain.getvalue()


def declared_bytes(path: Path, one: "Dataset") -> int:
    """Bytes of the pixels when decoded, by the header.

    Raises:
      InputError: a tag that says so is absent or no number, or says more than is read.
    """
    rows, columns, bits = (whole(path, one, name) for name in ("Rows", "Columns", "BitsAllocated"))
    for name, value in (("Rows", rows), ("Columns", columns), ("BitsAllocated", bits)):
        if not value:
            raise InputError(f"{path}: no {name} in its header, so its pixels cannot be decoded; get a new copy")
    if bits not in (8, 16, 32):
        raise InputError(f"{path}: BitsAllocated {bits}, and a scan has 8, 16 or 32; give a scan, not a mask")
    stored, sign = whole(path, one, "BitsStored") or bits, whole(path, one, "PixelRepresentation") or 0
    if not 1 <= stored <= bits or sign not in (0, 1):
        raise InputError(
            f"{path}: BitsStored {stored} of BitsAllocated {bits}, PixelRepresentation {sign}; correct the header"
        )
    frames = frame_count(path, one)
    if rows * columns * frames > MOST_VALUES:
        raise InputError(f"{path}: its header declares {frames} x {rows} x {columns} pixels, more than are read")
    return rows * columns * frames * bits // 8 * (whole(path, one, "SamplesPerPixel") or 1)


def frame_count(path: Path, one: "Dataset") -> int:
    """`NumberOfFrames`, 1 where it is absent; raises InputError where it is no number."""
    return max(1, whole(path, one, "NumberOfFrames") or 1)


def complete(path: Path, one: "Dataset") -> list[str]:
    """Sets in place tags on pixels that are absent, though all others imply them, with a note; numbers as numbers."""
    notes = []
    for name, value in _IMPLIED.items():
        if text(one, name) == "":
            setattr(one, name, value)
            notes.append(f"its header has no {name}: {value} is assumed")
    for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "SamplesPerPixel", "PixelRepresentation"):
        if (value := whole(path, one, name)) is not None:
            setattr(one, name, value)
    if "BitsStored" not in one and "BitsAllocated" in one:
        one.BitsStored = one.BitsAllocated
    return notes


def text(one: "Dataset", name: str) -> str:
    """The value of a tag as text, in whatever characters; empty where it is absent."""
    return "\\".join(str(value) for value in _values(one, name)).strip("\0 ")


def whole(path: Path, one: "Dataset", name: str) -> int | None:
    """The whole number of a tag; None where it is absent or empty. Raises InputError where it is none."""
    found = numbers(path, one, name, 1)
    if found is None:
        return None
    if found[0] != int(found[0]):
        raise InputError(f"{path}: {name} is {_shown(one, name)} and should be a whole number; correct the header")
    return int(found[0])


def numbers(path: Path, one: "Dataset", name: str, count: int, notes: list[str] | None = None) -> np.ndarray | None:
    """The numbers of a tag; a decimal comma is read as a point, with a note.

    Args:
      path: for messages.
      one: the data set, or an item of a sequence in it.
      name: keyword of the tag.
      count: how many there are to be.
      notes: takes the note.

    Returns:
      float64 [count]; None where the tag is absent or empty.

    Raises:
      InputError: other values, or another number of them; it names file, tag and value.
    """
    found = _values(one, name)
    if not found or found == [""]:
        return None
    try:
        read = np.array([float(str(value).strip("\0 ").replace(",", ".")) for value in found])
    except ValueError:
        read = np.array([])
    if len(read) != count or not (np.abs(read) < 1e9).all():
        wanted = "a number" if count == 1 else f"{count} numbers"
        raise InputError(
            f"{path}: {name} is {_shown(one, name)} and should be {wanted}; correct the header, or "
            "convert the series to NIfTI (dcm2niix)"
        )
    if notes is not None and any("," in str(value) for value in found):
        notes.append(f"{name} has decimal commas, which are read as points")
    return read


def _shown(one: "Dataset", name: str) -> str:
    value = text(one, name)
    return repr(value if len(value) <= 80 else f"{value[:80]}...").replace("\\\\", "\\")


def _values(one: "Dataset", name: str) -> list:
    """The values of a tag; as text where they are not of the tag's kind. Empty where it is absent."""
    if name not in one:
        return []
    try:
        value = one[name].value
    except Exception:  # pydicom raises many kinds on text that is no number
        return _raw_values(one, name)
    if value is None:
        return []
    return list(value) if isinstance(value, MutableSequence | tuple) else [value]  # pydicom's MultiValue is of these


def _raw_values(one: "Dataset", name: str) -> list:
    try:
        raw = one.get_item(name).value or b""
    except Exception:  # of a kind that there is not: as good as absent
        return []
    return raw.decode("latin-1").strip("\0 ").split("\\") if isinstance(raw, bytes) else [raw]
