"""Paths that a user gives, and files that are whole or not there, whoever else writes them at the same time."""

import errno
import uuid
from collections.abc import Callable
from pathlib import Path

from brainseg_jax.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def user_path(text: str, flag: str) -> Path:
    """The path that a flag or a config key gives, with `~` replaced by the home folder. It need not exist.

    Raises:
      InputError: the home folder is not known, or the operating system refuses to look the path up.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"{flag}={text}: the home folder that ~ stands for is not known ({error}); give the path without ~"
        ) from error
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise InputError(f"{flag}={text}: {explain(error, 'another path')}") from error
    return path


def is_full(error: BaseException) -> bool:
    """Whether an error of writing means that the disk, or what the user may use of it, is full."""
    # array_record reports a full disk as a RuntimeError.
    return getattr(error, "errno", None) in _FULL or "No space left on device" in str(error)


def explain(error: BaseException, instead: str = "another folder") -> str:
    """Why a file cannot be read or written, and the remedy.

    Args:
      error: an OSError, or what a library raises in its place.
      instead: what else the user can give.
    """
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if is_full(error):
        return f"{reason}; make room, or give {instead}"
    if getattr(error, "errno", None) == errno.ENAMETOOLONG:
        return f"{reason}: a name has at most 255 bytes; give a shorter one"
    return f"{reason}; give {instead}"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a path beside `path`, of the same suffix and nobody else's, and renames: all or nothing.

    Of several processes that write one file the last stands; none meets the half-written file of another.

    Args:
      path: what to write; a file that is there is replaced.
      write: takes the path that it writes to.
    """
    # The end of the name alone: a long name has to fit too.
    partial = path.with_name(f".part-{uuid.uuid4().hex[:12]}-{path.name[-16:]}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
