"""The study that leaves sequences out."""

import csv
import subprocess
import sys

import numpy as np
import pytest

from brainseg_jax.scans.description import LGG
from brainseg_jax.scans.volume import Volume
from experiments.sequences import choices, tabulate, without


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
    _, _, every, alone = tabulate(rows)
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
