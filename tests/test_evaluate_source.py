"""`evaluate --source`: it scores no scan of a patient that the network has seen, and reports what it cannot know."""

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_evaluate import box, call, write_volume

from brainseg_jax.data.splits import cases_sharing_patients
from brainseg_jax.errors import InputError
from brainseg_jax.runs.comparison import begin_runs
from experiments.by_slice import third_name

pytestmark = pytest.mark.usefixtures("optax_promotion")
NEW = "TCGA_DU_9999_20200101"


@pytest.fixture
def run(trained_run, tmp_path) -> Path:
    """A copy of the run that prepares data in a folder of the test."""
    folder = tmp_path / "run"
    shutil.copytree(trained_run[0], folder)
    edit(folder, lambda config: config["data"].update(dir=str(tmp_path / "data")))
    return folder


def edit(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def split_of(folder: Path) -> dict:
    return json.loads((folder / "split.json").read_text())


@pytest.fixture
def source(phantom_folder, run, tmp_path) -> Path:
    """Another scan of a training patient, one of a validation patient, a test case, and a new patient."""
    split, folder = split_of(run), tmp_path / "scans" / "kaggle_3m"
    names = {split["train"][0]: other_date(split["train"][0]), split["val"][0]: other_date(split["val"][0])}
    names |= {split["test"][0]: split["test"][0], split["train"][1]: NEW}
    for old, new in names.items():
        (folder / new).mkdir(parents=True)
        for path in (phantom_folder / old).iterdir():
            shutil.copy(path, folder / new / path.name.replace(old, new))
    return folder


def other_date(case: str) -> str:
    return f"{case.rpartition('_')[0]}_20301231"


def begin(folders, source):
    work = begin_runs(folders, part="test", tolerance=1.0, source=str(source))
    return work, next(work.scorings)


def test_other_scans_of_known_patients_are_left_out_and_named(run, source, caplog):
    split = split_of(run)
    with caplog.at_level(logging.WARNING):
        _, scoring = begin([run], source)
    assert scoring.cases == tuple(sorted([NEW, split["test"][0]]))
    left_out = ", ".join(sorted(other_date(split[part][0]) for part in ("train", "val")))
    assert caplog.text.rstrip().endswith(f"for training or validation: {left_out}")
    words = f"2 cases of {source}, no training patients among them; 2 left out"
    assert scoring.run.facts["Split"] == words


def test_a_run_that_was_trained_by_slice_knows_all_its_patients(run, source):
    """Its case names contain the part of the split; each case has slices in each part."""
    split = split_of(run)
    everybody = sorted(case for cases in split.values() for case in cases)
    (run / "split.json").write_text(
        json.dumps({part: [third_name(case, part) for case in everybody] for part in ("train", "val", "test")})
    )
    _, scoring = begin([run], source)
    assert scoring.cases == (NEW,)
    shutil.rmtree(source / NEW)
    with pytest.raises(InputError, match="the network used the patients of all 3 cases for training or validation"):
        begin([run], source)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", r"split\.json cannot be read"),
        ("[]", r"split\.json cannot be read \(not an object\)"),
        ("{}", r"split\.json: 'train' is missing"),
        ('{"train": "a", "val": [], "test": []}', r"split\.json: 'train' is not a list of names"),
        ('{"train": ["a"], "val": [1], "test": []}', r"split\.json: 'val' is not a list of names"),
        (None, r"split\.json is missing, so the training patients are unknown"),
    ],
)
def test_a_damaged_split_is_named(run, source, content, words):
    (run / "split.json").unlink()
    if content is not None:
        (run / "split.json").write_text(content)
    with pytest.raises(InputError, match=rf"{run}/{words}.*; restore a complete copy of the"):
        begin([run], source)


def test_a_damaged_split_is_named_without_a_source_too(run, tmp_path):
    shutil.copytree(run, tmp_path / "other")
    (run / "split.json").write_text('{"train": [], "val": [], "test": 3}')
    with pytest.raises(InputError, match=r"run/split\.json: 'test' is missing or not a list of names; restore"):
        begin_runs([run, tmp_path / "other"], part="test", tolerance=1.0)


def test_whom_converted_weights_were_trained_on_is_not_known(run, source, caplog):
    """A run of `convert` has no split and no fingerprint."""
    edit(run, lambda config: config["dataset"].update(fingerprint=None))
    (run / "split.json").unlink()
    with caplog.at_level(logging.WARNING):
        _, scoring = begin([run], source)
    assert len(scoring.cases) == 4
    words = f"{run} has converted weights, and their training patients are unknown"
    assert f"{words}; cases of its patients are not left out" in caplog.text
    assert scoring.run.facts["Split"] == f"4 cases of {source}, 0 left out. Unknown: {words}"
    assert scoring.run.facts["Scored"] == "cases that may be in the training data of the network"


def test_the_patients_of_the_run_that_a_run_started_from_are_left_out_too(run, source, tmp_path, caplog):
    first = tmp_path / "first"
    shutil.copytree(run, first)
    split = split_of(run)
    (first / "split.json").write_text(json.dumps({"train": [NEW], "val": ["b"], "test": ["c"]}))
    edit(first, lambda config: config["train"].update(init_from=str(run)))  # round and round
    edit(run, lambda config: config["train"].update(init_from=str(first)))
    _, scoring = begin([run], source)
    assert scoring.cases == (split["test"][0],)
    edit(run, lambda config: config["train"].update(init_from="gone/run"))
    with caplog.at_level(logging.WARNING):
        _, scoring = begin([run], source)
    assert scoring.cases == tuple(sorted([NEW, split["test"][0]]))
    assert "started from gone/run, and its training patients are unknown; cases of its patients" in caplog.text


def test_several_runs_leave_out_the_patients_of_all(run, source, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    split = split_of(run)
    (other / "split.json").write_text(json.dumps({"train": [other_date(NEW)], "val": [], "test": []}))
    work, first = begin([run, other], source)
    assert first.cases == next(work.scorings).cases == (split["test"][0],)


def test_shards_are_of_one_source_and_of_one_set_of_known_cases(run, source, tmp_path, phantom_folder):
    values = {"run": [str(run)], "source": str(source), "output": str(tmp_path / "out")}
    call(**values, shard="0/2")
    with pytest.raises(InputError, match=rf"different command .*--source: {source} and {phantom_folder}"):
        call(**values | {"source": str(phantom_folder)}, shard="0/2")
    call(**values, shard="1/2")
    call(output=values["output"], merge=True)
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["runs"]["run"]["scores"]["patients"] == 2
    call(**values | {"output": str(tmp_path / "again")}, shard="0/2")
    split = split_of(run)
    split["train"].append(NEW)
    (run / "split.json").write_text(json.dumps(split))
    with pytest.raises(InputError, match=r"different input \(known cases: [0-9a-f]* and [0-9a-f]*\)"):
        call(**values | {"output": str(tmp_path / "again")}, shard="0/2")


def test_a_source_of_other_channels_is_refused(run, tmp_path):
    for number, case in enumerate("ab", start=1):
        write_volume(tmp_path / "scans", case, number * np.arange(320).reshape(1, 16, 20).repeat(4, 0) % 200)
        write_volume(tmp_path / "scans", f"{case}_mask", box(slice(2, 6), slice(2, 8)))
    with pytest.raises(InputError, match=r"--source=.*and targets .*was trained on channels pre-contrast, FLAIR, post"):
        begin([run], tmp_path / "scans")


def test_a_patient_is_known_by_its_cases_whatever_is_appended():
    cases = ["sub-01_ses-1", "sub-01_ses-2", "sub-011_ses-1", "BraTS-GLI-00001-001", "BraTS-GLI-00002-000", "x", "y"]
    patients = ["sub-01", "sub-01", "sub-011", "BraTS-GLI-00001", "BraTS-GLI-00002", "Q", "Q"]

    def found(*known):
        return sorted(cases_sharing_patients(cases, patients, set(known)))

    assert found("sub-01_ses-2") == found("sub-01_ses-9") == found("sub-01") == ["sub-01_ses-1", "sub-01_ses-2"]
    assert found("BraTS-GLI-00001-000") == ["BraTS-GLI-00001-001"]
    assert found("x") == ["x", "y"]  # of one patient, as the cohort says
    assert found("sub-0", "sub", "BraTS-GLI-0000", "X") == []


def test_part_of_is_what_is_recognized():
    assert re.match(r"TCGA_DU_1-", third_name("TCGA_DU_1_1999", "val"))
    assert cases_sharing_patients(["TCGA_DU_1_1999"], ["TCGA_DU_1"], {third_name("TCGA_DU_1_2001", "val")}) == {
        "TCGA_DU_1_1999"
    }
