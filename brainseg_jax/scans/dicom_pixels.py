"""Decodes the pixels of a DICOM file, only if their size agrees with the header."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.scans.dicom_file import declared_bytes, frame_count, numbers

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

INSTALL = "python -m pip install 'brainseg_jax[dicom]'"
# Decoders of imagecodecs (libjpeg-turbo, CharLS, OpenJPEG) by transfer syntax. GDCM would crash on damaged JPEG data.
_CODECS = {
    **{f"1.2.840.10008.1.2.4.{number}": "jpeg8_decode" for number in (50, 51, 57, 70)},
    **{f"1.2.840.10008.1.2.4.{number}": "jpegls_decode" for number in (80, 81)},
    **{f"1.2.840.10008.1.2.4.{number}": "jpeg2k_decode" for number in (90, 91, 201, 202, 203)},
}
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # start-of-frame markers of JPEG and JPEG-LS
_START_OF_2000 = b"\xff\x4f\xff\x51"  # JPEG 2000: start of the codestream and of its size segment


def decode(path: Path, dataset: "Dataset") -> np.ndarray:
    """Decodes the stored values of all frames, without rescaling.

    Args:
      path: for messages.
      dataset: from `read_dicom`, after `complete`.

    Returns:
      [frames, rows, columns] of an integer type.

    Raises:
      InputError: the pixels are damaged, larger than declared, or compressed in an unsupported way.
    """
    from pydicom.pixels import get_decoder

    syntax, kind, compressed = _syntax(dataset)
    expected, frames = declared_bytes(path, dataset), frame_count(path, dataset)
    dataset.NumberOfFrames = frames
    try:
        if not compressed and len(dataset.PixelData) < expected:
            raise InputError(
                f"{path}: {len(dataset.PixelData)} bytes of pixels, but its header declares {expected}, so the file is "
                "truncated; get a new copy"
            )
        if syntax in _CODECS:
            return _decode_streams(path, dataset, _CODECS[syntax], kind, expected // frames, frames)
        if compressed:
            _streams(path, dataset, expected // frames, frames)
        values, _ = get_decoder(syntax).as_array(dataset, raw=True)
        return values.reshape(frames, dataset.Rows, dataset.Columns)  # fails if there are more values than declared
    except InputError:
        raise
    except NotImplementedError:
        raise InputError(
            f"{path}: its pixels are stored as {kind}, which is not supported; write the series without compression, "
            "or convert it to NIfTI (dcm2niix)"
        ) from None
    except Exception as error:  # decoders raise many exception types on damaged pixels
        reason, hint = " ".join(str(error).split()), ", or write the series without compression"
        raise InputError(
            f"{path}: its pixels, stored as {kind}, cannot be decoded ({reason}); get a new copy" + hint * compressed
        ) from error


def padding(path: Path, dataset: "Dataset", stored: np.ndarray) -> np.ndarray | None:
    """The mask of padding, from PixelPaddingValue and PixelPaddingRangeLimit; None if there is no padding.

    Scanners write these tags signed or unsigned, whatever the pixels are: -2000 and 63536 are the same 16 bits.
    """
    ends = [numbers(path, dataset, name, 1) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None:
        return None
    bits, signed = int(dataset.BitsAllocated), bool(dataset.PixelRepresentation)
    wrapped = [int(end[0]) % 2**bits for end in ends if end is not None]
    values = [value - 2**bits * (signed and value >= 2 ** (bits - 1)) for value in wrapped]
    is_padding = (stored >= min(values)) & (stored <= max(values))
    return is_padding if is_padding.any() else None


def _syntax(dataset: "Dataset") -> "tuple[UID, str, bool]":
    """The transfer syntax, its name for messages, and whether it is compressed."""
    from pydicom.uid import UID, ImplicitVRLittleEndian

    meta = getattr(dataset, "file_meta", {})
    syntax = UID(str(meta.get("TransferSyntaxUID") or ImplicitVRLittleEndian))
    valid = not syntax.is_private and syntax.is_transfer_syntax
    return syntax, f"{syntax.name} ({syntax})" if valid else f"{str(syntax)!r}", valid and syntax.is_encapsulated


def _streams(path: Path, dataset: "Dataset", frame_bytes: int, frames: int) -> list[bytes]:
    """The compressed frames; raises InputError if frames are missing or far too long."""
    from pydicom.encaps import generate_frames

    streams = [bytes(stream) for stream in generate_frames(dataset.PixelData, number_of_frames=frames)]
    if len(streams) < frames:
        raise InputError(f"{path}: only {len(streams)} of {frames} frames, so the file is truncated; get a new copy")
    for number, stream in enumerate(streams, start=1):
        if len(stream) > 2 * frame_bytes + 2**16:  # no compression enlarges an image that much
            raise InputError(f"{path}: frame {number} has {len(stream)} bytes, more than its pixels; get a new copy")
    return streams[:frames]


def _decode_streams(path: Path, dataset: "Dataset", codec: str, kind: str, frame_bytes: int, frames: int) -> np.ndarray:
    """Decodes frames of the JPEG family; refuses a frame before decoding if its size differs from the header."""
    try:
        import imagecodecs
    except ImportError as error:
        raise InputError(
            f"{path}: its pixels are compressed as {kind}, and the decoder is not installed ({error}): {INSTALL}"
        ) from error
    decode_frame, decoded, expected = getattr(imagecodecs, codec), [], (dataset.Rows, dataset.Columns, 1)
    for number, stream in enumerate(_streams(path, dataset, frame_bytes, frames), start=1):
        if (size := _declared_size(stream)) != expected:
            raise InputError(
                f"{path}: frame {number} has {size} rows, columns and channels, but its header declares {expected}; "
                "get a new copy"
            )
        decoded.append(decode_frame(stream).reshape(expected[:2]))
    return _signed_as_declared(dataset, np.stack(decoded))


def _signed_as_declared(dataset: "Dataset", values: np.ndarray) -> np.ndarray:
    """Makes values signed or unsigned as the header declares.

    JPEG streams do not store the sign, and JPEG 2000 streams may store it wrongly.
    """
    signed, half = bool(dataset.PixelRepresentation), 2 ** (int(dataset.BitsStored) - 1)
    if signed == (values.dtype.kind == "i"):
        return values
    wide = values.astype(np.int64)
    wide = np.where(wide >= half, wide - 2 * half, wide) if signed else np.where(wide < 0, wide + 2 * half, wide)
    return wide.astype(np.int32)


def _declared_size(stream: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and channels that a JPEG, JPEG-LS or JPEG 2000 stream declares; None if it declares none."""

    def number(start: int, count: int) -> int:
        return int.from_bytes(stream[start : start + count], "big")

    if (start := stream.find(_START_OF_2000)) >= 0:
        right, bottom, left, top = (number(start + offset, 4) for offset in (8, 12, 16, 20))
        return bottom - top, right - left, number(start + 40, 2)
    offset = 2
    while offset + 10 <= len(stream) and stream[offset] == 0xFF:
        if stream[offset + 1] in _FRAME_MARKERS:
            return number(offset + 5, 2), number(offset + 7, 2), stream[offset + 9]
        offset += 1 if stream[offset + 1] == 0xFF else 2 + number(offset + 2, 2)
    return None
