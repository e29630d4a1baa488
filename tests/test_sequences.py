"""The experiment that leaves out sequences."""

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import LGG
from brainseg_jax.scans.volume import Volume
from experiments import sequences
from experiments.sequences import choices, mean_dice, score_run, tabulate, without


def test_every_set_of_sequences_holds_flair():
    assert choices(LGG) == [
        ("pre-contrast", "FLAIR", "post-contrast"),
        ("pre-contrast", "FLAIR"),
        ("FLAIR", "post-contrast"),
        ("FLAIR",),
    ]


def test_what_is_left_out_is_replaced_by_flair():
    voxels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    left = without(Volume(voxels, None, (1, 2)), ("FLAIR", "post-contrast"), LGG)
    np.testing.assert_array_equal(left.voxels, np.stack([voxels[..., 1], voxels[..., 1], voxels[..., 2]], axis=-1))


def test_the_table_compares_patient_by_patient():
    dice = {"a": (0.9, 0.8), "b": (0.8, 0.2)}
    rows = [
        {"patient": patient, "sequences": name, "dice": of_patient[index]}
        for index, name in enumerate(("all", "FLAIR"))
        for patient, of_patient in dice.items()
    ]
    _, _, every, alone = tabulate(rows).splitlines()
    assert every == "| all | 2 | 0.850 | 0.850 |  | 0 |"
    assert alone == "| FLAIR | 2 | 0.500 | 0.500 | -0.350 | 1 |"


def test_all_sequences_score_as_the_run_does(trained_run, tmp_path):
    run, _ = trained_run
    command = [sys.executable, "-m", "experiments.sequences", f"--run={run}", f"--output={tmp_path}"]
    subprocess.run(command, check=True, capture_output=True)
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    with (run / "per_patient.csv").open() as file:
        known = {row["patient"]: float(row["dice"]) for row in csv.DictReader(file)}
    every = {row["patient"]: float(row["dice"]) for row in rows if row["sequences"] == rows[0]["sequences"]}
    assert every == pytest.approx(known, abs=1e-6) and len(rows) == 4 * len(known)
    twice = subprocess.run([*command, f"--run={run},{run}"], capture_output=True, text=True, check=False)
    assert twice.returncode == 2 and "give one run of each fold" in twice.stderr


def described(run, folder, **changes):
    """A copy of a run with another description of its data."""
    shutil.copytree(run, folder)
    config = json.loads((folder / "config.json").read_text())
    config["dataset"]["description"] = dataclasses.replace(LGG, **changes).to_json()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_cohort_whose_channels_cannot_be_replaced_is_refused(trained_run, tmp_path):
    run = described(trained_run[0], tmp_path / "run", stand_in="")
    with pytest.raises(InputError, match=rf"{run}: its channels pre-contrast, FLAIR, post-contrast include none"):
        next(score_run(run))


def test_voxels_of_the_label_to_ignore_are_not_scored():
    """Two of four voxels count: a hit and a false positive, 2 * 1 / (2 + 1); all four would give 2 * 1 / (4 + 1)."""
    masks = np.ones((1, 1, 4, 1), bool)
    reference = np.array([1, 0, 0, 0], bool).reshape(1, 1, 4, 1)
    counted = np.array([1, 1, 0, 0], bool).reshape(1, 1, 4)
    assert mean_dice(masks, reference, counted) == pytest.approx(2 / 3)
    assert mean_dice(masks, reference, None) == pytest.approx(2 / 5)


@pytest.mark.usefixtures("optax_promotion")
def test_a_run_of_data_with_a_label_to_ignore(trained_run, tmp_path, monkeypatch):
    """Everything is ignored, so there is no error: Dice 1."""
    run = described(trained_run[0], tmp_path / "run", ignore=2)
    name = json.loads((run / "split.json").read_text())["test"][0]
    voxels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    volume = Volume(voxels, None, (1, 2, 3), labels=np.full((3, 32, 32), 2, np.uint8))
    monkeypatch.setattr(sequences, "find_data", lambda *_, **__: None)
    monkeypatch.setattr(sequences, "read_cases", lambda _: [SimpleNamespace(name=name, volume=volume)])
    assert [row["dice"] for row in score_run(run)] == [1.0] * 4
