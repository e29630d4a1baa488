"""Reads untrusted files within size bounds: a zip of a few kilobytes can declare a member of terabytes."""

import zipfile
from pathlib import Path

from brainseg_jax.errors import InputError

MOST_BYTES = 8 * 2**20  # of one file; a slice of the Kaggle set has 0.2 MB, its table 9 kB
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile unpacks others without a memory bound
_ENCRYPTED = 1  # bit in the flags of a member


def read_bounded(path: Path | zipfile.Path, limit: int = MOST_BYTES) -> bytes:
    """Reads the bytes of one file, in a folder or in a zip.

    Args:
      path: the file.
      limit: maximum number of bytes, whatever a zip declares.

    Raises:
      InputError: the file is larger or unreadable, or a member of a zip is damaged, encrypted or compressed by an
        unsupported method. The message does not name the file.
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
    except Exception as error:  # zipfile and zlib raise many exception types on damaged bytes
        raise InputError(f"damaged or truncated ({error})") from error
    if len(data) > limit:
        raise InputError(_too_large(path.stat().st_size if isinstance(path, Path) else len(data), limit))
    return data


def open_zip(path: Path) -> zipfile.Path:
    """Opens a zip like a folder.

    Raises:
      InputError: the zip is incomplete, or a member is not a plain relative path; the message names the file.
    """
    try:
        archive = zipfile.ZipFile(path)
        # Before Python 3.11.10, 3.12.6 and 3.13, zipfile.Path loops forever on names such as "//" (CVE-2024-8088).
        for name in archive.namelist():
            if any(part in ("", ".", "..") for part in name.removesuffix("/").split("/")):
                raise InputError(
                    f"{path}: its member {name!r} is not a plain path within the zip; get a new copy, or unpack it "
                    "and give the folder"
                )
        return zipfile.Path(archive)
    except InputError:
        raise
    except Exception as error:  # zipfile raises many exception types on damaged bytes
        raise InputError(
            f"{path}: neither a folder nor a complete zip ({error}). If it is the zip from Kaggle, the download was "
            "interrupted: download it again."
        ) from error


def _check_member(member: zipfile.ZipInfo, limit: int) -> None:
    if member.flag_bits & _ENCRYPTED:
        raise InputError("encrypted; unpack the zip with its password, and give the folder")
    if member.compress_type not in _METHODS:
        method = zipfile.compressor_names.get(member.compress_type, "unknown")  # type: ignore[attr-defined]
        raise InputError(
            f"compressed by method {member.compress_type} ({method}), but only stored and deflated members are "
            "supported; unpack the zip, and give the folder"
        )
    if member.file_size > limit:
        raise InputError(_too_large(member.file_size, limit))


def _too_large(size: int, limit: int) -> str:
    return (
        f"{size / 2**20:.1f} MB, larger than the limit of {limit / 2**20:.0f} MB for such a file; save it "
        "with compression, or with fewer pixels"
    )
