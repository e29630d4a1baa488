"""Reads one slice from a TIFF or PNG file, or says what else the file is."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from brainseg_jax.data.untrusted import read_bounded
from brainseg_jax.errors import InputError

SUFFIXES = (".tif", ".tiff", ".png")
_BITS_PER_SAMPLE = 258  # of a TIFF file


def read_image(path: Path) -> np.ndarray:
    """Decodes a slice of 8 bits a value.

    Pillow would silently give 16-bit colors as 8 bits, so the depth is read from the file itself.

    Returns:
      [H, W] uint8 for a gray image, [H, W, 3] for RGB; a black-and-white image has values 0 and 1.

    Raises:
      InputError: it is anything else: another format, damaged, several pages, transparent, 16 bits; the message names
        the file.
    """
    try:
        data = read_bounded(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is a fault below
            with Image.open(io.BytesIO(data), formats=["TIFF", "PNG"]) as picture:
                frames, mode, bits = getattr(picture, "n_frames", 1), picture.mode, _bits(picture, data)
                if frames != 1:
                    raise InputError(f"{frames} pages; give one file a slice, or a NIfTI volume")
                if bits > 8:
                    raise InputError(
                        f"{bits} bits a value; slices are read as 8 bits. Give the whole volume as NIfTI, whose range "
                        "is brought to 8 bits at once, or convert all slices alike"
                    )
                if mode not in ("1", "L", "RGB"):
                    channels = len(picture.getbands())
                    raise InputError(
                        f"{channels} channel(s), mode {mode}; give 3 (pre-contrast, FLAIR, post-contrast) or 1 (FLAIR)"
                    )
                pixels = np.asarray(picture)
                return pixels.astype(np.uint8) if mode == "1" else pixels
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: not a TIFF or PNG image, or the beginning of one") from None
    except Exception as error:  # Pillow raises a dozen kinds on damaged bytes; each means this one file
        raise InputError(f"{path}: damaged or truncated ({error})") from error


def _bits(picture: Image.Image, data: bytes) -> int:
    if picture.format == "PNG":
        return data[24]  # of the header that stands first in every PNG file
    return max(picture.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
