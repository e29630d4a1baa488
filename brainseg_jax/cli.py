"""What every command shares: a mistake of the user ends in one line and exit status 2, and nothing in a traceback."""

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
    """Parses the command line, calls `main` and leaves the process.

    An `InputError`, a misspelt flag or config key, a value of the wrong type and a stray argument are printed to stderr
    as `error: ...` and end the process with status 2; a `TrainingDiverged` with 3, a `StorageError` with 4, a
    `PartlyDone` with 5, a `TrainingStopped` with 75 (`EX_TEMPFAIL` of sysexits.h: a scheduler may queue the same
    command again), a `KeyboardInterrupt` with 130. Any other exception ends it with status 1 and one line, which names
    the file that holds the traceback.

    Args:
      main: the command, called as absl calls it: with a list that holds the program's name only.
    """

    def guarded(argv: list[str]) -> None:
        _settle_jax()
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
            _fail(str(error) or "interrupted; the same command goes on from what is finished", status=130)
        except BrokenPipeError as error:
            if error.filename is not None or error.filename2 is not None:
                _fail(describe_unforeseen(error), status=1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
            _fail("standard output was closed before everything was printed", status=1)
        except Exception as error:
            if _is_of_devices(error):
                platforms, reason = os.environ.get("JAX_PLATFORMS", ""), str(error).partition("\n")[0] or "no device"
                _fail(f"JAX cannot start with JAX_PLATFORMS={platforms} ({reason}); unset it, or set it to cpu")
            _fail(describe_unforeseen(error), status=1)

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name or a unit that the terminal's encoding lacks is no error
            stream.reconfigure(errors="backslashreplace")
    absl_logging.get_absl_handler().addFilter(_is_worth_showing)
    # After a failed read or write Orbax leaves coroutines behind, and Python prints a traceback for each it collects.
    sys.unraisablehook = lambda left: absl_logging.debug("ignored: %s", left.exc_value)
    app.run(guarded, flags_parser=_parse)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within it SIGTERM, by which schedulers and `kill` end a process, raises KeyboardInterrupt as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        left_over = flags.FLAGS(argv)
        for name in flags.FLAGS:
            # ml_collections keeps the failure to open a config file until the config is first touched: touch it here.
            getattr(flags.FLAGS[name].value, "lock", None)
    except Exception as error:  # a config file is a program: it can fail in any way
        _fail(_explain(error, argv))
    if len(left_over) > 1:
        _fail(f"unexpected argument {left_over[1]!r}: every option is written --name=value (--help lists them)")
    return left_over


def _explain(error: BaseException, argv: Sequence[str]) -> str:
    """The words for a parsing error; a misspelt config key keeps the suggestion of ml_collections."""
    link: BaseException | None = error
    while link is not None:  # a config file's own InputError arrives wrapped in two tracebacks: look for it
        if isinstance(link, InputError) and "Traceback" not in str(link):
            return str(link)
        link = link.__cause__ or link.__context__
    if isinstance(error, OSError):  # the cause stands in the last line, below the paths that were tried
        return f"the config file cannot be read: {str(error).strip().splitlines()[-1].strip()}"
    if isinstance(error, (SyntaxError, ImportError, NameError)):
        return f"the config file is no working Python: {error}"
    if not isinstance(error, (AttributeError, KeyError)):
        return str(error)
    text = str(error.args[0].args[0] if isinstance(error.args[0], Exception) else error.args[0])
    missing = re.match(r"'(?P<key>\w+)'\s*(?P<hint>.*)", text)
    words = f"the config has no key '{missing['key']}'. {missing['hint']}".rstrip() if missing else text
    on_command_line = [word for word in argv if missing and re.search(rf"\.{missing['key']}\b", word)]
    # Else the mistake is in the config file itself: the last line that is not of a library is its place.
    own = [at for at in traceback.extract_tb(error.__traceback__) if "site-packages" not in at.filename]
    return f"{on_command_line[0] if on_command_line else f'{own[-1].filename}, line {own[-1].lineno}'}: {words}"


def _is_of_devices(error: Exception) -> bool:
    """Whether JAX found no device of the kind that was asked for; without the plugin of a GPU it fails an assertion."""
    frames = traceback.extract_tb(error.__traceback__)
    return "Unable to initialize backend" in str(error) or "xla_bridge" in frames[-1].filename


def _settle_jax() -> None:
    """Where the command has imported JAX: its arithmetic is set, and the memory of its compiler bounded."""
    if "jax" not in sys.modules:
        return
    from brainseg_jax.compilation import release_compiler_memory, use_plain_numbers

    use_plain_numbers()
    release_compiler_memory()


def _accept_unknown_owners() -> None:
    """Lets TFDS and Orbax work on files whose owner has no name here, as in containers and on network drives.

    They ask `etils.epath` for the size of a file, which looks up the names of its owner and group too, and raises
    KeyError where there is none.
    """
    backend = getattr(sys.modules.get("etils.epath.backend"), "_OsPathBackend", None)
    if backend is None:
        return
    stat, result = backend.stat, sys.modules["etils.epath.stat_utils"].StatResult

    def stat_any(self: object, path: os.PathLike) -> object:
        try:
            return stat(self, path)
        except KeyError:
            found = os.stat(path)
            return result(
                is_directory=S_ISDIR(found.st_mode),
                length=found.st_size,
                mtime=int(found.st_mtime),
                owner=str(found.st_uid),
                group=str(found.st_gid),
                mode=found.st_mode,
            )

    backend.stat = stat_any


def _is_worth_showing(record: logging.LogRecord) -> bool:
    """Our own words and everybody's warnings; Orbax alone tells some fifty lines about each checkpoint.

    A traceback that Orbax logs from its threads arrives as a `StorageError` as well; that a run is only read, it says
    three times.
    """
    own = Path(record.pathname).is_relative_to(Path(__file__).parent)
    if own or record.levelno < logging.WARNING:
        return own
    return record.exc_info is None and not re.search("read.only", record.getMessage())


def _fail(message: str, *, status: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(status)
