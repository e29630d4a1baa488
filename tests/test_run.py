"""Whole runs on synthetic patients: their files, how they resume, and invalid input."""

import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import once, xla_flags
from PIL import Image
from scipy import ndimage

from brainseg_jax.config import default_config
from brainseg_jax.data.splits import Split
from brainseg_jax.errors import InputError, TrainingDiverged
from brainseg_jax.inference.postprocess import PostProcess
from brainseg_jax.runs.kept import read_kept
from brainseg_jax.scans.description import LGG
from brainseg_jax.training.experiment import build_experiment
from brainseg_jax.training.loop import train

CONFIGS = Path(__file__).parents[1] / "configs"
pytestmark = pytest.mark.usefixtures("optax_promotion")
TINY = {
    "model": {"features": 2, "depth": 2},
    "data": {"image_size": 32},
    "optimizer": {"schedule": "constant", "warmup_epochs": 0.0},
    "train": {"epochs": 2, "batch_size": 8, "steps_per_epoch": 3, "log_every": 2},
    "eval": {"batch_size": 24},
}


def tiny_config(dataset_folder, **overrides):
    config = default_config("quick")
    config.update(TINY)
    config.data.dir, config.data.source = str(dataset_folder.parents[2]), "phantom:8:0"
    for key, value in overrides.items():
        section, name = key.split("__")
        config[section][name] = value
    return config


def run_main(*arguments, cwd, **environment):
    command = [sys.executable, "-m", "brainseg_jax.main", *arguments]
    env = {**os.environ, "XLA_FLAGS": xla_flags(1), **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=env)


def rows_of(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


@pytest.fixture(scope="module")
def finished(phantom_folder, tmp_path_factory):
    """A run of the command, as a user starts it, in a separate folder; it also prepares the data."""
    flat = [f"--config.{s}.{k}={v}" for s, keys in TINY.items() for k, v in keys.items()]

    def run(cwd):
        done = run_main(
            f"--config={CONFIGS / 'attn_dice.py'}:quick",
            "--workdir=runs/first",
            f"--config.data.source={phantom_folder}",
            *flat,
            cwd=cwd,
            TFDS_DATA_DIR=str(cwd / "tfds"),
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (cwd / "stdout").write_text(done.stdout)
        (cwd / "stderr").write_text(done.stderr)

    cwd = once(tmp_path_factory, "elsewhere", run)
    return cwd / "runs" / "first", (cwd / "stdout").read_text(), (cwd / "stderr").read_text()


def test_what_a_run_leaves_behind(finished):
    workdir, stdout, stderr = finished
    results = json.loads((workdir / "results.json").read_text())
    rows = list(csv.DictReader((workdir / "per_patient.csv").open()))
    split = json.loads((workdir / "split.json").read_text())
    assert sorted(row["patient"] for row in rows) == sorted(split["test"])
    assert results["test"]["patients"] == len(rows) == 2
    for row in rows:  # an identity of the two scores of one pair of masks
        np.testing.assert_allclose(float(row["iou"]), float(row["dice"]) / (2 - float(row["dice"])), rtol=1e-9)
    for name in ("dice", "iou"):
        values = [float(row[name]) for row in rows]
        np.testing.assert_allclose(results["test"][f"{name}_mean"], np.mean(values))
    assert results["test"]["dice_median"] == pytest.approx(np.median([float(row["dice"]) for row in rows]))
    assert 0 <= results["test"]["soft_iou_per_batch_of_24"] <= 1
    report = (workdir / "report.html").read_text()
    assert all(row["patient"] in report for row in rows) and f"{results['test']['dice_mean']:.3f}" in report
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["name"] == "attention_unet" and config["train"]["epochs"] == 2
    assert [row["epoch"] for row in rows_of(workdir)] == [1, 2]
    assert {p.name for p in (workdir / "checkpoints").iterdir()} >= {"6", str(results["step"])}
    assert list((workdir / "tensorboard").glob("events*"))
    for name in ("curves", "panel_best", "panel_median", "panel_worst"):
        with Image.open(workdir / f"{name}.png") as picture:
            assert picture.width > 800
    assert not list(workdir.glob(".part-*"))
    assert "epoch 2/2" in stdout and "Traceback" not in stderr
    assert len((stdout + stderr).splitlines()) < 15  # messages for a person, not those of libraries


def test_started_again_it_finds_itself_finished(finished, phantom_folder, tmp_path):
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    before = {p: p.read_bytes() for p in workdir.glob("*.[cj]s*")}
    config = default_config("quick")
    config.update(TINY)
    config.model.name, config.data.source = "attention_unet", str(phantom_folder)
    config.data.dir = str(finished[0].parents[1] / "tfds")
    train(config, workdir)
    after = {p: p.read_bytes() for p in before}
    numbers = [json.loads(files[workdir / "results.json"])["test"]["dice_mean"] for files in (before, after)]
    np.testing.assert_allclose(*numbers, atol=1e-3)  # eight devices now, one before
    assert after[workdir / "metrics.jsonl"] == before[workdir / "metrics.jsonl"]


@pytest.mark.slow
def test_a_run_cut_in_two_is_the_same_run(dataset_folder, tmp_path, caplog):
    options = {"optimizer__ema_decay": 0.9, "augment__noise": 0.1, "train__epochs": 4}
    # Nothing is ever predicted, so no score beats the first: the rate falls after epoch 2 and the run ends after 3.
    options |= {"eval__threshold": 1.0, "train__early_stop_patience": 2}
    options |= {"optimizer__schedule": "plateau", "optimizer__plateau_patience": 1}
    whole = train(tiny_config(dataset_folder, **options), tmp_path / "whole")
    rates = [row["learning_rate"] for row in rows_of(tmp_path / "whole")]
    np.testing.assert_allclose(rates, [3e-3, 3e-3, 3e-4], rtol=1e-5)
    assert caplog.text.count("the validation Dice was 0 in each of the last 3 epochs") == 1
    train(tiny_config(dataset_folder, **options | {"train__epochs": 2}), tmp_path / "cut")
    assert (tmp_path / "cut" / "results.json").exists()
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "train_loss": 0.1}\n{"epoch": 4, "tra')  # rows of epochs without a checkpoint
    cut = train(tiny_config(dataset_folder, **options), tmp_path / "cut")
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    assert cut == whole


def test_the_largest_part_alone_is_scored(dataset_folder):
    config = tiny_config(dataset_folder, data__normalization="volume_zscore")
    experiment = build_experiment(config)
    evaluation = experiment.evaluation
    network, cases = evaluation.with_variables(experiment.initial_state.variables), evaluation.split.test
    every_part, largest_part = (
        evaluation.assessor.assess_each(network, cases, (PostProcess(0.6, largest),), tolerance=2.0)
        for largest in (False, True)
    )
    for one, assessed in zip(every_part, largest_part, strict=True):
        truth = evaluation.cohort.labels[evaluation.cohort.indices([one.name])[0]] > 0
        whole, mask, (row,) = one.masks[..., 0], assessed.masks[..., 0], assessed.rows
        parts, count = ndimage.label(whole, np.ones((3, 3, 3)))
        assert count > 1  # or the test could not fail
        sizes = ndimage.sum_labels(np.ones_like(parts), parts, range(1, count + 1))
        assert mask.sum() == row["volume_predicted"] == sizes.max()
        assert (whole | ~mask).all()
        assert row["dice"] == pytest.approx(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))


def test_another_experiment_in_the_same_folder(finished, phantom_folder):
    workdir = finished[0]
    config = default_config("quick")
    config.update(TINY)
    config.model.name, config.data.source = "attention_unet", str(phantom_folder)
    config.data.dir = str(workdir.parents[1] / "tfds")
    config.optimizer.learning_rate, config.split.seed = 0.5, 3
    with pytest.raises(
        InputError, match=r"(?s)another experiment.*learning_rate: 0\.003 before, 0\.5 now.*split\.seed"
    ):
        train(config, workdir)


@pytest.mark.slow
def test_a_limit_of_time(dataset_folder, tmp_path):
    options = {"train__epochs": 10_000, "train__steps_per_epoch": 20, "optimizer__schedule": "cosine"}
    config = tiny_config(dataset_folder, **options, train__max_minutes=0.1)
    results = train(config, tmp_path)
    rates = [row["learning_rate"] for row in rows_of(tmp_path)]
    assert results["epochs"] == len(rates) < 10_000
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.05 * 3e-3
    assert train(config, tmp_path) == results  # it is over, and stays so


@pytest.mark.slow
def test_the_last_epoch_can_be_kept_instead_of_the_best(dataset_folder, tmp_path):
    # Nothing is learnt, so all epochs tie, and the best of a tie is the first.
    options = {"train__epochs": 3, "optimizer__learning_rate": 1e-12, "model__norm": "none"}
    kept = {}
    for keep in ("best", "last"):
        results = train(tiny_config(dataset_folder, **options, train__keep=keep), tmp_path / keep)
        facts = (tmp_path / keep / "report.html").read_text()
        assert ("the best on the validation patients" in facts) == (keep == "best")
        state = read_kept(tmp_path / keep, tiny_config(dataset_folder, **options), LGG)
        assert int(state.step) == results["step"]  # what `evaluate`, `predict` and `export` read
        kept[keep] = results["epoch"], results["step"]
    assert kept["best"][0] == 1 and kept["last"][0] == 3
    assert 3 * kept["best"][1] == kept["last"][1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: (f / "config.json").write_text('{"seed": 0, "mod'), r"config\.json cannot be read.*new --workdir"),
        (lambda f: (f / "checkpoints").mkdir(), r"checkpoints but no config\.json"),
        (lambda f: (f.rmdir(), f.write_text("")), r"run is a file; give a folder"),
    ],
)
def test_a_folder_that_cannot_be_gone_on_with(dataset_folder, tmp_path, make, words):
    workdir = tmp_path / "run"
    workdir.mkdir()
    make(workdir)
    with pytest.raises(InputError, match=words):
        train(tiny_config(dataset_folder), workdir)


def test_more_epochs_are_another_cosine(dataset_folder, tmp_path):
    config = tiny_config(dataset_folder, optimizer__schedule="cosine")
    train(config, tmp_path / "run")
    config.train.epochs = 3
    with pytest.raises(InputError, match=r"train\.epochs: 2 before, 3 now"):
        train(config, tmp_path / "run")


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(finished, phantom_folder):
    workdir = finished[0]
    cwd = workdir.parents[1]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flat = [f"--config.{s}.{k}={v}" for s, keys in TINY.items() for k, v in keys.items()]
    arguments = [
        f"--config={CONFIGS / 'attn_dice.py'}:quick",
        "--workdir=runs/together",
        f"--config.data.source={phantom_folder}",
        f"--coordinator=127.0.0.1:{port}",
        "--processes=2",
        *flat,
    ]
    with ThreadPoolExecutor(2) as pool:
        starts = [
            pool.submit(run_main, *arguments, f"--process={i}", cwd=cwd, TFDS_DATA_DIR=str(cwd / "tfds"))
            for i in (0, 1)
        ]
        done = [start.result() for start in starts]
    assert [d.returncode for d in done] == [0, 0], done[0].stderr[-2000:] + done[1].stderr[-2000:]
    alone, together = (json.loads((cwd / "runs" / run / "results.json").read_text()) for run in ("first", "together"))
    assert together["test"]["dice_mean"] == pytest.approx(alone["test"]["dice_mean"], abs=1e-3)
    losses = [[row["train_loss"] for row in rows_of(cwd / "runs" / run)] for run in ("first", "together")]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert "epoch 2/2" in done[0].stdout and "epoch" not in done[1].stdout


def test_a_loss_that_is_not_a_number(dataset_folder, tmp_path):
    config = tiny_config(dataset_folder, train__epochs=1)
    train(config, tmp_path)
    config.train.epochs = 3
    state_file = tmp_path / "config.json"
    content = json.loads(state_file.read_text())
    content["optimizer"]["learning_rate"] = 1e38  # as if it had been so from the start: the first epoch is kept
    state_file.write_text(json.dumps(content))
    config.optimizer.learning_rate, config.optimizer.clip_norm = 1e38, 1.0
    with pytest.raises(TrainingDiverged, match=rf"; the last good checkpoint is {tmp_path}/checkpoints/3\.") as raised:
        train(config, tmp_path)
    step, patients = re.search(r"at step (\d+), cases ([\w, ]+);", str(raised.value)).groups()
    assert step in "45"
    experiment = build_experiment(config)
    cohort, batch = experiment.cohort, experiment.sampler(int(step) - 1)
    assert set(patients.split(", ")) == {c for c in cohort.cases if set(cohort.slices_of([c])) & set(batch)}
    assert [row["epoch"] for row in rows_of(tmp_path)] == [1]


def test_a_given_split(dataset_folder, cohort, tmp_path):
    a, b, *others = cohort.cases
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": others, "val": [a], "test": [b]}))
    config = tiny_config(dataset_folder, split__file=str(path), train__epochs=1)
    # And with it the other choices: cross-entropy, bfloat16, no normalization, up to the pictures.
    config.loss.name, config.model.name = "weighted_cross_entropy", "attention_unet"
    config.model.dtype, config.model.norm = "bfloat16", "none"
    results = train(config, tmp_path / "run")
    assert results["train_tumor_fraction"] == pytest.approx(
        np.mean([cohort.labels[i].mean() for i in cohort.indices(others)])  # all have 16 slices
    )
    assert results["patients"] == {"train": 6, "val": 1, "test": 1}
    written = json.loads((tmp_path / "run" / "split.json").read_text())
    assert Split(**{k: tuple(v) for k, v in written.items()}) == Split(tuple(others), (a,), (b,))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss__name": "hinge"}, r"loss\.name='hinge': give one of dice, weighted_cross_entropy"),
        ({"train__batch_size": 12}, r"train\.batch_size=12.*8 devices"),
        (
            {"train__epochs": 0, "eval__threshold": 1.5},
            r"(?s)train\.epochs=0: give at least 1.*eval\.threshold=1\.5: give 0\.0 to 1\.0",
        ),
        ({"data__image_size": 30}, r"30x30.*depth 2.*data\.image_size"),
        ({"split__folds": 9}, r"folds=9: give 3 to 8"),
    ],
)
def test_a_config_that_cannot_be_run_writes_nothing(dataset_folder, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        train(tiny_config(dataset_folder, **options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.train.epoch=3"], '"epochs" instead of "epoch"'),
        (["--config.data.source=nowhere"], "'nowhere': no such file or folder"),
        (["--processes=2", "--process=0"], "needs all three"),
        (["--workdir="], "--workdir is empty"),
    ],
)
def test_a_mistake_on_the_command_line(tmp_path, arguments, words):
    done = run_main(f"--config={CONFIGS / 'unet_wce.py'}:quick", "--workdir=run", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
