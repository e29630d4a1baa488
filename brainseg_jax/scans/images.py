"""Reads one slice from a TIFF or PNG file."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from brainseg_jax.errors import InputError
from brainseg_jax.scans.untrusted import read_bounded

SUFFIXES = (".tif", ".tiff", ".png")
MOST_PIXELS = 2**24  # of one slice, 4096 x 4096; MRI has at most 1024 x 1024
_MOST_BYTES = 4 * MOST_PIXELS  # of these pixels as uncompressed RGBA
_BITS_PER_SAMPLE = 258  # tag of a TIFF file


def read_image(path: Path) -> np.ndarray:
    """Decodes an 8-bit slice, after checks of its depth and size in the file header.

    Pillow would silently reduce 16-bit colors to 8 bits.

    Returns:
      [H, W] uint8 for an image with gray values or a gray palette, [H, W, 3] for other color images. Black-and-white
      images have values 0 and 1. A fully opaque alpha channel is dropped.

    Raises:
      InputError: another format, a damaged or too large file, several pages, transparency, or 16 bits. The message
        names the file.
    """
    try:
        data = read_bounded(path, _MOST_BYTES + 2**20)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the checks below report what Pillow warns about
            with Image.open(io.BytesIO(data), formats=["TIFF", "PNG"]) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    raise InputError(
                        f"{picture.width} x {picture.height} pixels; the limit is {MOST_PIXELS >> 20} million"
                    )
                frames, bits = getattr(picture, "n_frames", 1), _bits(picture, data)
                if frames != 1:
                    raise InputError(f"{frames} pages; give one file per slice, or a NIfTI volume")
                if bits > 8:
                    raise InputError(
                        f"{bits} bits per value, but slices must have 8. Give the whole volume as NIfTI, which is "
                        "scaled to 8 bits as a whole, or convert all slices with the same range"
                    )
                return _pixels(picture)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: not a TIFF or PNG image, or a truncated one") from None
    except Exception as error:  # Pillow raises many exception types on damaged bytes
        raise InputError(f"{path}: damaged or truncated ({error})") from error


def _pixels(picture: Image.Image) -> np.ndarray:
    """The values of a picture with at most 8 bits per value; see `read_image`."""
    if picture.mode == "1":
        return np.asarray(picture).astype(np.uint8)
    if picture.mode in ("L", "RGB"):
        return np.asarray(picture)
    if picture.mode not in ("P", "PA", "LA", "RGBA"):
        raise InputError(
            f"{len(picture.getbands())} channel(s), mode {picture.mode}; give 3 (pre-contrast, FLAIR, post-contrast) "
            "or 1 (FLAIR)"
        )
    *_, alpha = channels = np.moveaxis(np.asarray(picture.convert("RGBA")), -1, 0)
    if alpha.min() < 255:
        raise InputError(
            f"transparent: alpha from {alpha.min()} to {alpha.max()}, so its gray values are undefined; save it "
            "without an alpha channel"
        )
    if picture.mode != "RGBA" and (channels[0] == channels[1]).all() and (channels[0] == channels[2]).all():
        return channels[0].copy()
    return np.stack([*channels[:3]], axis=-1)


def _bits(picture: Image.Image, data: bytes) -> int:
    if isinstance(picture, TiffImageFile):
        return max(picture.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
    return data[24]  # bit depth in the IHDR chunk, the first chunk of every PNG file
