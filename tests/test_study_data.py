"""A study keeps no results of other data or another split, and reports the differences."""

import json
from types import SimpleNamespace

import pytest

from brainseg_jax.data.splits import write_split
from brainseg_jax.errors import InputError
from experiments.splits import check_runs, split_of, write_splits
from experiments.studies import Cell, Job, Study

CELLS = (Cell("base", "the baseline"), Cell("torn", "by slice", by_slice=True))
JOBS = [Job(cell, fold, 0) for cell in CELLS for fold in (0, 1)]
STUDY = Study("Which is better?", CELLS, {})
COHORT = SimpleNamespace(
    cases=tuple(f"TCGA_{site}_{i:04d}_19990101" for i, site in enumerate(["DU", "HT"] * 6)),
    patients=tuple(f"TCGA_{site}_{i:04d}" for i, site in enumerate(["DU", "HT"] * 6)),
    groups=("DU", "HT") * 6,
    fingerprint="abcdef0123456789",
)


@pytest.fixture
def study(tmp_path):
    """Runs of all jobs but the last, as trainings leave them."""
    for job in JOBS[:-1]:
        run = tmp_path / "runs" / job.name
        run.mkdir(parents=True)
        content = {"data": {"source": "/old/kaggle_3m"}, "dataset": {"fingerprint": COHORT.fingerprint}}
        (run / "config.json").write_text(json.dumps(content))
        write_split(run / "split.json", split_of(job, STUDY, COHORT, seed=0))
    return tmp_path


def test_the_same_data_go_on(study):
    check_runs(JOBS, STUDY, COHORT, study, seed=0)


def test_other_data_are_refused(study):
    other = SimpleNamespace(**{**vars(COHORT), "fingerprint": "9876543210fedcba"})
    with pytest.raises(InputError) as raised:
        check_runs(JOBS, STUDY, other, study, seed=0)
    first, *lines = str(raised.value).splitlines()
    assert first.startswith(f"--output={study} has runs of other data") and "new --output, or the --source" in first
    assert lines == [f"  {j.name}: data abcdef012345 of /old/kaggle_3m before, 9876543210fe now" for j in JOBS[:-1]]


def test_another_split_is_refused(study):
    path = study / "runs" / JOBS[1].name / "split.json"
    split = json.loads(path.read_text())
    split["train"][0], split["test"][0] = split["test"][0], split["train"][0]
    path.write_text(json.dumps(split))
    with pytest.raises(
        InputError, match=rf"{JOBS[1].name}: other patients in train, test of its split\.json"
    ) as raised:
        check_runs(JOBS, STUDY, COHORT, study, seed=0)
    assert len(str(raised.value).splitlines()) == 2


def test_nothing_is_written_before_the_runs_are_compared(study):
    other = SimpleNamespace(**{**vars(COHORT), "fingerprint": "9876543210fedcba"})
    before = sorted(study.rglob("*"))
    with pytest.raises(InputError, match="has runs of other data"):
        write_splits(JOBS, STUDY, other, study, seed=0)
    assert sorted(study.rglob("*")) == before
    assert write_splits(JOBS, STUDY, COHORT, study, seed=0) == JOBS
