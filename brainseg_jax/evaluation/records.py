"""What is known of each case of a report, on disk: memory holds the scores of all cases, and the pictures of one.

A file of records is JSON, a value a line: for each run a line of the run and two lines a case, the scores and the
pictures; at the end the number of runs. In the file of a shard the header of `shards` precedes them.
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
    """What is known of one case under one run, or in one folder of masks.

    Attributes:
      name: of the case.
      rows: see `scores`; one a target.
      calibrations: of each target, by its name; empty where there are no probabilities.
      pictures: with the overlay of this run.
    """

    name: str
    rows: list[dict]
    calibrations: dict[str, Calibration]
    pictures: CasePictures


class Scoring(NamedTuple):
    """A run, or a folder of masks, that is scored case by case.

    Attributes:
      run: what a report needs of it, still without rows and calibrations.
      cases: of the report, in its order.
      score: scores some of the cases, in any order; each is scored as it is taken.
    """

    run: Scored
    cases: tuple[str, ...]
    score: Callable[[Sequence[str]], Iterable[CaseScores]]


class Work(NamedTuple):
    """What an evaluation scores.

    Attributes:
      version: identifies it, content for JSON; another mask, weight or split gives another one.
      scorings: one of each run; they are made one after the other, so that memory holds the data of one.
    """

    version: dict
    scorings: Iterator[Scoring]


class StoredCase(NamedTuple):
    """A case in a file: rows, calibrations, and the offset of its pictures."""

    rows: list[dict]
    calibrations: dict[str, Calibration]
    offset: int


class RunRecords(NamedTuple):
    """What a file holds of one run: see `Scoring`; `stored` by name of the case."""

    run: dict
    cases: tuple[str, ...]
    stored: dict[str, StoredCase]


class Records(NamedTuple):
    """The content of a file.

    Attributes:
      runs: in the order of the report.
      file: pictures are read from it while it is open.
      end: offset after the last case that is whole.
      done: whether all cases of all runs are in it.
    """

    runs: list[RunRecords]
    file: BinaryIO
    end: int
    done: bool


def write_records(file: BinaryIO, scorings: Iterable[Scoring], shard: Shard, records: Records) -> int:
    """Scores the cases of a shard that the file does not hold yet, and writes each as soon as it is scored.

    Args:
      file: open for reading and writing.
      scorings: of each run; one or more, taken one after the other.
      shard: of the cases.
      records: what the file holds; what follows the last whole case is cut off.

    Returns:
      how many cases were scored, those of each run counted.

    Raises:
      InputError: the file cannot be written, or what scores a case raises it.
    """
    file.seek(records.end)
    file.truncate()
    count = number = 0
    for number, scoring in enumerate(scorings, start=1):
        known = number <= len(records.runs)
        if not known:
            run = dataclasses.asdict(scoring.run) | {"description": scoring.run.description.to_json()}
            _write(file, {"run": run, "cases": scoring.cases})
        stored = records.runs[number - 1].stored if known else {}
        left = [name for name in shard.of(scoring.cases) if name not in stored]
        for one in scoring.score(left) if left else ():
            calibrations = {target: calibration.to_json() for target, calibration in one.calibrations.items()}
            _write(file, {"case": one.name, "rows": one.rows, "calibrations": calibrations})
            _write(file, dataclasses.asdict(one.pictures))
            count += 1
    _write(file, {"runs": number})
    return count


def _write(file: BinaryIO, value: dict) -> None:
    write_line(file, value, default=np.generic.item)


def read_records(file: BinaryIO, shard: Shard) -> Records:
    """Reads everything but the pictures, from the current offset on; what a kill cut off at the end is left out.

    Raises:
      ValueError: it is no file of records, or one of other cases than those of the shard.
    """
    runs, end, done = [], file.tell(), False
    try:
        while (line := file.readline()).endswith(b"\n"):
            value = json.loads(line)
            if done:
                raise ValueError("lines after its end")
            if "run" in value:
                _check_complete(runs, shard)
                runs.append(RunRecords(value["run"], tuple(value["cases"]), {}))
            elif "runs" in value:
                _check_complete(runs, shard)
                if not runs or value["runs"] != len(runs):
                    raise ValueError(f"{len(runs)} runs, {value['runs']} were written")
                done = True
            else:
                calibrations = {t: Calibration.from_json(content) for t, content in value["calibrations"].items()}
                stored = StoredCase(value["rows"], calibrations, file.tell())
                if not file.readline().endswith(b"\n"):
                    break
                if value["case"] in runs[-1].stored:
                    raise ValueError(f"{value['case']} is in it twice")
                runs[-1].stored[value["case"]] = stored
            end = file.tell()
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"no {error} in it") from error
    return Records(runs, file, end, done)


def _check_complete(runs: list[RunRecords], shard: Shard) -> None:
    """Raises ValueError where the last run does not have the cases of its shard."""
    if runs and (different := set(shard.of(runs[-1].cases)) ^ runs[-1].stored.keys()):
        raise ValueError(f"{', '.join(sorted(different)[:5])} missing, or of another shard")


def join(parts: Sequence[Records]) -> tuple[list[Scored], "StoredPictures"]:
    """Joins the shards of a report.

    Args:
      parts: one or more, of the same runs; each case is in one of them.

    Returns:
      the runs with rows and calibrations, and the pictures with an overlay of each run; both in the order of the
      report.
    """
    scored = []
    cases = parts[0].runs[0].cases
    for k, first in enumerate(parts[0].runs):
        stored = {name: one for part in parts for name, one in part.runs[k].stored.items()}
        ordered = [stored[name] for name in cases]
        patients = [one.rows[0]["patient"] for one in ordered]
        calibrations = combine_targets([one.calibrations for one in ordered], patients)
        description = Description.from_json(first.run["description"])
        run = first.run | {"rows": [row for one in ordered for row in one.rows]}
        scored.append(Scored(**run | {"calibrations": calibrations, "description": description}))
    return scored, StoredPictures(parts, cases)


class StoredPictures(Sequence[CasePictures]):
    """The pictures of the cases, each read when it is asked for; the files stay open for it."""

    def __init__(self, parts: Sequence[Records], cases: Sequence[str]) -> None:
        """See `join`."""
        self._offsets = [
            [(part.file, run.stored[name].offset) for run in part.runs]
            for name in cases
            for part in parts
            if name in part.runs[0].stored
        ]

    def __len__(self) -> int:
        """How many cases."""
        return len(self._offsets)

    def __getitem__(self, index: int) -> CasePictures:
        """The pictures of a case; the scan is that of the first run, as it is the same in all."""
        first, *others = (_read_pictures(file, offset) for file, offset in self._offsets[index])
        return dataclasses.replace(first, overlays=first.overlays + [other.overlays[0] for other in others])

    def __iter__(self) -> Iterator[CasePictures]:
        """One after the other."""
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
