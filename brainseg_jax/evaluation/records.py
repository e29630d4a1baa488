"""What is known of each case of a report, on disk: memory holds the scores of all cases, and the pictures of one.

A file of records is JSON, a value a line: what its writer says of the file, and for each run a line of the run and two
lines a case: the scores, and the pictures; at the end how many cases there are.
"""

import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.calibration import Calibration, combine_targets
from brainseg_jax.evaluation.case_pictures import CasePictures, Outlines, Overlay
from brainseg_jax.evaluation.views import Scored
from brainseg_jax.files import explain
from brainseg_jax.scans.description import Description


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
      cases: of the report, in its order, also those that another share scores.
      data: names the version of what is scored.
      scores: of the cases of this share, in any order; they are made as they are taken.
    """

    run: Scored
    cases: tuple[str, ...]
    data: str
    scores: Iterable[CaseScores]


class _Found(NamedTuple):
    """A case in a file: rows, calibrations, and where its pictures begin."""

    rows: list[dict]
    calibrations: dict[str, Calibration]
    start: int


class RunRecords(NamedTuple):
    """What a file holds of one run: see `Scoring`; `found` by name of the case."""

    run: dict
    cases: tuple[str, ...]
    data: str
    found: dict[str, _Found]


class Records(NamedTuple):
    """The content of a file: what its writer says of it, and its runs; pictures are read from it while it is open."""

    about: dict
    runs: list[RunRecords]
    file: BinaryIO


def write_records(file: BinaryIO, scorings: Iterable[Scoring], about: dict) -> int:
    """Scores the cases and writes each as soon as it is scored.

    Args:
      file: empty.
      scorings: a run each; one or more, taken one after the other.
      about: what is said of the file.

    Returns:
      how many cases of each run there are.

    Raises:
      InputError: the file cannot be written, or what scores a case raises it.
    """
    _write(file, about)
    count = 0
    for scoring in scorings:
        run = dataclasses.asdict(scoring.run) | {"description": scoring.run.description.to_json()}
        _write(file, {"run": run, "cases": scoring.cases, "data": scoring.data})
        count = 0
        for one in scoring.scores:
            calibrations = {target: calibration.to_json() for target, calibration in one.calibrations.items()}
            _write(file, {"case": one.name, "rows": one.rows, "calibrations": calibrations})
            _write(file, dataclasses.asdict(one.pictures))
            count += 1
        _write(file, {"count": count})
    return count


def _write(file: BinaryIO, value: dict) -> None:
    line = json.dumps(value, default=np.generic.item).encode() + b"\n"
    try:
        file.write(line)
        file.flush()
    except OSError as error:
        raise InputError(f"the scores of the cases cannot be written ({explain(error)})") from error


def read_records(file: BinaryIO) -> Records:
    """Reads everything but the pictures.

    Raises:
      ValueError: it is no file of records, or not the whole of one.
    """
    file.seek(0)
    try:
        about, runs, found, whole = json.loads(file.readline()), [], {}, True
        while line := file.readline():
            value = json.loads(line)
            if "run" in value:
                if not whole:
                    raise ValueError("a case is missing")
                found, whole = {}, False
                runs.append(RunRecords(value["run"], tuple(value["cases"]), value["data"], found))
            elif "count" in value:
                whole = value["count"] == len(found)
            else:
                calibrations = {t: Calibration.from_json(content) for t, content in value["calibrations"].items()}
                found[value["case"]] = _Found(value["rows"], calibrations, file.tell())
                if not file.readline().endswith(b"\n"):
                    raise ValueError("it ends within a case")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no {error} in it") from error
    if not runs or not whole:
        raise ValueError("its end is missing")
    return Records(about, runs, file)


def join(parts: Sequence[Records]) -> tuple[list[Scored], "StoredPictures"]:
    """Puts the shares of a report together.

    Args:
      parts: one or more, of the same runs; each case is in one of them.

    Returns:
      the runs with rows and calibrations, and the pictures with an overlay of each run; both in the order of the
      report.
    """
    scored = []
    cases = parts[0].runs[0].cases
    for k, first in enumerate(parts[0].runs):
        found = {name: one for part in parts for name, one in part.runs[k].found.items()}
        own = [found[name] for name in cases]
        calibrations = combine_targets([one.calibrations for one in own], [one.rows[0]["patient"] for one in own])
        description = Description.from_json(first.run["description"])
        run = first.run | {"rows": [row for one in own for row in one.rows]}
        scored.append(Scored(**run | {"calibrations": calibrations, "description": description}))
    return scored, StoredPictures(parts, cases)


class StoredPictures(Sequence[CasePictures]):
    """The pictures of the cases, each read when it is asked for; the files stay open for it."""

    def __init__(self, parts: Sequence[Records], cases: Sequence[str]) -> None:
        """See `join`."""
        self._places = [
            [(part.file, run.found[name].start) for run in part.runs]
            for name in cases
            for part in parts
            if name in part.runs[0].found
        ]

    def __len__(self) -> int:
        """How many cases."""
        return len(self._places)

    def __getitem__(self, index: int) -> CasePictures:
        """The pictures of a case; the scan is that of the first run, as it is the same in all."""
        first, *others = (_read_pictures(file, start) for file, start in self._places[index])
        return dataclasses.replace(first, overlays=first.overlays + [other.overlays[0] for other in others])

    def __iter__(self) -> Iterator[CasePictures]:
        """One after the other."""
        return (self[index] for index in range(len(self)))


def _read_pictures(file: BinaryIO, start: int) -> CasePictures:
    file.seek(start)
    value = json.loads(file.readline())
    value["size"] = tuple(value["size"])
    value["truth"] = [Outlines(**one) for one in value["truth"]]
    value["overlays"] = [
        Overlay(**one | {"masks": [Outlines(**mask) for mask in one["masks"]]}) for one in value["overlays"]
    ]
    return CasePictures(**value)


def collect(scorings: Iterable[Scoring]) -> tuple[list[Scored], list[CasePictures]]:
    """Scores all cases in memory, pictures too; `scorings` have all cases in one share."""
    with io.BytesIO() as file:
        write_records(file, scorings, {})
        runs, pictures = join([read_records(file)])
        return runs, list(pictures)
