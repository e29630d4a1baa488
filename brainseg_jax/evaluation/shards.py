"""Scores shards of an evaluation and reads them for the merge. Each shard writes `records`, see `ShardFile`."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.records import Records, Work, read_records, write_records
from brainseg_jax.shards import NotDone, Shard, ShardFile, opened_shards

NAME = "evaluate"


def score_shard(file: ShardFile, work: Work, *, overwrite: bool) -> int | None:
    """Scores the cases of a shard, except those that an earlier process of the same command scored.

    Args:
      file: file of the shard; its command contains the version of `work`.
      work: the evaluation.
      overwrite: whether to score all cases again.

    Returns:
      the number of scored cases, or None if the shard was already complete.

    Raises:
      InputError: the file cannot be written, belongs to a different command, or scoring a case fails.
    """
    resumed = not overwrite and file.exists()
    if resumed:
        with file.opened(new=False) as opened:
            if _read(file, opened).done:
                return None
    scorings = itertools.chain([next(work.scorings)], work.scorings)  # reports input faults before it creates a file
    with file.opened(new=not resumed) as opened:
        return write_records(opened, scorings, file.shard, _read(file, opened))


@contextlib.contextmanager
def opened_records(output: Path) -> Iterator[tuple[dict, list[Records]]]:
    """Opens all shards of an evaluation; yields the command and the records, from which pictures can be read.

    Raises:
      InputError: see `opened_shards`.
    """
    with opened_shards(output, NAME, _read_done) as (command, records):
        yield command, list(records.values())


def _read_done(opened: BinaryIO, shard: Shard, command: dict) -> Records:
    records = read_records(opened, shard)
    if not records.done:
        raise NotDone
    if not isinstance(command["--tolerance"], float):
        raise ValueError("its command has no tolerance")
    return records


def _read(file: ShardFile, opened: BinaryIO) -> Records:
    try:
        return read_records(opened, file.shard)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file.path}: damaged ({error}); give --overwrite to begin it again") from error
