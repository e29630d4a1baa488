"""Reads files that come from others: a zip of a few kilobytes can declare a member of terabytes."""

import zipfile
from pathlib import Path

from brainseg_jax.errors import InputError

MOST_BYTES = 8 * 2**20  # of one file; a slice of the Kaggle set has 0.2 MB, its table 9 kB
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others are unpacked without a bound on memory
_ENCRYPTED = 1  # a bit of the flags of a member


def read_bounded(path: Path | zipfile.Path, limit: int = MOST_BYTES) -> bytes:
    """The bytes of one file of a source, in a folder or in a zip.

    Args:
      path: the file.
      limit: the most bytes that are read, whatever a zip declares.

    Raises:
      InputError: the file is larger or cannot be read, or is a member of a zip that is damaged, encrypted or compressed
        in a way that is not read. The message does not name the file.
    """
    try:
        if isinstance(path, zipfile.Path):
            _check_member(path.root.getinfo(path.at), limit)
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})") from error
    except Exception as error:  # zipfile and zlib raise a dozen kinds on damaged bytes; each means this one member
        raise InputError(f"damaged or truncated ({error})") from error
    if len(data) > limit:
        raise InputError(_too_large(path.stat().st_size if isinstance(path, Path) else len(data), limit))
    return data


def open_zip(path: Path) -> zipfile.Path:
    """Opens a zip as a folder.

    Raises:
      InputError: it is no whole zip, or a name of a member is no plain path; the message names the file.
    """
    try:
        archive = zipfile.ZipFile(path)
        # Before Python 3.11.10, 3.12.6 and 3.13, zipfile.Path runs forever on names such as "//" (CVE-2024-8088).
        for name in archive.namelist():
            if any(part in ("", ".", "..") for part in name.removesuffix("/").split("/")):
                raise InputError(
                    f"{path}: its member {name!r} is no plain path within the zip; get a new copy, or unpack it and "
                    "give the folder"
                )
        return zipfile.Path(archive)
    except InputError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds on damaged bytes
        raise InputError(
            f"{path}: neither a folder nor a whole zip ({error}). If it is Kaggle's zip, its download broke off: "
            "download it again."
        ) from error


def _check_member(member: zipfile.ZipInfo, limit: int) -> None:
    if member.flag_bits & _ENCRYPTED:
        raise InputError("encrypted; unpack the zip with its password, and give the folder")
    if member.compress_type not in _METHODS:
        method = zipfile.compressor_names.get(member.compress_type, "unknown")
        raise InputError(
            f"compressed by method {member.compress_type} ({method}), and only stored and deflated members are read; "
            "unpack the zip, and give the folder"
        )
    if member.file_size > limit:
        raise InputError(_too_large(member.file_size, limit))


def _too_large(size: int, limit: int) -> str:
    return (
        f"{size / 2**20:.1f} MB, larger than {limit / 2**20:.0f} MB, the most that is read of such a file; save it "
        "with compression, or with fewer pixels"
    )
