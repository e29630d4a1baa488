"""Shards of the work, `--shard=i/n`: each of n processes takes every n-th item, and a merge joins what they leave.

A shard leaves `OUTPUT/shards/COMMAND-i-of-n.jsonl`: JSON, a value a line. The first line is the header: the shard and
its command, which identifies what it works on. The others are the command's; each is written as soon as its item is
done, so a shard that was stopped, even by a kill, goes on after the last whole one.
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

FOLDER = "shards"  # below the output
T = TypeVar("T")


class Shard(NamedTuple):
    """The shard `index`, from 0, of `count`."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.index}-of-{self.count}"

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the work."""
        return self.count == 1

    def of(self, items: Sequence[T]) -> list[T]:
        """Every `count`-th item, from the item `index` on. The shards are disjoint and cover all items."""
        return list(items[self.index :: self.count])


ALL = Shard(0, 1)


def parse_shard(text: str, flag: str = "--shard") -> Shard:
    """The shard that a flag names as `i/n`, with i from 0 to n - 1.

    Raises:
      InputError: it is anything else.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not match or not int(match[1]) < int(match[2]):
        raise InputError(f"{flag}={text}: give i/n with i from 0 to n - 1, for example 0/4")
    return Shard(int(match[1]), int(match[2]))


def check_beside_merge(given: Sequence[flags.FlagHolder]) -> None:
    """Raises InputError where one of the flags stands on the command line beside --merge."""
    if names := [f"--{flag.name}" for flag in given if flag.present]:
        raise InputError(f"--merge: leave out {', '.join(names)}; the shards already record these settings")


class NotDone(ValueError):
    """A shard was stopped, or is still at work."""


class ShardFile:
    """The file that one shard leaves.

    Attributes:
      path: of the file.
      shard: which one.
    """

    def __init__(self, output: Path, name: str, shard: Shard, command: dict) -> None:
        """Writes nothing.

        Args:
          output: folder of the results.
          name: of the command, without `brainseg_jax.`.
          shard: which one.
          command: what all shards of the same work have in common, content for JSON.
        """
        self.path, self.shard = output / FOLDER / f"{name}-{shard.name}.jsonl", shard
        self._command = json.loads(json.dumps(command))
        self._output, self._name = output, name

    def exists(self) -> bool:
        """Whether this shard has begun.

        Raises:
          InputError: its file is damaged or of a different command, or there are shards of a different number.
        """
        for other, path in _find(self._output, self._name).items():
            if other.count != self.shard.count:
                raise InputError(
                    f"{path}: of a different number of shards than --shard={self.shard}; merge those first, or remove "
                    f"{path.parent}"
                )
        if not self.path.exists():
            return False
        with _opened(self.path) as file:
            try:
                command = _read_header(file, self.shard)
            except NotDone:  # killed before the first line was whole
                return False
            except ValueError as error:
                raise InputError(f"{self.path}: damaged ({error}); give --overwrite to begin it again") from error
        if words := describe_differences(command, self._command):
            raise InputError(
                f"{self.path}: already exists, written by a different command or from different input ({words}); give "
                "another --output, or --overwrite to begin this shard again"
            )
        return True

    @contextlib.contextmanager
    def opened(self, *, new: bool) -> Iterator[BinaryIO]:
        """The file, open for reading and writing after its header; `new` empties it, or makes it.

        Raises:
          InputError: it cannot be written, or another process writes it.
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
                raise InputError(f"{self.path}: another process works on shard {self.shard}; wait for it") from None
            except OSError:  # the file system has no locks
                pass
            if new:
                file.truncate(0)
                write_line(file, {"shard": str(self.shard), "command": self._command})
            file.seek(0)
            file.readline()
            yield file


def write_line(file: BinaryIO, value: dict, default: Callable | None = None) -> None:
    """Adds a line to the file of a shard. Raises InputError where it cannot be written."""
    try:
        file.write(json.dumps(value, default=default).encode() + b"\n")
        file.flush()
    except OSError as error:
        raise InputError(f"what is done cannot be recorded ({explain(error)})") from error


@contextlib.contextmanager
def opened_shards(
    output: Path, name: str, read: Callable[[BinaryIO, Shard, dict], T]
) -> Iterator[tuple[dict, dict[Path, T]]]:
    """All shards of a command, in the order of their indices. The files stay open.

    Args:
      output: folder of the results.
      name: see `ShardFile`.
      read: what reads a file that is open after its header. It takes the file, its shard and the command, and raises
        `NotDone`, or another ValueError where the file is damaged.

    Yields:
      the command, and what `read` returns for each file.

    Raises:
      InputError: there is no shard, one is missing, not done or damaged, or they are not of one command; the message
        lists all faults.
    """
    found = _find(output, name)
    if not found:
        raise InputError(f"--merge: no shard of {name} in {output / FOLDER}; run {name} with --shard=0/N and on first")
    faults, commands, content = [], {}, {}
    with contextlib.ExitStack() as stack:
        for shard, path in found.items():
            try:
                file = stack.enter_context(_opened(path))
                commands[path] = _read_header(file, shard)
                content[path] = read(file, shard, commands[path])
            except NotDone:
                faults.append(f"{path}: shard {shard} is not done; wait for it or, if it was stopped, run it again")
            except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
                faults.append(f"{path}: damaged ({error or type(error).__name__}); run shard {shard} with --overwrite")
            except InputError as error:
                faults.append(str(error))
        if faults := _strangers(found, commands) or _missing(output, name, found) + faults:
            raise InputError("--merge: the shards cannot be joined:\n" + "\n".join(f"  {fault}" for fault in faults))
        yield next(iter(commands.values())), content


def _strangers(found: dict[Shard, Path], commands: dict[Path, dict]) -> list[str]:
    """Shards that do not belong to the others. Which are missing cannot be said while there are some."""
    counts = sorted({shard.count for shard in found})
    if len(counts) > 1:
        listed = ", ".join(path.name for path in found.values())
        return [f"shards of {' and of '.join(map(str, counts))} ({listed}); remove those that are left over"]
    faults = []
    (first, command), *others = commands.items() or [(None, None)]
    for path, other in others:
        if words := describe_differences(other, command):
            faults.append(f"{path}: of a different command or input than {first.name} ({words})")
    return [*faults, "remove those that do not belong to the others, or run all with --overwrite"] if faults else []


def _missing(output: Path, name: str, found: dict[Shard, Path]) -> list[str]:
    count = next(iter(found)).count
    missing = [shard for shard in (Shard(index, count) for index in range(count)) if shard not in found]
    return [f"{output / FOLDER}: shard {shard} is missing; run {name} with --shard={shard}" for shard in missing]


def remove_shards(output: Path, name: str) -> None:
    """Removes the files of all shards, and their folder where nothing else is in it."""
    for path in _find(output, name).values():
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (output / FOLDER).rmdir()


def describe_differences(command: dict, other: dict) -> str:
    """What differs between two commands, in words; "" where they are equal."""
    words = []
    for key in [key for key in {**command, **other} if command.get(key) != other.get(key)]:
        one, two = command.get(key), other.get(key)
        if isinstance(one, dict) and isinstance(two, dict):
            names = sorted(name for name in {**one, **two} if one.get(name) != two.get(name))
            sizes = f": {len(one)} and {len(two)}" if len(one) != len(two) else ""
            words.append(f"{key}{sizes}; {', '.join(names[:3])}{', ...' if names[3:] else ''} changed")
        else:
            words.append(f"{key}: {_words(one)} and {_words(two)}")
    return "; ".join(words)


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _find(output: Path, name: str) -> dict[Shard, Path]:
    """The files of all shards of a command."""
    pattern = re.compile(re.escape(name) + r"-([0-9]{1,6})-of-([0-9]{1,6})\.jsonl")
    matches = ((path, pattern.fullmatch(path.name)) for path in (output / FOLDER).glob("*"))
    found = {Shard(int(match[1]), int(match[2])): path for path, match in matches if match}
    return dict(sorted(found.items(), key=lambda item: (item[0].count, item[0].index)))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({explain(error)})") from error
    with file:
        yield file


def _read_header(file: BinaryIO, shard: Shard) -> dict:
    """The command. Raises ValueError where the header is that of another shard, or none."""
    line = file.readline()
    if not line.endswith(b"\n"):
        raise NotDone("the header is not whole")
    try:
        header = json.loads(line)
        written, command = header["shard"], header["command"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"no header of a shard: {error!r}") from error
    if written != str(shard):
        raise ValueError(f"by its content it is shard {written}")
    if not isinstance(command, dict):
        raise ValueError("its header has no command")
    return command
