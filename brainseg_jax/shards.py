"""Shards of a command, `--shard=i/n`: each of n processes handles every n-th item, and a merge joins the results.

A shard writes `OUTPUT/shards/COMMAND-i-of-n.jsonl`, with one JSON value per line. The first line is the header: the
shard, and its command, which identifies the work. The command defines the other lines. Each is written when its item is
done, so an interrupted or killed shard resumes after the last complete line.
"""

import contextlib
import fcntl
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from absl import flags

from brainseg_jax.errors import InputError
from brainseg_jax.files import explain

FOLDER = "shards"  # subfolder of the output
T = TypeVar("T")


class Shard(NamedTuple):
    """Shard `index`, from 0, of `count` shards."""

    index: int  # type: ignore[assignment]  # hides the method of tuple
    count: int  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def name(self) -> str:
        """For file names."""
        return f"{self.index}-of-{self.count}"

    @property
    def is_whole(self) -> bool:
        """Whether it covers all items."""
        return self.count == 1

    def of(self, items: Sequence[T]) -> list[T]:
        """Every `count`-th item, starting at `index`. The shards are disjoint and cover all items."""
        return list(items[self.index :: self.count])


ALL = Shard(0, 1)


def parse_shard(text: str, flag: str = "--shard") -> Shard:
    """Parses a flag of the form `i/n`, with i from 0 to n - 1.

    Raises:
      InputError: the text has another form.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not match or not int(match[1]) < int(match[2]):
        raise InputError(f"{flag}={text}: give i/n with i from 0 to n - 1, for example 0/4")
    return Shard(int(match[1]), int(match[2]))


def check_beside_merge(given: Sequence[flags.FlagHolder]) -> None:
    """Raises InputError if one of these flags is given together with --merge."""
    if names := [f"--{flag.name}" for flag in given if flag.present]:
        raise InputError(f"--merge: leave out {', '.join(names)}; the shards already record these settings")


class NotDone(ValueError):
    """A shard was interrupted or is still running."""


class ShardFile:
    """The file of one shard.

    Attributes:
      path: path of the file.
      shard: the shard.
    """

    def __init__(self, output: Path, name: str, shard: Shard, command: dict) -> None:
        """Writes nothing.

        Args:
          output: folder of the results.
          name: name of the command, without `brainseg_jax.`.
          shard: the shard.
          command: what all shards of this work have in common, as JSON values.
        """
        self.path, self.shard = output / FOLDER / f"{name}-{shard.name}.jsonl", shard
        self._command = json.loads(json.dumps(command))
        self._output, self._name = output, name

    def exists(self) -> bool:
        """Whether this shard has started.

        Raises:
          InputError: its file is damaged or from a different command, or there are shards of a different number.
        """
        for other, path in _find(self._output, self._name).items():
            if other.count != self.shard.count:
                raise InputError(
                    f"{path}: from a different number of shards than --shard={self.shard}; merge those first, or "
                    f"remove {path.parent}"
                )
        if not self.path.exists():
            return False
        with _opened(self.path) as file:
            try:
                command = _read_header(file, self.shard)
            except NotDone:  # killed while writing the first line
                return False
            except ValueError as error:
                raise InputError(f"{self.path}: damaged ({error}); give --overwrite to start it again") from error
        if differences := describe_differences(command, self._command):
            raise InputError(
                f"{self.path}: already exists, written by a different command or from different input ({differences}); "
                "give another --output, or --overwrite to start this shard again"
            )
        return True

    @contextlib.contextmanager
    def opened(self, *, new: bool) -> Iterator[BinaryIO]:
        """Opens the file for reading and writing, positioned after its header. `new` creates or empties it.

        Raises:
          InputError: it cannot be written, or another process is writing it.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+b")
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({explain(error)})") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{self.path}: another process is working on shard {self.shard}; wait for it"
                ) from None
            except OSError:  # the file system has no locks
                pass
            if new:
                file.truncate(0)
                write_line(file, {"shard": str(self.shard), "command": self._command})
            file.seek(0)
            file.readline()
            yield file


def write_line(file: BinaryIO, value: dict, default: Callable | None = None) -> None:
    """Appends a line to the file of a shard. Raises InputError if it cannot be written."""
    try:
        file.write(json.dumps(value, default=default).encode() + b"\n")
        file.flush()
    except OSError as error:
        raise InputError(f"cannot record finished work ({explain(error)})") from error


@contextlib.contextmanager
def opened_shards(
    output: Path, name: str, read: Callable[[BinaryIO, Shard, dict], T]
) -> Iterator[tuple[dict, dict[Path, T]]]:
    """Opens all shards of a command, in the order of their indices, and keeps the files open.

    Args:
      output: folder of the results.
      name: see `ShardFile`.
      read: reads a file that is positioned after its header. It gets the file, its shard and the command. It raises
        `NotDone`, or another ValueError if the file is damaged.

    Yields:
      The command, and the result of `read` for each file.

    Raises:
      InputError: there is no shard, or shards are missing, unfinished, damaged or from different commands. The message
        lists all faults.
    """
    paths = _find(output, name)
    if not paths:
        raise InputError(
            f"--merge: no shard of {name} in {output / FOLDER}; run {name} with --shard=0/N, 1/N, ... first"
        )
    faults, commands, contents = [], {}, {}
    with contextlib.ExitStack() as stack:
        for shard, path in paths.items():
            try:
                file = stack.enter_context(_opened(path))
                commands[path] = _read_header(file, shard)
                contents[path] = read(file, shard, commands[path])
            except NotDone:
                faults.append(f"{path}: shard {shard} is not done; wait for it, or run it again if it was stopped")
            except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
                faults.append(f"{path}: damaged ({error or type(error).__name__}); run shard {shard} with --overwrite")
            except InputError as error:
                faults.append(str(error))
        if faults := _incompatible(paths, commands) or _missing(output, name, paths) + faults:
            raise InputError("--merge: the shards cannot be joined:\n" + "\n".join(f"  {fault}" for fault in faults))
        yield next(iter(commands.values())), contents


def _incompatible(paths: dict[Shard, Path], commands: dict[Path, dict]) -> list[str]:
    """Faults of shards that do not belong together. Which ones are missing is unknown until these are removed."""
    counts = sorted({shard.count for shard in paths})
    if len(counts) > 1:
        listed = ", ".join(path.name for path in paths.values())
        return [f"different numbers of shards: {' and '.join(map(str, counts))} ({listed}); remove the old ones"]
    faults = []
    (first, command), *others = commands.items() or [(Path(), {})]
    for path, other in others:
        if differences := describe_differences(other, command):
            faults.append(f"{path}: from a different command or input than {first.name} ({differences})")
    return [*faults, "remove the files that do not belong, or run all shards with --overwrite"] if faults else []


def _missing(output: Path, name: str, paths: dict[Shard, Path]) -> list[str]:
    count = next(iter(paths)).count
    missing = [shard for shard in (Shard(index, count) for index in range(count)) if shard not in paths]
    return [f"{output / FOLDER}: shard {shard} is missing; run {name} with --shard={shard}" for shard in missing]


def remove_shards(output: Path, name: str) -> None:
    """Removes the files of all shards, and their folder if it is empty."""
    for path in _find(output, name).values():
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (output / FOLDER).rmdir()


def describe_differences(command: dict, other: dict) -> str:
    """Describes the differences between two commands; "" if they are equal."""
    differences = []
    for key in [key for key in {**command, **other} if command.get(key) != other.get(key)]:
        first, second = command.get(key), other.get(key)
        if isinstance(first, dict) and isinstance(second, dict):
            names = sorted(name for name in {**first, **second} if first.get(name) != second.get(name))
            sizes = f": {len(first)} and {len(second)}" if len(first) != len(second) else ""
            differences.append(f"{key}{sizes}; {', '.join(names[:3])}{', ...' if names[3:] else ''} changed")
        else:
            differences.append(f"{key}: {_text(first)} and {_text(second)}")
    return "; ".join(differences)


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _find(output: Path, name: str) -> dict[Shard, Path]:
    """The files of all shards of a command."""
    pattern = re.compile(re.escape(name) + r"-([0-9]{1,6})-of-([0-9]{1,6})\.jsonl")
    matches = ((path, pattern.fullmatch(path.name)) for path in (output / FOLDER).glob("*"))
    paths = {Shard(int(match[1]), int(match[2])): path for path, match in matches if match}
    return dict(sorted(paths.items(), key=lambda item: (item[0].count, item[0].index)))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({explain(error)})") from error
    with file:
        yield file


def _read_header(file: BinaryIO, shard: Shard) -> dict:
    """The command in the header. Raises ValueError if the header is invalid or of another shard."""
    line = file.readline()
    if not line.endswith(b"\n"):
        raise NotDone("the header is incomplete")
    try:
        header = json.loads(line)
        named_shard, command = header["shard"], header["command"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"invalid header: {error!r}") from error
    if named_shard != str(shard):
        raise ValueError(f"its header names shard {named_shard}")
    if not isinstance(command, dict):
        raise ValueError("its header has no command")
    return command
