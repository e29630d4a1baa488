"""The exceptions that a command prints without a traceback, each with an exit status of its own (see `cli.run`)."""

import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path


class InputError(ValueError):
    """A file, flag or value from the user that cannot be used.

    The message names the file or key, the value found and what to do. The commands print it without a traceback and
    exit with status 2; nothing is half-written when it is raised.
    """


class TrainingDiverged(RuntimeError):
    """A loss or gradient is not a finite number. The message names the step, its patients, the last good checkpoint."""


class StorageError(RuntimeError):
    """The run folder cannot be written to, or what lies there is damaged. The message names what is still whole."""


class TrainingStopped(RuntimeError):
    """SIGTERM or SIGINT came, and the run was saved. The message says how to go on."""


class PartlyDone(RuntimeError):
    """Some of what was asked for is done and written; the message names what could not be done, and why."""


def describe_unforeseen(error: BaseException) -> str:
    """One line for an exception that the code does not foresee: type, words, and the file that holds its traceback.

    The traceback goes to a new file `brainseg_jax_*.log` in the folder for temporary files, else in the current folder,
    else to stderr.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    text = "".join(traceback.format_exception(error))
    for folder in _log_folders():
        try:
            number, name = tempfile.mkstemp(prefix="brainseg_jax_", suffix=".log", dir=folder)
        except OSError:
            continue
        try:
            with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError:  # a full disk has room for the name alone
            Path(name).unlink(missing_ok=True)
            continue
        return f"{words} (unforeseen; its traceback is in {name})"
    print(text, file=sys.stderr)
    return f"{words} (unforeseen; its traceback is above, since no file for it can be written)"


def _log_folders() -> Iterator[str]:
    with contextlib.suppress(OSError):  # where none of the usual folders can be written to
        yield tempfile.gettempdir()
    yield "."
