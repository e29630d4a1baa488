"""Shards of one prediction, `--shard=i/n`: what each leaves, and the merge of all of them, see `ShardFile`.

A shard writes its masks and maps where the whole prediction would, and the table rows of each case into its file. A
shard that was stopped goes on with the cases that have no rows there, or whose files are gone.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from brainseg_jax.errors import InputError, PartlyDone
from brainseg_jax.inference.ensemble import Ensemble
from brainseg_jax.inference.quality import ExpectedDice
from brainseg_jax.prediction.results import (
    SCANS_TABLE,
    SLICES_TABLE,
    Wanted,
    Written,
    check_tables_free,
    write_tables,
)
from brainseg_jax.prediction.stream import Outcome
from brainseg_jax.runs.trained import Trained
from brainseg_jax.scans.scan import Source
from brainseg_jax.shards import NotDone, Shard, ShardFile, opened_shards, remove_shards, write_line

NAME = "predict"


def command_of(
    trained: Sequence[Trained],
    scans: Path,
    sources: Sequence[Source],
    ensemble: Ensemble,
    wanted: Wanted,
    expected: ExpectedDice | None,
) -> dict:
    """What all shards of one prediction have in common, content for JSON."""
    from brainseg_jax.evaluation.report import code_version  # here, as matplotlib is slow to load

    return {
        "code": code_version(),
        "--run": [str(run.folder.absolute()) for run in trained],
        "weights": [run.weights_digest for run in trained],
        "--input": str(scans.absolute()),
        "cases": {source.name: digest_of_channels(source, scans) for source in sources},
        "members": ensemble.members,
        "post-processing": [post._asdict() for post in ensemble.posts],
        "expected Dice": expected and expected.digest,
        "training scans": [run.training_scans and run.training_scans.digest for run in trained],
        "files": [*wanted.kinds, *(["overlay"] if wanted.overlays else [])],
    }


def digest_of_channels(source: Source, root: Path) -> str:
    """Identifies which files of a case are taken for which channels."""
    return _digest([os.path.relpath(path, root) for path in source.paths], sorted(source.channels.items()))


def digest_of_files(source: Source) -> str:
    """Identifies the content of the files of a case, by their sizes and times of change."""
    images = [path.with_suffix(suffix) for path in source.paths for suffix in (".img", ".IMG")]  # of NIfTI pairs
    files = []
    for path in (*source.paths, *(image for image in images if image.exists())):
        with contextlib.suppress(OSError):
            stat = path.stat()
            files.append((stat.st_size, stat.st_mtime_ns))
    return _digest(files)


def _digest(*known: object) -> str:
    return hashlib.sha256(repr(known).encode(errors="surrogateescape")).hexdigest()[:12]


class Part(NamedTuple):
    """The content of the file of a shard.

    Attributes:
      rows: {"scans": [...], "slices": [...], "files": "..."} of each case that is predicted, by its name; see `Outcome`
        and `digest_of_files`.
      faults: of the other cases; known when the shard is done.
      end: offset after the last whole line.
      done: whether no case is left.
    """

    rows: dict[str, dict]
    faults: list[str]
    end: int
    done: bool


NOTHING = Part({}, [], 0, done=False)


def read_part(file: ShardFile, command: dict) -> Part:
    """What an earlier process of the same command left. Raises InputError where the file is damaged."""
    with file.opened(new=False) as opened:
        try:
            return _read(opened, file.shard, command)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{file.path}: damaged ({error!r}); give --overwrite to begin it again") from error


@contextlib.contextmanager
def recording(
    file: ShardFile, before: Part, kept: dict[str, dict], files: dict[str, str], outcome: Outcome
) -> Iterator[None]:
    """Records the rows of each case as soon as its files are written, and at the end that the shard is done.

    Args:
      file: of the shard.
      before: what the file holds.
      kept: the rows of it whose cases are not predicted again.
      files: `digest_of_files` of each case, made before it is read.
      outcome: of the others.

    Raises:
      InputError: the file cannot be written.
      KeyboardInterrupt: of the user, or of SIGTERM; the message says how to go on.
    """
    new = before.done or not before.end or len(kept) < len(before.rows)
    with file.opened(new=new) as opened:

        def record(case: str, written: Written) -> None:
            write_line(opened, {"case": case, "scans": written.scans, "slices": written.slices, "files": files[case]})

        if new:
            for case, rows in kept.items():
                write_line(opened, {"case": case, **rows})
        else:
            opened.truncate(before.end)  # a line that a kill cut off
        outcome.record = record
        try:
            yield
        except KeyboardInterrupt:
            done = len(kept) + outcome.scans_done
            raise KeyboardInterrupt(
                f"interrupted; {done} cases of shard {file.shard} are done; the same command goes on with the others"
            ) from None
        write_line(opened, {"faults": outcome.faults})


def _read(opened: BinaryIO, shard: Shard, command: dict) -> Part:
    """Raises ValueError, KeyError or TypeError where the content is not that of a shard of this command."""
    cases = shard.of(list(command["cases"]))
    rows: dict[str, dict] = {}
    faults: list[str] = []
    end, done = opened.tell(), False
    while (line := opened.readline()).endswith(b"\n"):
        value = json.loads(line)
        if done:
            raise ValueError("lines after its end")
        if "faults" in value:
            faults, done = list(value["faults"]), True
        else:
            name = value["case"]
            if name in rows or any(row["case"] != name for row in (*value["scans"], *value["slices"])):
                raise ValueError(f"rows of {name} twice, or among those of another case")
            rows[name] = {key: value[key] for key in ("scans", "slices", "files")}
        end = opened.tell()
    if strangers := rows.keys() - set(cases):
        raise ValueError(f"{', '.join(sorted(strangers))} of another shard")
    if done and len(rows) + len(faults) != len(cases):
        raise ValueError(f"{len(rows)} cases and {len(faults)} faults for {len(cases)} cases")
    return Part(rows, faults, end, done)


def merge_shards(output: Path, *, overwrite: bool) -> None:
    """Joins the tables of all shards as one process would have written them, and removes the files of the shards.

    Raises:
      InputError: see `opened_shards`; or the tables exist, and `overwrite` is not set. Nothing is written then.
      PartlyDone: some scans could not be predicted; the tables list the others.
    """
    with opened_shards(output, NAME, _read_done) as (command, parts):
        if not overwrite:
            check_tables_free(output)
        rows = {name: of_case for part in parts.values() for name, of_case in part.rows.items()}
        faults = [fault for part in parts.values() for fault in part.faults]
        scans, slices = (
            [row for case in command["cases"] if case in rows for row in rows[case][table]]
            for table in ("scans", "slices")
        )
        write_tables(scans, slices, output)
    remove_shards(output, NAME)
    done = len(rows)
    print(f"{len(parts)} shards, {done} scan{'s' * (done != 1)}: {output / SCANS_TABLE}, {output / SLICES_TABLE}")
    if faults:
        total, listed = len(faults) + done, "\n".join(faults)
        raise PartlyDone(f"{len(faults)} of {total} scans could not be predicted, the others are done:\n{listed}")


def _read_done(opened: BinaryIO, shard: Shard, command: dict) -> Part:
    part = _read(opened, shard, command)
    if not part.done:
        raise NotDone
    return part
