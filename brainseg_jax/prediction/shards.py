"""Shards of one prediction, `--shard=i/n`: the file of each shard, and their merge, see `ShardFile`.

A shard writes masks and maps to their final location, and the table rows of each case to its own file. A restarted
shard predicts only the cases that have no rows in this file, or miss result files.
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
    """The JSON content that all shards of one prediction share."""
    from brainseg_jax.evaluation.report import code_version  # imported here because matplotlib loads slowly

    return {
        "code": code_version(),
        "--run": [str(run.folder.absolute()) for run in trained],
        "weights": [run.weights_digest for run in trained],
        "--input": str(scans.absolute()),
        "cases": {source.name: digest_of_channels(source, scans) for source in sources},
        "members": ensemble.num_predictions,
        "post-processing": [post._asdict() for post in ensemble.posts],
        "expected Dice": expected and expected.digest,
        "training scans": [run.training_scans and run.training_scans.digest for run in trained],
        "files": [*wanted.kinds, *(["overlay"] if wanted.overlays else [])],
    }


def digest_of_channels(source: Source, root: Path) -> str:
    """Identifies the files of a case and their assignment to channels."""
    return _digest([os.path.relpath(path, root) for path in source.paths], sorted(source.channels.items()))


def digest_of_stats(source: Source) -> str:
    """Digest of size and modification time of each file of a case; it detects changes without reading the files."""
    images = [path.with_suffix(suffix) for path in source.paths for suffix in (".img", ".IMG")]  # of NIfTI pairs
    files = []
    for path in (*source.paths, *(image for image in images if image.exists())):
        with contextlib.suppress(OSError):
            stat = path.stat()
            files.append((stat.st_size, stat.st_mtime_ns))
    return _digest(files)


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode(errors="surrogateescape")).hexdigest()[:12]


class ShardContent(NamedTuple):
    """The content of the file of a shard.

    Attributes:
      rows: {"scans": [...], "slices": [...], "files": "..."} by name of each predicted case; see `Outcome` and
        `digest_of_stats`.
      faults: messages about cases that could not be predicted; empty until the shard is done.
      end: offset after the last complete line.
      done: whether all cases were processed.
    """

    rows: dict[str, dict]
    faults: list[str]
    end: int
    done: bool


EMPTY = ShardContent({}, [], 0, done=False)


def read_shard(file: ShardFile, command: dict) -> ShardContent:
    """The results of an earlier process of the same command. Raises InputError if the file is damaged."""
    with file.opened(new=False) as opened:
        try:
            return _read(opened, file.shard, command)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{file.path}: damaged ({error!r}); give --overwrite to restart it") from error


@contextlib.contextmanager
def recording(
    file: ShardFile, previous: ShardContent, finished: dict[str, dict], files: dict[str, str], outcome: Outcome
) -> Iterator[None]:
    """Makes `outcome` append the rows of each case after its files are written; at the end, appends the faults.

    Args:
      file: of the shard.
      previous: content of the file.
      finished: rows of the finished cases, which are not predicted again.
      files: `digest_of_stats` of each case, computed before the case is read.
      outcome: results of the other cases.

    Raises:
      InputError: the file is not writable.
      KeyboardInterrupt: of the user, or of SIGTERM; the message explains how to continue.
    """
    # A new file is needed if there is none, if it ends with faults, or if it has rows of cases that lost their files.
    rewrite = previous.done or not previous.end or len(finished) < len(previous.rows)
    with file.opened(new=rewrite) as opened:

        def record(case: str, written: Written) -> None:
            write_line(opened, {"case": case, "scans": written.scans, "slices": written.slices, "files": files[case]})

        if rewrite:
            for case, rows in finished.items():
                write_line(opened, {"case": case, **rows})
        else:
            opened.truncate(previous.end)  # removes an incomplete last line
        outcome.record = record
        try:
            yield
        except KeyboardInterrupt:
            done = len(finished) + outcome.scans_done
            raise KeyboardInterrupt(
                f"interrupted; {done} cases of shard {file.shard} are done; the same command continues with the others"
            ) from None
        write_line(opened, {"faults": outcome.faults})


def _read(opened: BinaryIO, shard: Shard, command: dict) -> ShardContent:
    """Reads the lines after the header. Raises what `read_shard` catches if they are not of this command."""
    cases = shard.of(list(command["cases"]))
    rows: dict[str, dict] = {}
    faults: list[str] = []
    end, done = opened.tell(), False
    while (line := opened.readline()).endswith(b"\n"):
        value = json.loads(line)
        if done:
            raise ValueError("lines after the end of the shard")
        if "faults" in value:
            faults, done = list(value["faults"]), True
        else:
            name = value["case"]
            if name in rows or any(row["case"] != name for row in (*value["scans"], *value["slices"])):
                raise ValueError(f"duplicate rows of {name}, or rows of another case in its line")
            rows[name] = {key: value[key] for key in ("scans", "slices", "files")}
        end = opened.tell()
    if foreign := rows.keys() - set(cases):
        raise ValueError(f"cases of another shard: {', '.join(sorted(foreign))}")
    if done and len(rows) + len(faults) != len(cases):
        raise ValueError(f"{len(rows)} cases and {len(faults)} faults for {len(cases)} cases")
    return ShardContent(rows, faults, end, done)


def merge_shards(output: Path, *, overwrite: bool) -> None:
    """Merges the tables of all shards into the tables of a single process, and deletes the files of the shards.

    Raises:
      InputError: see `opened_shards`; or the tables exist and `overwrite` is not set. Nothing is written.
      PartlyDone: some scans could not be predicted; the tables list the others.
    """
    with opened_shards(output, NAME, _read_done) as (command, contents):
        if not overwrite:
            check_tables_free(output)
        rows = {name: case_rows for content in contents.values() for name, case_rows in content.rows.items()}
        faults = [fault for content in contents.values() for fault in content.faults]
        scans, slices = (
            [row for case in command["cases"] if case in rows for row in rows[case][table]]
            for table in ("scans", "slices")
        )
        write_tables(scans, slices, output)
    remove_shards(output, NAME)
    done = len(rows)
    print(f"{len(contents)} shards, {done} scan{'s' * (done != 1)}: {output / SCANS_TABLE}, {output / SLICES_TABLE}")
    if faults:
        total, listed = len(faults) + done, "\n".join(faults)
        raise PartlyDone(f"{len(faults)} of {total} scans could not be predicted; the others are done:\n{listed}")


def _read_done(opened: BinaryIO, shard: Shard, command: dict) -> ShardContent:
    content = _read(opened, shard, command)
    if not content.done:
        raise NotDone
    return content
