"""Reads one DICOM file within size bounds, and its tags, even nonstandard ones."""

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

if TYPE_CHECKING:  # optional and slow to import, so functions import it where they need it
    from pydicom import Dataset

MOST_BYTES = 2**31  # of a file; the largest enhanced series have about 500 MB
_MOST_HEADER = 2**23  # bytes of a deflated file that are unpacked before its header declares the size
# Values for missing or empty tags. In a grayscale file the other tags imply them.
_IMPLIED = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0}


def read_dicom(path: Path) -> "Dataset":
    """Reads a DICOM file; unpacks a deflated file only to the size that its header declares.

    Raises:
      InputError: the file cannot be read, is damaged, or is too large.
    """
    from pydicom import dcmread

    quieten()
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise InputError(f"{path}: {size} bytes, but the limit is {MOST_BYTES}; split the series (dcm2niix)")
        data = path.read_bytes()
        # Parse from memory: a wrong, huge length in the header then allocates nothing.
        dataset = dcmread(BytesIO(_inflated(path, data)))
        dataset.buffer = None  # the buffer would keep the file's bytes in memory
        return dataset
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except Exception as error:  # pydicom raises many exception types on damaged bytes
        raise InputError(f"{path}: not a DICOM file, or a damaged one ({error}); get a new copy") from error


def quieten() -> None:
    """Turns off the console warnings of pydicom and highdicom; notes report what a user must know."""
    from pydicom import config

    config.settings.reading_validation_mode = config.IGNORE
    warnings.filterwarnings("ignore", module="pydicom")
    for name in ("pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _inflated(path: Path, data: bytes) -> bytes:
    """The bytes of a file, uncompressed if it is deflated; at most as many as its header declares."""
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return data
    plain = BytesIO()
    plain.write(bytes(128) + b"DICM")
    start = plain.tell() + 12 + meta.FileMetaInformationGroupLength  # the length element itself has 12 bytes
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    write_file_meta_info(plain, meta, enforce_standard=False)  # type: ignore[arg-type]  # any writable file works
    unpacking = zlib.decompressobj(-zlib.MAX_WBITS)
    plain.write(unpacking.decompress(data[start:], _MOST_HEADER))
    if rest := unpacking.unconsumed_tail:
        header = dcmread(BytesIO(plain.getvalue()), stop_before_pixels=True)
        plain.write(unpacking.decompress(rest, declared_bytes(path, header) + _MOST_HEADER))
        if unpacking.unconsumed_tail:
            raise InputError(f"{path}: unpacks to more than its header declares, so it is damaged; get a new copy")
    return plain.getvalue()


def declared_bytes(path: Path, dataset: "Dataset") -> int:
    """Size in bytes of the decoded pixels, as the header declares it.

    Raises:
      InputError: a tag is missing or not a number, or the size exceeds the limit.
    """
    rows, columns, bits = (whole(path, dataset, name) or 0 for name in ("Rows", "Columns", "BitsAllocated"))
    for name, value in (("Rows", rows), ("Columns", columns), ("BitsAllocated", bits)):
        if not value:
            raise InputError(f"{path}: no {name} in its header, so its pixels cannot be decoded; get a new copy")
    if bits not in (8, 16, 32):
        raise InputError(f"{path}: BitsAllocated {bits}, but a scan has 8, 16 or 32; give a scan, not a mask")
    stored, sign = whole(path, dataset, "BitsStored") or bits, whole(path, dataset, "PixelRepresentation") or 0
    if not 1 <= stored <= bits or sign not in (0, 1):
        raise InputError(
            f"{path}: BitsStored {stored} of BitsAllocated {bits}, PixelRepresentation {sign}; correct the header"
        )
    frames = frame_count(path, dataset)
    if rows * columns * frames > MOST_VALUES:
        raise InputError(
            f"{path}: its header declares {frames} x {rows} x {columns} pixels, more than the limit of {MOST_VALUES}"
        )
    return rows * columns * frames * bits // 8 * (whole(path, dataset, "SamplesPerPixel") or 1)


def frame_count(path: Path, dataset: "Dataset") -> int:
    """`NumberOfFrames`, or 1 if it is missing; raises InputError if it is not a number."""
    return max(1, whole(path, dataset, "NumberOfFrames") or 1)


def complete(path: Path, dataset: "Dataset") -> list[str]:
    """Fills in missing pixel tags in place and converts numeric ones to int; returns a note for each assumed value."""
    notes = []
    for name, value in _IMPLIED.items():
        if text(dataset, name) == "":
            setattr(dataset, name, value)
            notes.append(f"its header has no {name}: {value} is assumed")
    for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "SamplesPerPixel", "PixelRepresentation"):
        if (value := whole(path, dataset, name)) is not None:
            setattr(dataset, name, value)
    if "BitsStored" not in dataset and "BitsAllocated" in dataset:
        dataset.BitsStored = dataset.BitsAllocated
    return notes


def text(dataset: "Dataset", name: str) -> str:
    """The value of a tag as text, whatever its value representation; "" if it is missing."""
    return "\\".join(str(value) for value in _values(dataset, name)).strip("\0 ")


def whole(path: Path, dataset: "Dataset", name: str) -> int | None:
    """The integer value of a tag, or None if it is missing or empty; raises InputError for any other value."""
    values = numbers(path, dataset, name, 1)
    if values is None:
        return None
    if values[0] != int(values[0]):
        raise InputError(f"{path}: {name} is {_repr(dataset, name)} and should be a whole number; correct the header")
    return int(values[0])


def numbers(path: Path, dataset: "Dataset", name: str, count: int, notes: list[str] | None = None) -> np.ndarray | None:
    """The numbers of a tag; accepts decimal commas, and adds a note on them.

    Args:
      path: for messages.
      dataset: the data set, or an item of a sequence in it.
      name: keyword of the tag.
      count: the required number of values.
      notes: receives the note.

    Returns:
      float64 [count]; None if the tag is missing or empty.

    Raises:
      InputError: the values or their number are wrong; the message names file, tag and value.
    """
    values = _values(dataset, name)
    if not values or values == [""]:
        return None
    try:
        parsed = np.array([float(str(value).strip("\0 ").replace(",", ".")) for value in values])
    except ValueError:
        parsed = np.array([])
    if len(parsed) != count or not (np.abs(parsed) < 1e9).all():
        expected = "a number" if count == 1 else f"{count} numbers"
        raise InputError(
            f"{path}: {name} is {_repr(dataset, name)} and should be {expected}; correct the header, or "
            "convert the series to NIfTI (dcm2niix)"
        )
    if notes is not None and any("," in str(value) for value in values):
        notes.append(f"{name} has decimal commas; they are read as points")
    return parsed


def _repr(dataset: "Dataset", name: str) -> str:
    value = text(dataset, name)
    return repr(value if len(value) <= 80 else f"{value[:80]}...").replace("\\\\", "\\")


def _values(dataset: "Dataset", name: str) -> list:
    """The values of a tag, as text if they do not fit its value representation; [] if it is missing."""
    if name not in dataset:
        return []
    try:
        value = dataset[name].value
    except Exception:  # pydicom raises many exception types on text that is not a number
        return _raw_values(dataset, name)
    if value is None:
        return []
    return list(value) if isinstance(value, MutableSequence | tuple) else [value]  # MultiValue is a MutableSequence


def _raw_values(dataset: "Dataset", name: str) -> list:
    try:
        raw = dataset.get_item(name).value or b""
    except Exception:  # an unknown value representation counts as missing
        return []
    return raw.decode("latin-1").strip("\0 ").split("\\") if isinstance(raw, bytes) else [raw]
