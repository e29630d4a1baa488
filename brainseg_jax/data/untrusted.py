"""Reads files that come from others: a zip of a few kilobytes can declare a member of terabytes."""

import zipfile
from pathlib import Path

from brainseg_jax.errors import InputError

MOST_BYTES = 8 * 2**20  # of one file; a slice of the Kaggle set has 0.2 MB, its table 9 kB


def read_bounded(path: Path | zipfile.Path) -> bytes:
    """The bytes of one file of a source, in a folder or in a zip.

    Raises:
      InputError: it is larger than a file of such a set can be; no more than `MOST_BYTES` were unpacked.
    """
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise InputError(f"larger than {MOST_BYTES >> 20} MB, which no file of the set is")
    return data
