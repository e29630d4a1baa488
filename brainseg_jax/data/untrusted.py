"""Reads files that come from others: a zip of a few kilobytes can declare a member of terabytes."""

import zipfile
from pathlib import Path

from brainseg_jax.errors import InputError

MOST_BYTES = 8 * 2**20  # of one file; a slice of the Kaggle set has 0.2 MB, its table 9 kB


def read_bounded(path: Path | zipfile.Path, limit: int = MOST_BYTES) -> bytes:
    """The bytes of one file of a source, in a folder or in a zip.

    Raises:
      InputError: it is larger than `limit`, in bytes; no more were unpacked.
    """
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise InputError(f"larger than {limit >> 20} MB, the most that is read of such a file")
    return data
