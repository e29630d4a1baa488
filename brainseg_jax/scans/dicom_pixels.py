"""The pixels of a DICOM file: nothing is decoded whose size does not agree with the header."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.scans.dicom_file import declared_bytes, frame_count, numbers

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

INSTALL = "python -m pip install 'brainseg_jax[dicom]'"
# imagecodecs' decoder (libjpeg-turbo, CharLS, OpenJPEG) by transfer syntax. GDCM ends the process on damaged JPEG.
_CODECS = {
    **{f"1.2.840.10008.1.2.4.{number}": "jpeg8_decode" for number in (50, 51, 57, 70)},
    **{f"1.2.840.10008.1.2.4.{number}": "jpegls_decode" for number in (80, 81)},
    **{f"1.2.840.10008.1.2.4.{number}": "jpeg2k_decode" for number in (90, 91, 201, 202, 203)},
}
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # starts of a frame in JPEG and JPEG-LS
_START_OF_2000 = b"\xff\x4f\xff\x51"  # JPEG 2000: start of the code stream, and of the sizes


def decode(path: Path, one: "Dataset") -> np.ndarray:
    """The stored values of all frames, as the file holds them: no rescale.

    Args:
      path: for messages.
      one: of `read_dicom`, made whole by `complete`.

    Returns:
      [frames, rows, columns], of whole numbers.

    Raises:
      InputError: they are damaged, larger than the header says, or of a compression that is not read.
    """
    from pydicom.pixels import get_decoder

    syntax, kind, compressed = _syntax(one)
    expected, frames = declared_bytes(path, one), frame_count(path, one)
    one.NumberOfFrames = frames
    try:
        if not compressed and len(one.PixelData) < expected:
            raise InputError(
                f"{path}: {len(one.PixelData)} bytes of pixels, and its header declares {expected}: it is cut short; "
                "get a new copy"
            )
        if syntax in _CODECS:
            return _decode_streams(path, one, _CODECS[syntax], kind, expected // frames, frames)
        if compressed:
            _streams(path, one, expected // frames, frames)
        values, _ = get_decoder(syntax).as_array(one, raw=True)
        return values.reshape(frames, one.Rows, one.Columns)  # of more values than declared that fails too
    except InputError:
        raise
    except NotImplementedError:
        raise InputError(
            f"{path}: its pixels are stored as {kind}, which is not read; write the series without compression, or "
            "convert it to NIfTI (dcm2niix)"
        ) from None
    except Exception as error:  # decoders raise many kinds on damaged pixels
        reason, hint = " ".join(str(error).split()), ", or write the series without compression"
        raise InputError(
            f"{path}: its pixels, stored as {kind}, cannot be decoded ({reason}); get a new copy" + hint * compressed
        ) from error


def padding(path: Path, one: "Dataset", stored: np.ndarray) -> np.ndarray | None:
    """Where the stored values are padding, by PixelPaddingValue and PixelPaddingRangeLimit; None where none are.

    Scanners write both as signed or unsigned, whatever the pixels are: -2000 and 63536 are the same 16 bits.
    """
    ends = [numbers(path, one, name, 1) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None:
        return None
    bits, signed = int(one.BitsAllocated), bool(one.PixelRepresentation)
    wrapped = [int(end[0]) % 2**bits for end in ends if end is not None]
    values = [value - 2**bits * (signed and value >= 2 ** (bits - 1)) for value in wrapped]
    where = (stored >= min(values)) & (stored <= max(values))
    return where if where.any() else None


def _syntax(one: "Dataset") -> "tuple[UID, str, bool]":
    """The transfer syntax, its name, and whether it is compressed."""
    from pydicom.uid import UID, ImplicitVRLittleEndian

    meta = one.file_meta if hasattr(one, "file_meta") else {}
    syntax = UID(str(meta.get("TransferSyntaxUID") or ImplicitVRLittleEndian))
    known = not syntax.is_private and syntax.is_transfer_syntax
    return syntax, f"{syntax.name} ({syntax})" if known else f"{str(syntax)!r}", known and syntax.is_encapsulated


def _streams(path: Path, one: "Dataset", frame_bytes: int, frames: int) -> list[bytes]:
    """The compressed frames; raises InputError where they are not as many, or far too long."""
    from pydicom.encaps import generate_frames

    streams = [bytes(stream) for stream in generate_frames(one.PixelData, number_of_frames=frames)]
    if len(streams) < frames:
        raise InputError(f"{path}: {len(streams)} of {frames} frames are in it: it is cut short; get a new copy")
    for number, stream in enumerate(streams, start=1):
        if len(stream) > 2 * frame_bytes + 2**16:  # no compression makes so much more of any image
            raise InputError(f"{path}: frame {number} has {len(stream)} bytes, more than its pixels; get a new copy")
    return streams[:frames]


def _decode_streams(path: Path, one: "Dataset", codec: str, kind: str, frame_bytes: int, frames: int) -> np.ndarray:
    """The stored values of frames of the JPEG family; none is decoded that is of another size than the header says."""
    try:
        import imagecodecs
    except ImportError as error:
        raise InputError(
            f"{path}: its pixels are compressed as {kind}, and the decoder is not installed ({error}): {INSTALL}"
        ) from error
    decode_one, decoded, wanted = getattr(imagecodecs, codec), [], (one.Rows, one.Columns, 1)
    for number, stream in enumerate(_streams(path, one, frame_bytes, frames), start=1):
        if (size := _declared_size(stream)) != wanted:
            raise InputError(
                f"{path}: frame {number} is compressed as {size} rows, columns and channels, and its header declares "
                f"{wanted}; get a new copy"
            )
        decoded.append(decode_one(stream).reshape(wanted[:2]))
    return _signed_as_declared(one, np.stack(decoded))


def _signed_as_declared(one: "Dataset", values: np.ndarray) -> np.ndarray:
    """JPEG streams do not say whether values are signed, JPEG 2000 streams may say it wrongly: the header decides."""
    signed, half = bool(one.PixelRepresentation), 2 ** (int(one.BitsStored) - 1)
    if signed == (values.dtype.kind == "i"):
        return values
    wide = values.astype(np.int64)
    wide = np.where(wide >= half, wide - 2 * half, wide) if signed else np.where(wide < 0, wide + 2 * half, wide)
    return wide.astype(np.int32)


def _declared_size(stream: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and channels that a JPEG, JPEG-LS or JPEG 2000 stream declares; None where it does not."""

    def number(start: int, count: int) -> int:
        return int.from_bytes(stream[start : start + count], "big")

    if (start := stream.find(_START_OF_2000)) >= 0:
        right, bottom, left, top = (number(start + at, 4) for at in (8, 12, 16, 20))
        return bottom - top, right - left, number(start + 40, 2)
    at = 2
    while at + 10 <= len(stream) and stream[at] == 0xFF:
        if stream[at + 1] in _FRAME_MARKERS:
            return number(at + 5, 2), number(at + 7, 2), stream[at + 9]
        at += 1 if stream[at + 1] == 0xFF else 2 + number(at + 2, 2)
    return None
