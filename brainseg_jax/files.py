"""Paths that a user gives; files that are whole or not there, whoever else writes them; files that hold tracebacks."""

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


def network_path(text: str, flag: str) -> Path:
    """As `user_path`, of a folder with a trained network; the word `pretrained` names the one in this package.

    A folder of that name is given as `./pretrained`.
    """
    return PRETRAINED if text == "pretrained" else user_path(text, flag)


def check_folder(folder: Path, flag: str) -> None:
    """Raises InputError where nothing can be written to `folder`; makes nothing. Cheap, so it comes first."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{flag}={folder} is a file; give a folder")
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(nearest, os.W_OK):
        raise InputError(f"{flag}={folder}: {nearest} cannot be written to; give another folder")


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


def format_bytes(count: float) -> str:
    """A number of bytes in words: MiB below one GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a path beside `path`, of the same suffix and nobody else's, and renames: all or nothing.

    Of several processes that write one file the last stands; none meets the half-written file of another.

    Args:
      path: what to write; a file that is there is replaced.
      write: takes the path that it writes to.
    """
    write_together({path: write})


def write_together(writers: Mapping[Path, Callable[[Path], object]], remove: Iterable[Path] = ()) -> None:
    """As `write_whole` for several files: none gets its name before all are written.

    Where one of them cannot get its name, or cannot be removed, all old files are put back.

    Args:
      writers: what writes each file, see `write_whole`.
      remove: files that are taken away with the same step.
    """
    # The end of the name alone: a long name has to fit too.
    partial = {path: path.with_name(f".part-{uuid.uuid4().hex[:12]}-{path.name[-16:]}") for path in writers}
    try:
        for path, write in writers.items():
            write(partial[path])
        _swap(partial, list(remove))
    finally:
        for written in partial.values():
            written.unlink(missing_ok=True)


def _swap(partial: Mapping[Path, Path], remove: Sequence[Path]) -> None:
    """Renames the written files to their names and removes others: all or nothing."""
    if len(partial) + len(remove) == 1:  # a rename is all or nothing by itself
        for path, written in partial.items():
            written.replace(path)
        for path in remove:
            path.unlink(missing_ok=True)
        return
    old: dict[Path, Path] = {}
    changed: list[Path] = []
    try:
        for path in (*partial, *remove):
            if os.path.lexists(path):
                old[path] = path.with_name(f".old-{uuid.uuid4().hex[:12]}-{path.name[-16:]}")
                _back_up(path, old[path])
        for path, written in partial.items():
            written.replace(path)
            changed.append(path)
        for path in remove:
            path.unlink(missing_ok=True)
            changed.append(path)
    except BaseException:
        for path in changed:
            if path in old:
                old[path].replace(path)
            else:
                path.unlink(missing_ok=True)
        raise
    finally:
        for kept in old.values():
            kept.unlink(missing_ok=True)


def _back_up(path: Path, backup: Path) -> None:
    """A second name for a file, or a copy where the file system has no hard links; a link stays a link."""
    try:
        os.link(path, backup, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(path, backup, follow_symlinks=False)


def describe_unforeseen(error: BaseException) -> str:
    """One line for an exception that the code does not foresee: type, words, and the file that holds its traceback.

    All tracebacks of a process go to one new file `brainseg_jax_*.log` in the folder for temporary files, else in the
    current folder, else to stderr.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    text = "".join(traceback.format_exception(error))
    if path := _keep(text):
        return f"{words} (unforeseen; its traceback is in {path})"
    print(text, file=sys.stderr)
    return f"{words} (unforeseen; its traceback is above, since no file for it can be written)"


_log: list[str] = []  # the file of this process, once there is one


def _keep(text: str) -> str | None:
    """Adds to the log of this process and returns its path, or None where no file can be written."""
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
        except OSError:  # a full disk has room for the name alone
            Path(path).unlink(missing_ok=True)
            continue
        _log[:] = [path]
        return path
    return None


def _log_folders() -> Iterator[str]:
    with contextlib.suppress(OSError):  # where none of the usual folders can be written to
        yield tempfile.gettempdir()
    yield "."
