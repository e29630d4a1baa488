"""Shards of an evaluation: what each scores, and the merge. Each leaves a file of `records`, see `ShardFile`."""

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
    """Scores the cases of a shard, but for those that an earlier process of the same command scored.

    Args:
      file: of the shard; its command names the version of `work`.
      work: what is scored.
      overwrite: whether to score all of them again.

    Returns:
      how many cases it scored, or None where the shard was done before.

    Raises:
      InputError: the file cannot be written or is of a different command; or what scores a case raises it.
    """
    known = not overwrite and file.exists()
    if known:
        with file.opened(new=False) as opened:
            if _read(file, opened).done:
                return None
    scorings = itertools.chain([next(work.scorings)], work.scorings)  # faults of the input come before any file
    with file.opened(new=not known) as opened:
        return write_records(opened, scorings, file.shard, _read(file, opened))


@contextlib.contextmanager
def opened_records(output: Path) -> Iterator[tuple[dict, list[Records]]]:
    """The command and all shards of an evaluation; open, as pictures are read from them.

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
