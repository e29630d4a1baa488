"""The splits of a study, made once and read by every cell."""

import dataclasses
import hashlib
from pathlib import Path

from brainseg_jax.data.cohort import Cohort
from brainseg_jax.data.splits import PARTS, Split, split_by_folds, write_split
from brainseg_jax.errors import InputError
from brainseg_jax.runs.trained import read_json
from experiments.by_slice import split_by_slice
from experiments.studies import Job, Study


def split_of(job: Job, study: Study, cohort: Cohort, *, seed: int) -> Split:
    """Who trains, validates and tests in a job.

    The test patients are those of the package's own fold. Of the others few validate, not a whole fold as with
    `split.folds`: with few folds that would cost a third of the patients. Both are dealt stratified, by whole persons.

    Args:
      job: of the study.
      study: says how many folds there are and how many patients validate.
      cohort: of the data.
      seed: `split.seed`.

    Raises:
      InputError: the data have too few patients.
    """
    if job.cell.by_slice:
        return split_by_slice(cohort.cases)
    known = dict(zip(cohort.cases, zip(cohort.patients, cohort.groups, strict=True), strict=True))
    outer = split_by_folds(cohort.cases, cohort.patients, cohort.groups, folds=study.folds, fold=job.fold, seed=seed)
    others = tuple(sorted(outer.train + outer.val))
    patients, groups = zip(*(known[case] for case in others), strict=True)
    inner = split_by_folds(others, patients, groups, folds=min(study.validation, len(others)), fold=0, seed=seed)
    train = tuple(sorted(inner.train + inner.val))
    if job.cell.patients:
        in_line = sorted(train, key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest())
        train = tuple(sorted(in_line[: job.cell.patients]))
    return Split(train=train, val=inner.test, test=outer.test)


def path_of(job: Job, output: Path) -> Path:
    """Of the split's file, which cells of the same split share."""
    kind = "_by_slice" if job.cell.by_slice else f"_{job.cell.patients}_patients" if job.cell.patients else ""
    return output / "splits" / f"fold{job.fold}{kind}.json"


def check_runs(jobs: list[Job], study: Study, cohort: Cohort, output: Path, *, seed: int) -> None:
    """Compares the data and the split of every run that lies in the study, finished or not, with what is asked for now.

    Raises:
      InputError: some differ, with what does.
    """
    faults = []
    for job in jobs:
        run = output / "runs" / job.name
        if not (run / "config.json").exists():
            continue
        config = read_json(run / "config.json")
        before = (config.get("dataset") or {}).get("fingerprint") or "unknown"
        if before != cohort.fingerprint:
            source = (config.get("data") or {}).get("source")
            faults.append(f"  {job.name}: data {before[:12]} of {source} before, {cohort.fingerprint[:12]} now")
        elif (run / "split.json").exists():
            former, now = read_json(run / "split.json"), dataclasses.asdict(split_of(job, study, cohort, seed=seed))
            if moved := [part for part in PARTS if sorted(former.get(part, ())) != sorted(now[part])]:
                faults.append(f"  {job.name}: other patients in {', '.join(moved)} of its split.json than now")
    if faults:
        more = [f"  and {len(faults) - 5} more"] if faults[5:] else []
        raise InputError(
            f"--output={output} holds runs of other data than are asked for; give a new --output, or the --source that "
            "they were made with:\n" + "\n".join(faults[:5] + more)
        )


def write_splits(jobs: list[Job], study: Study, cohort: Cohort, output: Path, *, seed: int) -> list[Job]:
    """Writes the splits of these jobs, where the runs that lie in the study are of the same.

    Returns:
      the jobs that are not left out: one that asks for at least as many training patients as there are is the baseline
      once more.

    Raises:
      InputError: see `check_runs`; nothing is written then.
    """
    check_runs(jobs, study, cohort, output, seed=seed)
    (output / "splits").mkdir(parents=True, exist_ok=True)
    kept = []
    for job in jobs:
        split = split_of(job, study, cohort, seed=seed)
        whole = job._replace(cell=dataclasses.replace(job.cell, patients=0))
        if job.cell.patients and len(split.train) == len(split_of(whole, study, cohort, seed=seed).train):
            continue
        write_split(path_of(job, output), split)
        kept.append(job)
    return kept
