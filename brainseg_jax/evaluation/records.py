"""Scores and pictures of a report on disk. Memory holds the scores of all cases and the pictures of one.

A file of records holds one JSON value per line. Each run has one line for the run, then two lines per case: scores and
pictures. The last line holds the number of runs. The file of a shard starts with the header of `shards`.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from brainseg_jax.evaluation.calibration import Calibration, combine_targets
from brainseg_jax.evaluation.case_pictures import CasePictures, Outlines, Overlay
from brainseg_jax.evaluation.views import Scored
from brainseg_jax.scans.description import Description
from brainseg_jax.shards import Shard, write_line


class CaseScores(NamedTuple):
    """The scores of one case, for one run or one folder of masks.

    Attributes:
      name: name of the case.
      rows: one per target, see `scores`.
      calibrations: target -> calibration; empty without probabilities.
      pictures: pictures with the overlay of this run.
    """

    name: str
    rows: list[dict]
    calibrations: dict[str, Calibration]
    pictures: CasePictures


class Scoring(NamedTuple):
    """A run, or a folder of masks, that is scored case by case.

    Attributes:
      run: the input of a report, still without rows and calibrations.
      cases: cases of the report, in its order.
      score: yields the scores of the requested cases, in any order; it scores each case lazily.
    """

    run: Scored
    cases: tuple[str, ...]
    score: Callable[[Sequence[str]], Iterable[CaseScores]]


class Work(NamedTuple):
    """The work of an evaluation.

    Attributes:
      version: JSON content that changes with any mask, weight or split.
      scorings: one per run. They are created one after the other, so that memory holds the data of one run.
    """

    version: dict
    scorings: Iterator[Scoring]


class StoredCase(NamedTuple):
    """A case in a file: rows, calibrations, and the offset of its pictures."""

    rows: list[dict]
    calibrations: dict[str, Calibration]
    offset: int


class RunRecords(NamedTuple):
    """The content of a file for one run, see `Scoring`; `stored` maps the name of a case to its record."""

    run: dict
    cases: tuple[str, ...]
    stored: dict[str, StoredCase]


class Records(NamedTuple):
    """The content of a file.

    Attributes:
      runs: in the order of the report.
      file: must stay open while pictures are read.
      end: offset after the last complete case.
      done: whether the file is complete.
    """

    runs: list[RunRecords]
    file: BinaryIO
    end: int
    done: bool


def write_records(file: BinaryIO, scorings: Iterable[Scoring], shard: Shard, records: Records) -> int:
    """Scores the cases of a shard that are missing in the file, and writes each case at once.

    Args:
      file: open for reading and writing.
      scorings: one per run; one or more, read one after the other.
      shard: selects the cases.
      records: current content of the file; everything after the last complete case is cut off.

    Returns:
      the number of scored cases, summed over the runs.

    Raises:
      InputError: the file cannot be written, or scoring a case fails.
    """
    file.seek(records.end)
    file.truncate()
    count = number = 0
    for number, scoring in enumerate(scorings, start=1):
        resumed = number <= len(records.runs)
        if not resumed:
            run = dataclasses.asdict(scoring.run) | {"description": scoring.run.description.to_json()}
            _write(file, {"run": run, "cases": scoring.cases})
        stored = records.runs[number - 1].stored if resumed else {}
        missing = [name for name in shard.of(scoring.cases) if name not in stored]
        for one in scoring.score(missing) if missing else ():
            calibrations = {target: calibration.to_json() for target, calibration in one.calibrations.items()}
            _write(file, {"case": one.name, "rows": one.rows, "calibrations": calibrations})
            _write(file, dataclasses.asdict(one.pictures))
            count += 1
    _write(file, {"runs": number})
    return count


def _write(file: BinaryIO, value: dict) -> None:
    write_line(file, value, default=np.generic.item)


def read_records(file: BinaryIO, shard: Shard) -> Records:
    """Reads all records except the pictures, from the current offset; ignores an incomplete end (after a kill).

    Raises:
      ValueError: it is not a file of records, or its cases are not those of the shard.
    """
    runs: list[RunRecords] = []
    end, done = file.tell(), False
    try:
        while (line := file.readline()).endswith(b"\n"):
            value = json.loads(line)
            if done:
                raise ValueError("there are lines after the last one")
            if "run" in value:
                _check_complete(runs, shard)
                runs.append(RunRecords(value["run"], tuple(value["cases"]), {}))
            elif "runs" in value:
                _check_complete(runs, shard)
                if not runs or value["runs"] != len(runs):
                    raise ValueError(f"it holds {len(runs)} of {value['runs']} runs")
                done = True
            else:
                calibrations = {t: Calibration.from_json(content) for t, content in value["calibrations"].items()}
                stored = StoredCase(value["rows"], calibrations, file.tell())
                if not file.readline().endswith(b"\n"):
                    break
                if value["case"] in runs[-1].stored:
                    raise ValueError(f"it holds case {value['case']} twice")
                runs[-1].stored[value["case"]] = stored
            end = file.tell()
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"a line is not a record ({error})") from error
    return Records(runs, file, end, done)


def _check_complete(runs: list[RunRecords], shard: Shard) -> None:
    """Raises ValueError unless the last run has exactly the cases of its shard."""
    if runs and (different := set(shard.of(runs[-1].cases)) ^ runs[-1].stored.keys()):
        raise ValueError(f"{', '.join(sorted(different)[:5])} missing or from another shard")


def join(shards: Sequence[Records]) -> tuple[list[Scored], "StoredPictures"]:
    """Joins the shards of a report.

    Args:
      shards: records of one or more shards with the same runs; each case is in one of them.

    Returns:
      the runs with rows and calibrations, and the pictures with one overlay per run; both in the order of the report.
    """
    scored = []
    cases = shards[0].runs[0].cases
    for k, first in enumerate(shards[0].runs):
        stored = {name: one for part in shards for name, one in part.runs[k].stored.items()}
        ordered = [stored[name] for name in cases]
        patients = [one.rows[0]["patient"] for one in ordered]
        calibrations = combine_targets([one.calibrations for one in ordered], patients)
        description = Description.from_json(first.run["description"])
        run = first.run | {"rows": [row for one in ordered for row in one.rows]}
        scored.append(Scored(**run | {"calibrations": calibrations, "description": description}))
    return scored, StoredPictures(shards, cases)


class StoredPictures(Sequence[CasePictures]):
    """The pictures of the cases. Each access reads them from the files, which must stay open."""

    def __init__(self, shards: Sequence[Records], cases: Sequence[str]) -> None:
        """See `join`."""
        self._offsets = [
            [(records.file, run.stored[name].offset) for run in records.runs]
            for name in cases
            for records in shards
            if name in records.runs[0].stored
        ]

    def __len__(self) -> int:
        """Number of cases."""
        return len(self._offsets)

    def __getitem__(self, index: int) -> CasePictures:  # type: ignore[override]  # takes no slices
        """Reads the pictures of a case; the scan is taken from the first run, because it is the same in all."""
        first, *others = (_read_pictures(file, offset) for file, offset in self._offsets[index])
        return dataclasses.replace(first, overlays=first.overlays + [other.overlays[0] for other in others])

    def __iter__(self) -> Iterator[CasePictures]:
        """Reads one case after the other."""
        return (self[index] for index in range(len(self)))


def _read_pictures(file: BinaryIO, offset: int) -> CasePictures:
    file.seek(offset)
    value = json.loads(file.readline())
    value["size"] = tuple(value["size"])
    value["truth"] = [Outlines(**one) for one in value["truth"]]
    value["overlays"] = [
        Overlay(**one | {"masks": [Outlines(**mask) for mask in one["masks"]]}) for one in value["overlays"]
    ]
    return CasePictures(**value)
