"""Reads one slice from a TIFF or PNG file, or says what else the file is."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from brainseg_jax.errors import InputError
from brainseg_jax.scans.untrusted import read_bounded

SUFFIXES = (".tif", ".tiff", ".png")
MOST_PIXELS = 2**24  # of one slice, 4096 x 4096; MRI has 1024 x 1024 at the most
_MOST_BYTES = 4 * MOST_PIXELS  # of a file that holds them as RGBA without compression, and some more
_BITS_PER_SAMPLE = 258  # of a TIFF file


def read_image(path: Path) -> np.ndarray:
    """Decodes a slice of 8 bits a value.

    Pillow would silently give 16-bit colors as 8 bits, so the depth is read from the file itself. How large the image
    is stands in its header, and is read before it is unpacked.

    Returns:
      [H, W] uint8 for a gray image, or one whose palette is gray; [H, W, 3] for any other of colors; a black-and-white
      image has values 0 and 1. An alpha channel that is opaque everywhere is dropped.

    Raises:
      InputError: it is anything else: another format, damaged, too large, several pages, transparent, 16 bits; the
        message names the file.
    """
    try:
        data = read_bounded(path, _MOST_BYTES + 2**20)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is a fault below
            with Image.open(io.BytesIO(data), formats=["TIFF", "PNG"]) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    raise InputError(
                        f"{picture.width} x {picture.height} pixels; no more than {MOST_PIXELS >> 20} million are read"
                    )
                frames, bits = getattr(picture, "n_frames", 1), _bits(picture, data)
                if frames != 1:
                    raise InputError(f"{frames} pages; give one file a slice, or a NIfTI volume")
                if bits > 8:
                    raise InputError(
                        f"{bits} bits a value; slices are read as 8 bits. Give the whole volume as NIfTI, whose range "
                        "is brought to 8 bits at once, or convert all slices alike"
                    )
                return _pixels(picture)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: not a TIFF or PNG image, or the beginning of one") from None
    except Exception as error:  # Pillow raises a dozen kinds on damaged bytes; each means this one file
        raise InputError(f"{path}: damaged or truncated ({error})") from error


def _pixels(picture: Image.Image) -> np.ndarray:
    """The values of a picture of 8 bits or fewer; see `read_image`."""
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
            f"transparent: alpha from {alpha.min()} to {alpha.max()}, and what lies behind it is not known; save it "
            "without an alpha channel"
        )
    if picture.mode != "RGBA" and (channels[0] == channels[1]).all() and (channels[0] == channels[2]).all():
        return channels[0].copy()
    return np.stack(channels[:3], axis=-1)


def _bits(picture: Image.Image, data: bytes) -> int:
    if picture.format == "PNG":
        return data[24]  # of the header that stands first in every PNG file
    return max(picture.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
