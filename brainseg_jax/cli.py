"""Shared by all commands: errors become one line and an exit status, never a traceback."""

import brainseg_jax.import_errors  # isort: skip  # noqa: F401

import io
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR
from types import FrameType
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging

from brainseg_jax.errors import InputError, PartlyDone, StorageError, TrainingDiverged, TrainingStopped
from brainseg_jax.files import describe_unforeseen


def run(main: Callable[[list[str]], object]) -> None:
    """Parses the command line, calls `main` and exits. Errors are printed to stderr as `error: ...`.

    The exit status is 2 for an `InputError`, a misspelt flag or config key, a value of the wrong type and an extra
    argument. It is 3 for `TrainingDiverged`, 4 for `StorageError`, 5 for `PartlyDone` and 130 for `KeyboardInterrupt`.
    It is 75 for `TrainingStopped` (`EX_TEMPFAIL` of sysexits.h: a scheduler can queue the same command again). It is 1
    for any other exception; the message then names a file with the traceback.

    Args:
      main: The command. Like in absl, its argument is a list with the program name only.
    """

    def guarded(argv: list[str]) -> None:
        _configure_jax()
        _accept_unknown_owners()
        try:
            main(argv)
        except InputError as error:
            _fail(str(error))
        except TrainingDiverged as error:
            _fail(str(error), status=3)
        except StorageError as error:
            _fail(str(error), status=4)
        except PartlyDone as error:
            _fail(str(error), status=5)
        except TrainingStopped as error:
            _fail(str(error), status=75)
        except KeyboardInterrupt as error:
            _fail(str(error) or "interrupted; repeat the command to continue from what is finished", status=130)
        except BrokenPipeError as error:
            if error.filename is not None or error.filename2 is not None:
                _fail(describe_unforeseen(error), status=1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python reports an error at exit
            _fail("standard output was closed before everything was printed", status=1)
        except Exception as error:
            if _is_device_error(error):
                platforms, reason = os.environ.get("JAX_PLATFORMS", ""), str(error).partition("\n")[0] or "no device"
                _fail(f"JAX cannot start with JAX_PLATFORMS={platforms} ({reason}); unset it, or set it to cpu")
            _fail(describe_unforeseen(error), status=1)

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal cannot encode is not an error
            stream.reconfigure(errors="backslashreplace")
    absl_logging.get_absl_handler().addFilter(_is_shown)
    # After a failed read or write Orbax does not close its coroutines. Python would print a traceback for each of them.
    sys.unraisablehook = lambda unraisable: absl_logging.debug("ignored: %s", unraisable.exc_value)
    app.run(guarded, flags_parser=_parse)


def given(flag: flags.FlagHolder[str | None]) -> str:
    """The value of a flag without a default, once the command has checked that the flag is given."""
    assert flag.value is not None
    return flag.value


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Makes SIGTERM, the signal of schedulers and `kill`, raise KeyboardInterrupt like Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        arguments = flags.FLAGS(argv)
        for name in flags.FLAGS:
            # ml_collections reports a config file that it cannot open only when the config is first used: use it here.
            getattr(flags.FLAGS[name].value, "lock", None)
    except Exception as error:  # a config file is a program, so it can raise anything
        _fail(_explain(error, argv))
    if len(arguments) > 1:
        _fail(f"unexpected argument {arguments[1]!r}: write each option as --name=value (--help lists all options)")
    return arguments


def _explain(error: BaseException, argv: Sequence[str]) -> str:
    """The message for a parsing error. For a misspelt config key it includes the suggestion of ml_collections."""
    link: BaseException | None = error
    while link is not None:  # an InputError of a config file is wrapped in two other exceptions
        if isinstance(link, InputError) and "Traceback" not in str(link):
            return str(link)
        link = link.__cause__ or link.__context__
    if isinstance(error, OSError):  # the last line has the cause; the lines above list the paths tried
        return f"the config file cannot be read: {str(error).strip().splitlines()[-1].strip()}"
    if isinstance(error, (SyntaxError, ImportError, NameError)):
        return f"the config file is not valid Python: {error}"
    if not isinstance(error, (AttributeError, KeyError)):
        return str(error)
    text = str(error.args[0].args[0] if isinstance(error.args[0], Exception) else error.args[0])
    missing = re.match(r"'(?P<key>\w+)'\s*(?P<hint>.*)", text)
    message = f"the config has no key '{missing['key']}'. {missing['hint']}".rstrip() if missing else text
    options = [word for word in argv if missing and re.search(rf"\.{missing['key']}\b", word)]
    # Without such an option the error is in the config file: in the last line outside of a library.
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    return f"{options[0] if options else f'{frames[-1].filename}, line {frames[-1].lineno}'}: {message}"


def _is_device_error(error: Exception) -> bool:
    """Whether JAX found no device of the requested kind. Without the plugin of a GPU, JAX raises an AssertionError."""
    frames = traceback.extract_tb(error.__traceback__)
    return "Unable to initialize backend" in str(error) or "xla_bridge" in frames[-1].filename


def _configure_jax() -> None:
    """If the command has imported JAX, sets its number types and limits the memory of its compiler."""
    if "jax" not in sys.modules:
        return
    from brainseg_jax.compilation import release_compiler_memory, use_plain_numbers

    use_plain_numbers()
    release_compiler_memory()


def _accept_unknown_owners() -> None:
    """Lets TFDS and Orbax read files of an unknown owner, as in containers and on network drives.

    To get the size of a file they call `etils.epath`. It also looks up the names of owner and group, and raises
    KeyError for an unknown name.
    """
    backend = getattr(sys.modules.get("etils.epath.backend"), "_OsPathBackend", None)
    if backend is None:
        return
    stat, result = backend.stat, sys.modules["etils.epath.stat_utils"].StatResult

    def stat_any(self: object, path: os.PathLike) -> object:
        try:
            return stat(self, path)
        except KeyError:
            status = os.stat(path)
            return result(
                is_directory=S_ISDIR(status.st_mode),
                length=status.st_size,
                mtime=int(status.st_mtime),
                owner=str(status.st_uid),
                group=str(status.st_gid),
                mode=status.st_mode,
            )

    backend.stat = stat_any


def _is_shown(record: logging.LogRecord) -> bool:
    """Whether to show a log record: all of this package, and warnings of others.

    Orbax alone logs about fifty lines per checkpoint. Two kinds of its warnings are hidden: tracebacks of its threads,
    which also arrive as a `StorageError`, and notes that a run is read-only.
    """
    is_own = Path(record.pathname).is_relative_to(Path(__file__).parent)
    if is_own or record.levelno < logging.WARNING:
        return is_own
    return record.exc_info is None and not re.search("read.only", record.getMessage())


def _fail(message: str, *, status: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(status)
