"""Reads every pixel of an LGG source once, lists all faults in one error, and computes the fingerprint."""

import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from brainseg_jax.data.source import KaggleCase, KaggleSlice, TreePath, list_cases
from brainseg_jax.errors import InputError
from brainseg_jax.scans.untrusted import read_bounded

SIZE = 256  # pixels, height and width
TIFF_MARKS = (b"II*\0", b"MM\0*")  # first bytes of a TIFF file, by byte order
READERS = 2  # threads; decoding and hashing release the interpreter lock


@dataclass(frozen=True)
class KaggleSource:
    """Cases without faults; every slice was read."""

    cases: tuple[KaggleCase, ...]
    fingerprint: str  # see `read_source`
    tumor_slices: int
    tumor_pixels: int

    @property
    def slices(self) -> int:
        """The number of slices of all cases."""
        return sum(len(case.slices) for case in self.cases)


@dataclass(frozen=True)
class _Reading:
    """Facts of one slice that are needed after its pixels are released."""

    faults: tuple[str, ...]
    image_digest: str = ""
    mask_digest: str = ""
    constant: bool = False
    tumor_pixels: int = 0


def read_source(path: str | Path, *, on_start: Callable[[int], None], on_slice: Callable[[], None]) -> KaggleSource:
    """Reads and checks all cases in `path`, and writes nothing.

    The fingerprint is the hexadecimal SHA-256 of the sorted cases: names, clinical codes, slice numbers and pixels. It
    identifies the content: a folder and a zip of the same patients have the same fingerprint.

    Args:
      path: `kaggle_3m/`, a folder that contains it, or Kaggle's zip.
      on_start: called once, with the number of slices.
      on_slice: called after each slice.

    Raises:
      InputError: the message lists all faults, each with its file.
    """
    try:
        cases, faults = list_cases(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    slices = [(case, item) for case in cases for item in case.slices]
    on_start(len(slices))
    readings = []
    with warnings.catch_warnings(), ThreadPoolExecutor(READERS) as readers:
        warnings.simplefilter("ignore")  # what Pillow warns of is a fault below
        for reading in readers.map(_read, [item for _, item in slices]):
            readings.append(reading)
            on_slice()
    faults += [fault for reading in readings for fault in reading.faults]
    faults += _shared_images(slices, readings)
    if faults:
        raise InputError(list_faults(path, faults))
    return KaggleSource(
        cases=tuple(cases),
        fingerprint=_fingerprint(slices, readings),
        tumor_slices=sum(reading.tumor_pixels > 0 for reading in readings),
        tumor_pixels=sum(reading.tumor_pixels for reading in readings),
    )


def read_slice(item: KaggleSlice) -> tuple[np.ndarray, np.ndarray]:
    """Decodes one slice.

    Returns:
      The image, uint8 [256, 256, 3], and its mask, uint8 [256, 256, 1] with values 0 and 1.

    Raises:
      InputError: a file is not as in the Kaggle set; the message names it.
    """
    return _read_image(item.image), _read_mask(item.mask)


def _read_image(path: TreePath) -> np.ndarray:
    return _decode(path, mode="RGB")


def _read_mask(path: TreePath) -> np.ndarray:
    mask = _decode(path, mode="L")
    values = np.unique(mask)
    if not np.isin(values, (0, 255)).all():
        listed = ", ".join(str(value) for value in values[:8]) + (", ..." if len(values) > 8 else "")
        raise InputError(f"{_short(path)}: mask values {listed}; a mask contains only 0 and 255")
    return (mask > 0).astype(np.uint8)[..., np.newaxis]


def _decode(path: TreePath, *, mode: str) -> np.ndarray:
    """Decodes a TIFF file to uint8 [256, 256, 3] (mode RGB) or [256, 256] (mode L). Raises InputError on faults."""
    try:
        data = read_bounded(path)
        if not data:
            raise InputError("an empty file")
        with Image.open(io.BytesIO(data), formats=["TIFF"]) as picture:
            assert isinstance(picture, TiffImageFile)
            channels = len(mode)
            bits = picture.tag_v2.get(258, (1,))  # BitsPerSample: Pillow silently reduces 16-bit colors to 8 bits
            if picture.size != (SIZE, SIZE):
                raise InputError("{} x {} pixels; expected {} x {}".format(*picture.size, SIZE, SIZE))
            if len(bits) != channels:
                raise InputError(f"{len(bits)} channel(s); expected {channels}")
            if set(bits) != {8} or picture.mode != mode:
                raise InputError(f"{max(bits)} bits per value, mode {picture.mode}; expected 8 bits, mode {mode}")
            if picture.n_frames != 1:
                raise InputError(f"{picture.n_frames} pages; expected 1")
            return np.asarray(picture)
    except InputError as error:
        raise InputError(f"{_short(path)}: {error}") from None
    except UnidentifiedImageError:
        fault = "a truncated or damaged TIFF" if data.startswith(TIFF_MARKS) else "not a TIFF image"
        raise InputError(f"{_short(path)}: {fault}") from None
    except Exception as error:  # Pillow raises many types for damaged files
        raise InputError(f"{_short(path)}: damaged or truncated ({error})") from error


def _read(item: KaggleSlice) -> _Reading:
    """Reads both files of a slice, so that the faults of both are reported."""
    arrays, faults = [], []
    for read, path in ((_read_image, item.image), (_read_mask, item.mask)):
        try:
            arrays.append(read(path))
        except InputError as error:
            faults.append(str(error))
    if faults:
        return _Reading(tuple(faults))
    image, mask = arrays
    return _Reading(
        faults=(),
        image_digest=hashlib.sha256(image.data).hexdigest(),
        mask_digest=hashlib.sha256(mask.data).hexdigest(),
        constant=bool((image == image[0, 0]).all()),
        tumor_pixels=int(mask.sum()),
    )


def _shared_images(slices: Sequence[tuple[KaggleCase, KaggleSlice]], readings: Sequence[_Reading]) -> list[str]:
    """One fault for each pair of patients with equal images. Constant images are not compared."""
    owners: dict[str, tuple[KaggleCase, KaggleSlice]] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for (case, item), reading in zip(slices, readings, strict=True):
        if reading.faults or reading.constant:
            continue
        owner, first = owners.setdefault(reading.image_digest, (case, item))
        if owner.name != case.name:
            message = f"{_short(item.image)}: the same image as {_short(first.image)} of another patient"
            shared.setdefault((owner.name, case.name), []).append(message)
    return [
        pairs[0] + (f" (and {len(pairs) - 1} more images of these two)" if len(pairs) > 1 else "")
        for pairs in shared.values()
    ]


def _fingerprint(slices: Sequence[tuple[KaggleCase, KaggleSlice]], readings: Sequence[_Reading]) -> str:
    digest = hashlib.sha256()
    for (case, item), reading in zip(slices, readings, strict=True):
        fields = (case.name, *case.clinical, item.number, reading.image_digest, reading.mask_digest)
        digest.update((" ".join(str(field) for field in fields) + "\n").encode())
    return digest.hexdigest()


def list_faults(path: str | Path, faults: Sequence[str]) -> str:
    """The message of the error that refuses a source: one line per fault."""
    count = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
    lines = [f"{path}: {count} in the data, so nothing was written. Correct or remove these files, or get a new copy:"]
    lines += [f"  {fault}" for fault in faults]
    return "\n".join(lines)


def _short(path: TreePath) -> str:
    return f"{path.parent.name}/{path.name}"  # type: ignore[attr-defined]  # of zipfile.Path
