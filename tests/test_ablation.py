"""The ablation harness: grid and splits against values by hand, stub processes, and a tiny real study.

`test_tables.py` tests its tables.
"""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import xla_flags

from brainseg_jax.config import check_config
from brainseg_jax.errors import InputError, TrainingStopped
from brainseg_jax.shards import Shard, parse_shard
from experiments import running
from experiments.by_slice import assign_slices, original_case, split_by_slice, split_cases, third_name
from experiments.cell import rescore
from experiments.running import DONE, ELSEWHERE, FAILED, PENDING, StudyGrid, jobs_of_shard, report_failures, run_all
from experiments.splits import split_of
from experiments.studies import FIVE_FOLDS, FOLDS, STUDIES, Budget, Cell, Job, Study, config_of, jobs, parse_study

ROOT = Path(__file__).parents[1]
TINY = Study(
    "Which is better?",
    (Cell("base", "the baseline"), Cell("other", "the other_one"), Cell("new", "scored anew", rescores=True)),
    {"quick": Budget("quick", {"train.epochs": 1}, folds=(0, 1), seeds=(0,))},
)


@pytest.mark.parametrize("name", STUDIES)
def test_every_cell_is_a_config_that_can_be_run(name):
    for scale, budget in STUDIES[name].budgets.items():
        study, same = parse_study(f"{name}:{scale}" if scale else name)
        assert same == budget
        names = [job.name for job in jobs(study, budget)]
        assert len(names) == len(set(names)) == len(study.cells) * len(budget.folds) * len(budget.seeds)
        steps = set()
        for job in jobs(study, budget):
            config = config_of(job, budget, source=None)
            check_config(config)
            assert config.seed == job.seed and job.fold < study.folds
            if "train.epochs" not in job.cell.changes:  # a longer training is the question of that cell
                steps.add((config.train.epochs, config.train.steps_per_epoch, config.train.batch_size))
        assert len(steps) == 1  # the same budget for all


def test_one_ingredient_at_a_time():
    study, budget = parse_study("recipe:cpu")
    plain, *others = (config_of(Job(cell, 0, 0), budget, source=None) for cell in study.cells)
    flat = running.flatten
    for cell, config in zip(study.cells[1:], others, strict=True):
        before, now = flat(plain.to_dict()), flat(config.to_dict())
        changed = {key for key in now if now[key] != before[key]}
        assert changed and len({key.split(".")[0] for key in changed}) == 1, cell.name
        assert not cell.rescores or {key.split(".")[0] for key in changed} == {"eval"}
    widths = {cell.name: config.model.features for cell, config in zip(study.cells[1:], others, strict=True)}
    assert (widths["width_half"], widths["width_double"], widths["rescale"]) == (8, 32, 16)


@pytest.mark.parametrize("name", STUDIES)
def test_quick_is_small_in_every_cell(name):
    study, budget = parse_study(f"{name}:quick")
    for job in jobs(study, budget):
        config = config_of(job, budget, source=None)
        assert (config.data.image_size, config.model.depth, config.train.batch_size) == (32, 2, 8), job.name
        assert config.data.crop_size == (16 if job.cell.name in ("best", "longer") else 0)
        assert config.model.features == 2 * job.cell.features
        assert (config.train.epochs, config.train.steps_per_epoch, config.train.max_minutes) == (1, 3, 0.0)


def test_best_and_leakage_train_on_windows_at_cpu():
    for text, cells in {"best:cpu": ["best", "longer"], "leakage:cpu": ["by_patient", "by_slice"]}.items():
        study, budget = parse_study(text)
        configs = {job.cell.name: config_of(job, budget, source=None).data for job in jobs(study, budget)}
        assert {name: (data.image_size, data.crop_size) for name, data in configs.items()} == dict.fromkeys(
            cells, (192, 128)
        )
    study, budget = parse_study("against_published:cpu")
    sizes = [config_of(Job(cell, 0, 0), budget, source=None).data for cell in study.cells]
    assert [(data.image_size, data.crop_size) for data in sizes] == [(128, 0), (192, 128)]


@pytest.mark.parametrize("text", ["nothing", "recipe:gpu", "recipe:None"])
def test_an_unknown_study(text):
    with pytest.raises(InputError, match=rf"--study={text}: unknown "):
        parse_study(text)


@pytest.mark.parametrize("text", ["3", "3/3", "-1/3", "a/b"])
def test_an_invalid_shard(text):
    with pytest.raises(InputError, match="give i/n with i from 0"):
        parse_shard(text, "--cell")


def test_shards_cover_each_cell_once_and_keep_a_checkpoint_with_its_scoring():
    study, budget = parse_study("recipe:cpu")
    everything = list(jobs(study, budget))
    base_of = StudyGrid(study, budget, Path("nowhere"), None, everything).base_of
    for of in (1, 4, 7, len(everything)):
        shards = [jobs_of_shard(everything, base_of, Shard(index, of)) for index in range(of)]
        assert Counter(job for shard in shards for job in shard) == Counter(everything)
        for shard in shards:
            assert {base_of(job) for job in shard} <= set(shard)


def test_splits_test_everybody_once_on_the_same_patients(cohort):
    study = STUDIES["scaling"]
    base, ten = study.cells[0], dataclasses.replace(study.cells[1], patients=2)
    splits = [split_of(Job(base, fold, 0), study, cohort, seed=0) for fold in range(FOLDS)]
    assert Counter(p for split in splits for p in split.test) == Counter(cohort.cases)
    for fold, split in enumerate(splits):
        assert sorted(split.train + split.val + split.test) == sorted(cohort.cases)
        fewer = split_of(Job(ten, fold, 0), study, cohort, seed=0)
        one = split_of(Job(dataclasses.replace(ten, patients=1), fold, 0), study, cohort, seed=0)
        assert (fewer.val, fewer.test, len(fewer.train)) == (split.val, split.test, 2)
        assert set(one.train) < set(fewer.train) < set(split.train)


def test_a_study_of_its_own_folds_tests_everybody_once(cohort):
    study = dataclasses.replace(STUDIES["scaling"], folds=5, validation=14)
    splits = [split_of(Job(study.cells[0], fold, 0), study, cohort, seed=0) for fold in range(5)]
    assert Counter(p for split in splits for p in split.test) == Counter(cohort.cases)
    assert len({split.test for split in splits}) == 5


def test_a_split_by_slice_assigns_each_slice_and_keeps_everything_else(cohort):
    assert original_case(third_name("TCGA_DU_1234_19990101", "val")) == "TCGA_DU_1234_19990101"
    numbers = np.arange(1, 17)
    parts = [assign_slices("P", numbers, fold=fold) for fold in range(FIVE_FOLDS)]
    np.testing.assert_array_equal(sum((part == 2).astype(int) for part in parts), 1)  # tested in one fold
    assert sorted(Counter(parts[1].tolist()).items()) == [(0, 12), (1, 1), (2, 3)]  # 3 of 16, then one of 13
    twice = split_cases(cohort, fold=1)
    assert len(twice.cases) == len(twice.labels) == 3 * len(cohort.cases)
    for index, case in enumerate(twice.cases):  # each third has its own slices, in their order
        whole, numbers = cohort.cases.index(original_case(case)), np.array(twice.numbers[index]) - 1
        own, of_whole = twice.slices_of([case]), cohort.slices_of([original_case(case)])
        np.testing.assert_array_equal(twice.slices.images[own], cohort.slices.images[of_whole][numbers])
        np.testing.assert_array_equal(twice.slices.target_bits[own], cohort.slices.target_bits[of_whole][numbers])
        np.testing.assert_array_equal(twice.labels[index], cohort.labels[whole][numbers])
        np.testing.assert_array_equal(
            twice.read_voxels(case)[..., 0], cohort.read_voxels(original_case(case))[numbers][..., 0]
        )
    split = split_by_slice(cohort.cases)
    slices = [twice.slices_of(cases) for cases in (split.train, split.val, split.test)]
    assert sorted(np.concatenate(slices).tolist()) == list(range(len(cohort.slices.images)))
    for names in (split.train, split.val, split.test):
        assert [original_case(name) for name in names] == list(cohort.cases)
    for new, old in zip(twice.normalization, cohort.normalization, strict=True):
        np.testing.assert_array_equal(new, np.repeat(old, 3, axis=0))
    with pytest.raises(InputError, match="P has 2 slices"):
        assign_slices("P", np.arange(2), fold=0)


@pytest.fixture
def stub_jobs(monkeypatch, tmp_path):
    """A study whose jobs are small scripts, by cell; they write the files of a run."""
    scripts = {}

    def command(self, job):
        config = json.dumps(config_of(job, self.budget, source=self.source).to_dict())
        finish = (
            f"r.mkdir(parents=True); (r/'config.json').write_text({config!r}); (r/'results.json').write_text('{{}}')"
        )
        start = f"import sys, time, signal, pathlib; r = pathlib.Path({str(self.run_of(job))!r})\n"
        return [sys.executable, "-c", start + scripts.get(job.cell.name, "") + "\n" + finish]

    monkeypatch.setattr(StudyGrid, "command", command)
    budget = TINY.budgets["quick"]
    return lambda: StudyGrid(TINY, budget, tmp_path, None, list(jobs(TINY, budget))), scripts


def test_a_cell_that_fails_stops_no_other_and_is_tried_again(stub_jobs, caplog):
    make, scripts = stub_jobs
    scripts["other"] = "print('error: no luck', flush=True); print('a last word'); sys.exit(1)"
    grid = make()
    run_all(grid, lambda: None)
    assert [grid.states[job.name] for job in grid.jobs] == [DONE, FAILED, DONE] * 2
    assert report_failures(grid) == 2 and "other/fold0_seed0 failed: exit status 1: error: no luck" in caplog.text
    scripts.clear()
    times = {
        job.name: os.stat(grid.run_of(job) / "results.json").st_mtime_ns
        for job in grid.jobs
        if job.cell.name != "other"
    }
    grid = make()
    assert [grid.states[job.name] for job in grid.jobs] == [DONE, PENDING, DONE] * 2
    run_all(grid, lambda: None)
    assert set(grid.states.values()) == {DONE}
    assert (
        times.items() <= {job.name: os.stat(grid.run_of(job) / "results.json").st_mtime_ns for job in grid.jobs}.items()
    )


def test_a_rescoring_without_a_checkpoint_fails_with_a_reason(stub_jobs):
    make, scripts = stub_jobs
    scripts["base"] = "sys.exit(3)"
    grid = make()
    run_all(grid, lambda: None)
    assert [grid.states[job.name] for job in grid.jobs] == [FAILED, DONE, FAILED] * 2
    assert "base/fold1_seed0 is not finished; this cell scores its checkpoint" in grid.reasons["new/fold1_seed0"]


def test_a_run_in_use_is_left_to_its_owner_and_looked_at_again(stub_jobs, tmp_path):
    make, scripts = stub_jobs
    refuse = "print('error: runs/x is in use by process 1; wait'); sys.exit(2)"
    scripts["other"] = f"p = pathlib.Path({str(tmp_path / 'once')!r})\nif not p.exists():\n p.touch(); {refuse}"
    grid = make()
    run_all(grid, lambda: None)
    assert set(grid.states.values()) == {DONE}  # its owner had gone
    scripts["other"] = refuse
    (tmp_path / "runs" / "other" / "fold1_seed0" / "results.json").unlink()
    grid = make()
    run_all(grid, lambda: None)
    assert grid.states["other/fold1_seed0"] == ELSEWHERE and report_failures(grid) == 0


def test_results_of_another_budget_do_not_count(stub_jobs):
    make, _ = stub_jobs
    run_all(make(), lambda: None)
    grid = make()
    path = grid.run_of(grid.jobs[0]) / "config.json"
    config = json.loads(path.read_text())
    config["train"]["epochs"] = 7
    path.write_text(json.dumps(config))
    assert list(make().states.values()).count(PENDING) == 1
    config["train"]["epochs"] = 1
    del config["train"]["keep"]  # a key that this run could not know, at its default in this study
    path.write_text(json.dumps(config))
    assert PENDING not in make().states.values()
    del config["train"]["epochs"]  # the same, and not at its default
    path.write_text(json.dumps(config))
    assert list(make().states.values()).count(PENDING) == 1


def test_a_signal_goes_on_to_the_job_and_ends_the_study(stub_jobs, tmp_path):
    make, scripts = stub_jobs
    here = tmp_path / "started"
    scripts["base"] = f"signal.signal(15, lambda *_: sys.exit(75)); pathlib.Path({str(here)!r}).touch(); time.sleep(60)"
    grid = make()

    def show():
        if here.exists():
            here.unlink()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingStopped, match="stopped by SIGINT"):
        run_all(grid, show)
    assert set(grid.states.values()) == {PENDING}


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.slow
def test_a_checkpoint_is_rescored(trained_run, tmp_path):
    run, config = trained_run
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    other = config.copy_and_resolve_references()
    other.eval.choose, other.eval.threshold = False, 1.0  # which no probability reaches
    results = rescore(other, run, tmp_path / "new")
    old = json.loads((run / "results.json").read_text())
    assert results["step"] == old["step"] and results["test"]["recall_mean"] == 0.0
    assert (tmp_path / "new" / "per_patient.csv").exists() and not (tmp_path / "new" / "checkpoints").exists()
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
    other.model.features = 4
    with pytest.raises(InputError, match=r"trained under another config \(model\)"):
        rescore(other, run, tmp_path / "newer")


def start(output, data_dir, *arguments):
    command = [sys.executable, "-m", "experiments.ablation", "--study=leakage:quick", f"--output={output}", *arguments]
    env = {**os.environ, "XLA_FLAGS": xla_flags(1), "TFDS_DATA_DIR": str(data_dir)}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_tables_without_a_study(tmp_path):
    process = start(tmp_path / "none", tmp_path, "--tables")
    words = process.communicate()[0]
    assert process.returncode == 2 and "none: no study here" in words and "Traceback" not in words
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_study_killed_and_started_again_loses_no_finished_cell(tmp_path):
    output, data_dir = tmp_path / "study", tmp_path / "data"
    first = start(output, data_dir)
    done = output / "runs" / "by_patient" / "fold0_seed0" / "results.json"
    under_way = output / "runs" / "by_slice" / "fold0_seed0" / "run.lock"
    deadline = time.monotonic() + 900
    while not under_way.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    first.kill()
    words = first.communicate()[0]
    assert done.exists() and not (under_way.parent / "results.json").exists(), words
    written = done.stat().st_mtime_ns
    again = start(output, data_dir)
    words = again.communicate(timeout=900)[0]
    assert again.returncode == 0, words
    assert done.stat().st_mtime_ns == written and "2 done" in words and "by_patient/fold0_seed0 running" not in words
    rows = list(csv.DictReader((output / "scores.csv").open()))
    patients = {row["cell"]: {r["patient"] for r in rows if r["cell"] == row["cell"]} for row in rows}
    assert len(patients["by_patient"]) == 2 and patients["by_patient"] < patients["by_slice"]
    assert all(row["hd95"] == "" for row in rows if row["cell"] == "by_slice")
    assert "split by slice" in (output / "table.md").read_text()
    for name in ("table.tex", "boxes.png", "differences.png", "panel.png", "runs.csv"):
        assert (output / name).stat().st_size > 200
