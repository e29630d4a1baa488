"""Paths from users, files that are written completely or not at all, and log files for tracebacks."""

import contextlib
import errno
import os
import shutil
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from brainseg_jax.errors import InputError

PRETRAINED = Path(__file__).parent / "pretrained" / "lgg"  # the stored network in this package
_FULL = (errno.ENOSPC, errno.EDQUOT)


def user_path(text: str, flag: str) -> Path:
    """The path in a flag or config key, with `~` replaced by the home folder. It need not exist.

    Raises:
      InputError: the home folder is unknown, or the operating system cannot look up the path.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"{flag}={text}: the home folder for ~ is unknown ({error}); give the path without ~"
        ) from error
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise InputError(f"{flag}={text}: {explain(error, 'another path')}") from error
    return path


def network_path(text: str, flag: str) -> Path:
    """As `user_path`, for the folder of a trained network. `pretrained` means the network in this package.

    For a folder with that name write `./pretrained`.
    """
    return PRETRAINED if text == "pretrained" else user_path(text, flag)


def check_folder(folder: Path, flag: str) -> None:
    """Raises InputError if `folder` cannot be written to. Creates nothing. Cheap, so call it first."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{flag}={folder} is a file; give a folder")
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(nearest, os.W_OK):
        raise InputError(f"{flag}={folder}: {nearest} cannot be written to; give another folder")


def is_full(error: BaseException) -> bool:
    """Whether a write error means that the disk or the quota of the user is full."""
    # array_record reports a full disk as a RuntimeError.
    return getattr(error, "errno", None) in _FULL or "No space left on device" in str(error)


def explain(error: BaseException, instead: str = "another folder") -> str:
    """Why a file cannot be read or written, and the remedy.

    Args:
      error: an OSError, or the error that a library raises in its place.
      instead: what else the user can give.
    """
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if is_full(error):
        return f"{reason}; make room, or give {instead}"
    if getattr(error, "errno", None) == errno.ENAMETOOLONG:
        return f"{reason}: a name has at most 255 bytes; give a shorter one"
    return f"{reason}; give {instead}"


def format_bytes(count: float) -> str:
    """Formats a number of bytes, in MiB below one GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file completely or not at all: `write` gets a unique path beside `path`; a rename to `path` follows.

    If several processes write one file, the last one wins. No process sees an incomplete file.

    Args:
      path: the file; an existing one is replaced.
      write: writes to the path that it gets, which has the suffix of `path`.
    """
    write_together({path: write})


def write_together(writers: Mapping[Path, Callable[[Path], object]], remove: Iterable[Path] = ()) -> None:
    """As `write_whole` for several files: it renames them only after all are written.

    If a rename or a removal fails, it restores all old files.

    Args:
      writers: a function for each file, see `write_whole`.
      remove: files to remove in the same step.
    """
    # Only the end of the name, so that long names stay within the limit.
    partial = {path: path.with_name(f".part-{uuid.uuid4().hex[:12]}-{path.name[-16:]}") for path in writers}
    try:
        for path, write in writers.items():
            write(partial[path])
        _swap(partial, list(remove))
    finally:
        for temporary in partial.values():
            temporary.unlink(missing_ok=True)


def _swap(partial: Mapping[Path, Path], remove: Sequence[Path]) -> None:
    """Renames the written files and removes others: all or nothing."""
    if len(partial) + len(remove) == 1:  # a single rename is atomic
        for path, written in partial.items():
            written.replace(path)
        for path in remove:
            path.unlink(missing_ok=True)
        return
    backups: dict[Path, Path] = {}
    changed: list[Path] = []
    try:
        for path in (*partial, *remove):
            if os.path.lexists(path):
                backups[path] = path.with_name(f".old-{uuid.uuid4().hex[:12]}-{path.name[-16:]}")
                _back_up(path, backups[path])
        for path, written in partial.items():
            written.replace(path)
            changed.append(path)
        for path in remove:
            path.unlink(missing_ok=True)
            changed.append(path)
    except BaseException:
        for path in changed:
            if path in backups:
                backups[path].replace(path)
            else:
                path.unlink(missing_ok=True)
        raise
    finally:
        for backup in backups.values():
            backup.unlink(missing_ok=True)


def _back_up(path: Path, backup: Path) -> None:
    """Hard-links a file, or copies it if the file system has no hard links. Keeps symbolic links."""
    try:
        os.link(path, backup, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(path, backup, follow_symlinks=False)


def describe_unforeseen(error: BaseException) -> str:
    """One line for an unforeseen exception: its type, its message and the log file with its traceback.

    All tracebacks of a process go to one new file `brainseg_jax_*.log` in the temporary folder. Fallbacks are the
    current folder, then stderr.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    summary = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    text = "".join(traceback.format_exception(error))
    if path := _write_to_log(text):
        return f"{summary} (unforeseen; its traceback is in {path})"
    print(text, file=sys.stderr)
    return f"{summary} (unforeseen; its traceback is above, since no log file can be written)"


_log: list[str] = []  # path of the log file of this process, once it exists


def _write_to_log(text: str) -> str | None:
    """Appends to the log of this process. Returns its path, or None if no file can be written."""
    with contextlib.suppress(OSError):
        if _log:
            with open(_log[0], "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"\n{text}")
            return _log[0]
    for folder in _log_folders():
        try:
            number, path = tempfile.mkstemp(prefix="brainseg_jax_", suffix=".log", dir=folder)
        except OSError:
            continue
        try:
            with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError:  # a full disk can have space for the name only
            Path(path).unlink(missing_ok=True)
            continue
        _log[:] = [path]
        return path
    return None


def _log_folders() -> Iterator[str]:
    with contextlib.suppress(OSError):  # no usual temporary folder is writable
        yield tempfile.gettempdir()
    yield "."
