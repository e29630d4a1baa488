"""Opens a NIfTI file, or says why it is none."""

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from brainseg_jax.errors import InputError

SUFFIXES = (".nii", ".nii.gz")
MOST_VALUES = 2**29  # a header of a few bytes can declare more than there is memory; a brain has some 10 million


def is_nifti(path: Path) -> bool:
    """Whether the name is that of a NIfTI file."""
    return path.name.lower().endswith(SUFFIXES)


def stem(path: Path) -> str:
    """The name without `.nii` or `.nii.gz`."""
    return path.name[: path.name.lower().rindex(".nii")]


def open_nifti(path: Path) -> tuple[nib.Nifti1Pair, np.ndarray]:
    """Reads a NIfTI file.

    Returns:
      the image, for its header and affine, and its values, scaled as the header says.

    Raises:
      InputError: it is no NIfTI file, damaged, too large, or holds values that are no plain numbers; the message names
        the file.
    """
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Pair):
            raise InputError(f"{path}: a file of another kind ({type(image).__name__}) under the name of a NIfTI file")
        if np.prod(image.shape, dtype=np.float64) > MOST_VALUES:
            raise InputError(f"{path}: its header declares {image.shape} values, more than are read")
        values = np.asanyarray(image.dataobj)
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, nib.filebasedimages.ImageFileError) as error:
        raise InputError(f"{path}: not a NIfTI file, or a damaged one ({error})") from error
    if values.dtype.kind not in "uif":
        raise InputError(f"{path}: values of type {values.dtype}; convert them to plain numbers, a channel each")
    return image, values
