"""A training on 28 synthetic patients learns the expected Dice, and each command reports it."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import once

from brainseg_jax.config import default_config
from brainseg_jax.data.phantom import write_phantom
from brainseg_jax.evaluation.quality import QUALITY
from brainseg_jax.evaluation.scores import read_table
from brainseg_jax.inference.quality import NO_MASK
from brainseg_jax.runs.trained import load_trained, read_expected_dice
from brainseg_jax.training.loop import train

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run and the folder of its scans: 4 training, 12 validation and 12 test patients."""

    def make(folder):
        write_phantom(folder, patients=28, seed=0)
        cases = sorted(path.name for path in (folder / "kaggle_3m").iterdir() if path.is_dir())
        split = {"train": cases[:4], "val": cases[4:16], "test": cases[16:]}
        (folder / "split.json").write_text(json.dumps(split))
        config = default_config("quick")
        config.update({"model": {"features": 4, "depth": 2}, "data": {"image_size": 32}, "eval": {"batch_size": 24}})
        config.update({"train": {"epochs": 4, "batch_size": 8, "steps_per_epoch": 6}})
        config.data.source, config.data.dir = str(folder / "kaggle_3m"), str(folder / "tfds")
        config.split.file = str(folder / "split.json")
        train(config, folder / "run")

    folder = once(tmp_path_factory, "expected_dice", make)
    return folder / "run", folder / "kaggle_3m"


def command(name, *arguments):
    return subprocess.run([sys.executable, "-m", f"brainseg_jax.{name}", *arguments], capture_output=True, text=True)


def test_a_training_leaves_the_dice_of_cases_it_was_not_trained_on(trained):
    run, _ = trained
    content = json.loads((run / "expected_dice.json").read_text())
    split = json.loads((run / "split.json").read_text())
    patients = [patient for _, _, patient in content["targets"]["tumor"]]
    rows = read_table(run / "per_patient.csv")
    with_mask = {row["patient"] for row in rows if row["agreement"] is not None}
    assert len(patients) >= 20 and set(patients) <= {*split["val"], *split["test"]}
    assert set(patients) & set(split["test"]) == with_mask
    assert content["source"].startswith("12 validation and 12 test patients of ")
    expected = load_trained(run).expected_dice
    pairs = {pair.patient: pair for pair in expected.targets["tumor"]}
    for row in rows:
        if row["patient"] in with_mask:
            assert pairs[row["patient"]][:2] == pytest.approx((row["agreement"], row["dice"]), abs=1e-9)
            found = expected("tumor", row["agreement"], without=row["patient"])
            assert tuple(row[name] for name in QUALITY[1:]) == pytest.approx(found)
        else:
            assert all(row[name] is None for name in QUALITY)
    figures = json.loads((run / "results.json").read_text())["expected_dice"]
    assert figures["cases"] == 24 and figures["masks"] == len(patients)
    assert 0.7 * figures["masks"] <= figures["covered"] <= figures["masks"]
    report = (run / "report.html").read_text()
    for title in ("Dice against the expected Dice", "Patients by expected Dice", "Risk and coverage"):
        assert title in report


def test_predict_says_what_to_expect_of_each_mask(trained, tmp_path):
    run, scans = trained
    case = next(row["patient"] for row in read_table(run / "per_patient.csv") if row["agreement"] is not None)
    shutil.copytree(scans / case, tmp_path / "in" / case)
    done = command("predict", f"--run={run}", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader((tmp_path / "out" / "predictions.csv").open())
    (scored,) = (row for row in read_table(run / "per_patient.csv") if row["patient"] == case)
    assert float(row["agreement"]) == pytest.approx(scored["agreement"], abs=1e-3)
    found = load_trained(run).expected_dice("tumor", float(row["agreement"]))
    assert [float(row[name]) for name in QUALITY[1:]] == pytest.approx(found, abs=1e-9)
    said = f"lowest, with 90 % interval: {case} {found.dice:.2f} ({found.low:.2f} to {found.high:.2f})"
    assert f"expected Dice: median {found.dice:.2f}; {said}; check these masks first\n" in done.stdout
    assert "no expected Dice" not in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tta"], "note: no expected Dice: it requires masks without --tta"),
        (["--run={run},{other}"], "note: no expected Dice: it requires a single run"),
        (["--run={other}"], "note: no expected Dice: other has no expected_dice.json, which a training writes at its"),
    ],
)
def test_masks_of_another_make_have_an_agreement_alone(trained, tmp_path, flags, words):
    run, scans = trained
    other = shutil.copytree(run, tmp_path / "other")
    (other / "expected_dice.json").unlink()
    case = next(row["patient"] for row in read_table(run / "per_patient.csv") if row["agreement"] is not None)
    shutil.copytree(scans / case, tmp_path / "in" / case)
    flags = [flag.format(run=run, other=other) for flag in flags]
    out = tmp_path / "out"
    done = command("predict", f"--run={run}", *flags, f"--input={tmp_path / 'in'}", f"--output={out}", "--overlays")
    assert done.returncode == 0, done.stderr
    assert words in done.stdout and "check these masks first" not in done.stdout
    (row,) = csv.DictReader((out / "predictions.csv").open())
    assert [row[name] for name in QUALITY[1:]] == [""] * 3 and 0.0 <= float(row["agreement"]) <= 1.0


def test_evaluate_leaves_each_patient_out_for_its_own(trained, tmp_path):
    run, _ = trained
    done = command("evaluate", f"--run={run}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    rows, own = (read_table(folder / "per_patient.csv") for folder in (tmp_path / "out", run))
    for row, wanted in zip(rows, sorted(own, key=lambda row: row["patient"]), strict=True):
        for name in QUALITY:
            assert row[name] == (None if wanted[name] is None else pytest.approx(wanted[name], abs=1e-3))


def test_an_empty_mask_has_no_number_and_a_note(trained, tmp_path):
    run, scans = trained
    blind = shutil.copytree(run, tmp_path / "blind")
    results = json.loads((blind / "results.json").read_text())
    results["postprocess"]["threshold"] = 1.0  # no probability reaches it
    (blind / "results.json").write_text(json.dumps(results))
    case = sorted(path.name for path in scans.iterdir() if path.is_dir())[-1]
    shutil.copytree(scans / case, tmp_path / "in" / case)
    done = command("predict", f"--run={blind}", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader((tmp_path / "out" / "predictions.csv").open())
    assert [row[name] for name in QUALITY] == [""] * 4 and row["notes"].endswith(NO_MASK)
    assert f"note: {case}: {NO_MASK}" in done.stdout


def test_the_numbers_that_are_compared_hold_the_one_that_is_used(trained, tmp_path):
    run, _ = trained
    root = Path(__file__).parents[1]
    flags = [f"--run={run}", "--expected_dice", f"--output={tmp_path / 'out'}"]
    module = [sys.executable, "-m", "experiments.failure_detection", *flags]
    done = subprocess.run(module, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    rows = {row["patient"]: row for row in read_table(tmp_path / "out" / "cases.csv")}
    split = json.loads((run / "split.json").read_text())
    assert rows.keys() == {*split["val"], *split["test"]}
    for row in read_table(run / "per_patient.csv"):
        found = rows[row["patient"]]
        assert found["dice"] == pytest.approx(row["dice"], abs=1e-3)
        assert found["Dice of thresholds 0.1 and 0.9"] == pytest.approx(row["agreement"], abs=1e-3)
    learned, own = (read_expected_dice(folder, ("tumor",)) for folder in (tmp_path / "out", run))
    for a, b in zip(
        *(sorted(one.targets["tumor"], key=lambda pair: pair.patient) for one in (learned, own)), strict=True
    ):
        assert a == (pytest.approx(b.agreement, abs=1e-3), pytest.approx(b.dice, abs=1e-3), b.patient)
    table = {row["detector"]: row for row in read_table(tmp_path / "out" / "table.csv")}
    best, none = table["the Dice itself: the best possible"], table["no score: random order"]
    assert none["area"] == pytest.approx(1.0 - np.mean([row["dice"] for row in rows.values()]))
    assert all(best["area"] <= row["area"] and row["area_low"] <= row["area_high"] for row in table.values())
    assert "mean Dice with each size" in table and (tmp_path / "out" / "table.md").read_text().strip() in done.stdout
