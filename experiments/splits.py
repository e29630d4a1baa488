"""The splits of a study: written once, read by every cell."""

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
    """Returns the training, validation and test cases of a job.

    The test patients are those of the package's own fold. A small share of the others validates. `split.folds` would
    use a whole fold, which is a third of the patients with three folds. Both draws are stratified and keep persons
    whole.

    Args:
      job: of the study.
      study: gives the number of folds and the share of validation patients.
      cohort: of the data.
      seed: `split.seed`.

    Raises:
      InputError: the data have too few patients.
    """
    if job.cell.by_slice:
        return split_by_slice(cohort.cases)
    identities = dict(zip(cohort.cases, zip(cohort.patients, cohort.groups, strict=True), strict=True))
    outer = split_by_folds(cohort.cases, cohort.patients, cohort.groups, folds=study.folds, fold=job.fold, seed=seed)
    others = tuple(sorted(outer.train + outer.val))
    patients, groups = zip(*(identities[case] for case in others), strict=True)
    inner = split_by_folds(others, patients, groups, folds=min(study.validation, len(others)), fold=0, seed=seed)
    train = tuple(sorted(inner.train + inner.val))
    if job.cell.patients:
        ordered = sorted(train, key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest())
        train = tuple(sorted(ordered[: job.cell.patients]))
    return Split(train=train, val=inner.test, test=outer.test)


def split_path(job: Job, output: Path) -> Path:
    """Returns the path of the split's file; cells with the same split share it."""
    kind = "_by_slice" if job.cell.by_slice else f"_{job.cell.patients}_patients" if job.cell.patients else ""
    return output / "splits" / f"fold{job.fold}{kind}.json"


def check_runs(jobs: list[Job], study: Study, cohort: Cohort, output: Path, *, seed: int) -> None:
    """Compares data and split of every run in the study's folder, finished or not, with the requested ones.

    Raises:
      InputError: some runs differ; the message lists the differences.
    """
    faults = []
    for job in jobs:
        run = output / "runs" / job.name
        if not (run / "config.json").exists():
            continue
        config = read_json(run / "config.json")
        old_fingerprint = (config.get("dataset") or {}).get("fingerprint") or "unknown"
        if old_fingerprint != cohort.fingerprint:
            source = (config.get("data") or {}).get("source")
            faults.append(
                f"  {job.name}: data {old_fingerprint[:12]} of {source} before, {cohort.fingerprint[:12]} now"
            )
        elif (run / "split.json").exists():
            old_split, new_split = (
                read_json(run / "split.json"),
                dataclasses.asdict(split_of(job, study, cohort, seed=seed)),
            )
            if changed_parts := [part for part in PARTS if sorted(old_split.get(part, ())) != sorted(new_split[part])]:
                faults.append(f"  {job.name}: other patients in {', '.join(changed_parts)} of its split.json than now")
    if faults:
        omitted = [f"  and {len(faults) - 5} more"] if faults[5:] else []
        raise InputError(
            f"--output={output} has runs of other data than requested; give a new --output, or the --source of "
            "these runs:\n" + "\n".join(faults[:5] + omitted)
        )


def write_splits(jobs: list[Job], study: Study, cohort: Cohort, output: Path, *, seed: int) -> list[Job]:
    """Writes the splits of these jobs, if the runs in the folder agree with them.

    Returns:
      the jobs to run. A job that asks for at least as many training patients as there are would repeat the baseline, so
      it is left out.

    Raises:
      InputError: see `check_runs`; nothing is written then.
    """
    check_runs(jobs, study, cohort, output, seed=seed)
    (output / "splits").mkdir(parents=True, exist_ok=True)
    remaining = []
    for job in jobs:
        split = split_of(job, study, cohort, seed=seed)
        unlimited = job._replace(cell=dataclasses.replace(job.cell, patients=0))
        if job.cell.patients and len(split.train) == len(split_of(unlimited, study, cohort, seed=seed).train):
            continue
        write_split(split_path(job, output), split)
        remaining.append(job)
    return remaining
