"""Shares of an evaluation: what each leaves in `OUTPUT/shards`, and what lets them be put together.

A share is a file of `records`. Its first line says of which command and which code it is, so that shares of one
evaluation may be made on different machines in any order, and shares of two never meet in one report.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.records import Records, Scoring, read_records, write_records
from brainseg_jax.evaluation.report import code_version
from brainseg_jax.files import explain, write_whole
from brainseg_jax.shards import FOLDER, Shard

_NAME = re.compile(r"([0-9]+)-of-([0-9]+)\.jsonl")


def share_path(output: Path, shard: Shard) -> Path:
    """Where a share lies."""
    return output / FOLDER / f"{shard.name}.jsonl"


def is_done(output: Path, shard: Shard, command: dict) -> bool:
    """Whether this share of the same command is there.

    Raises:
      InputError: a share of another command is there, or one of another number of shares.
    """
    others = [path for path, other in _find(output) if other.count != shard.count]
    if others:
        raise InputError(
            f"{others[0]}: a share of another division than --shard={shard}; finish that one by --merge, or remove "
            f"{output / FOLDER}"
        )
    path = share_path(output, shard)
    if not path.exists():
        return False
    with _opened(path) as records:
        if differences := _differences(records.about["command"], command):
            raise InputError(f"{path}: there already, of another command ({differences}); give --overwrite")
    return True


def write_share(output: Path, shard: Shard, command: dict, scorings: Iterable[Scoring]) -> int:
    """Scores the cases of a share and writes it, all or nothing; returns how many there are.

    Raises:
      InputError: it cannot be written, or what scores a case raises it.
    """
    path = share_path(output, shard)
    about = {"command": command, "code": code_version(), "shard": str(shard)}
    count = 0

    def write(part: Path) -> None:
        nonlocal count
        with part.open("wb") as file:
            count = write_records(file, scorings, about)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({explain(error)})") from error
    return count


@contextlib.contextmanager
def opened_shares(output: Path) -> Iterator[list[Records]]:
    """All shares of an evaluation, in the order of their numbers; open, as pictures are read from them.

    Raises:
      InputError: there is none, one is missing or damaged, or they are not shares of one evaluation; the message lists
        all faults.
    """
    found = _find(output)
    if not found:
        raise InputError(f"--merge: no share in {output / FOLDER}; make them by --shard=0/N to --shard=N-1/N first")
    counts = sorted({shard.count for _, shard in found})
    if len(counts) > 1:
        listed = ", ".join(path.name for path, _ in found)
        raise InputError(
            f"--merge: {output / FOLDER} holds shares of {' and of '.join(map(str, counts))} ({listed}); remove those "
            "that are left over"
        )
    there = {shard.index for _, shard in found}
    faults = [
        f"  share {index}/{counts[0]} is missing; make it by --shard={index}/{counts[0]}"
        for index in range(counts[0])
        if index not in there
    ]
    with contextlib.ExitStack() as stack:
        records: dict[Path, Records] = {}
        for path, _ in found:
            try:
                records[path] = stack.enter_context(_opened(path))
            except InputError as error:
                faults.append(f"  {error}")
        faults += _contradictions(records, whole=len(records) == counts[0])
        if faults:
            raise InputError("--merge: the shares cannot be put together:\n" + "\n".join(faults))
        yield list(records.values())


def remove_shares(output: Path) -> None:
    """Removes all shares and the half of one that a kill left, and their folder where nothing else is in it."""
    halves = (output / FOLDER).glob(".part-*.jsonl")
    for path in (*(path for path, _ in _find(output)), *halves):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (output / FOLDER).rmdir()


def _find(output: Path) -> list[tuple[Path, Shard]]:
    matches = ((path, _NAME.fullmatch(path.name)) for path in (output / FOLDER).glob("*"))
    found = [(path, Shard(int(match[1]), int(match[2]))) for path, match in matches if match]
    return sorted(found, key=lambda one: (one[1].count, one[1].index))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Records]:
    """Raises InputError where the share cannot be read."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({explain(error)})") from error
    with file:
        try:
            records = read_records(file)
            _ = records.about["command"]["tolerance"], records.about["code"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: damaged ({error}); make this share again with --overwrite") from error
        yield records


def _contradictions(records: dict[Path, Records], *, whole: bool) -> list[str]:
    """Why these are not shares of one evaluation, a line each; `whole`: none is missing."""
    if not records:
        return []
    (first, one), *others = records.items()
    faults = []
    for path, other in others:
        if words := _differences(other.about["command"], one.about["command"]):
            faults.append(f"  {path} is of another command than {first.name}: {words}")
        elif other.about["code"] != one.about["code"]:
            versions = f"{other.about['code']} and {one.about['code']}"
            faults.append(f"  {path} is of another version of this code than {first.name}: {versions}")
        elif words := _runs_differ(other, one):
            faults.append(f"  {path} does not go with {first.name}: {words}")
    if faults:
        return faults
    owners: dict[str, list[Path]] = {}
    for path, other in records.items():
        for name in other.runs[0].found:
            owners.setdefault(name, []).append(path)
        for run in other.runs[1:]:
            if run.found.keys() != other.runs[0].found.keys():
                faults.append(f"  {path}: damaged, its runs do not have the same cases; make it again")
    for name, paths in owners.items():
        if len(paths) > 1:
            faults.append(f"  {name} is in {' and '.join(path.name for path in paths)}; make both again")
    missing = [name for name in one.runs[0].cases if name not in owners]
    if whole and missing:
        faults.append(f"  no share has {', '.join(missing)}; make all again with --overwrite")
    return faults


def _differences(command: dict, other: dict) -> str:
    """The flags in which two commands differ, in words; "" where they are one."""
    flags = [name for name in {**command, **other} if command.get(name) != other.get(name)]
    return ", ".join(f"--{name}={_words(command.get(name))} and {_words(other.get(name))}" for name in flags)


def _words(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _runs_differ(one: Records, other: Records) -> str:
    """What differs in the runs of two shares of the same command, in words; "" where nothing does."""
    for run, of_other in zip(one.runs, other.runs, strict=True):
        name = run.run["name"]
        if run.cases != of_other.cases:
            different = sorted(set(run.cases) ^ set(of_other.cases))
            return f"the cases of {name} were others, {', '.join(different[:5]) or 'in another order'}"
        if run.data != of_other.data:
            return f"what {name} holds has changed between them"
        keys = [key for key in run.run if json.dumps(run.run[key]) != json.dumps(of_other.run[key])]
        if keys:
            return f"{name} has other {', '.join(keys)}"
    return ""
