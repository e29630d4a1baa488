"""How a split by slice changes a score, on the same slices of the same patients."""

import numpy as np
import pytest

from brainseg_jax.data.prepared_cases import LabelledCase
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.scores import write_table
from brainseg_jax.scans.volume import Volume
from experiments.by_slice import assign_slices, third_name
from experiments.leakage import BY_PATIENT, BY_SLICE, SEEN, check_fold, score_case, tabulate


def test_each_network_is_scored_on_the_slices_that_are_tested():
    numbers = tuple(range(1, 17))
    parts = assign_slices("P_1", np.array(numbers), fold=0)
    labels = np.ones((16, 2, 2), np.uint8)
    case = LabelledCase("P_1", "P", "", Volume(np.zeros((16, 2, 2, 3), np.uint8), None, numbers, labels=labels))
    # The one network finds half of each tested slice and nothing else, the other one those that it was trained on.
    ours, torn = np.zeros((2, 16, 2, 2), bool)
    ours[parts == 2, 0] = True
    torn[parts == 0] = True
    rows = {row["split"]: row for row in score_case(case, ours, torn, fold=0)}
    assert {split: row["slices"] for split, row in rows.items()} == {BY_PATIENT: 4, BY_SLICE: 4, SEEN: 11}
    # Dice of 2 of 4 pixels a slice: 2 * 2 / (2 + 4).
    assert {split: row["dice"] for split, row in rows.items()} == {BY_PATIENT: 2 / 3, BY_SLICE: 0.0, SEEN: 1.0}
    assert rows[BY_SLICE]["tumor_voxels"] == 16


def test_the_table_leaves_out_patients_without_a_tumor_in_the_tested_slices():
    scores = {"a": (0.5, 0.75, 1.0), "b": (0.25, 0.75, 1.0), "none": (1.0, 0.0, 1.0)}
    rows = [
        {"patient": patient, "split": split, "dice": value, "tumor_voxels": 0 if patient == "none" else 5}
        for patient, values in scores.items()
        for split, value in zip((BY_PATIENT, BY_SLICE, SEEN), values, strict=True)
    ]
    _, _, ours, torn, seen = tabulate(rows).splitlines()
    assert ours == f"| {BY_PATIENT} | 2 | 0.375 | 0.375 |  |  |  |"
    assert torn.startswith(f"| {BY_SLICE} | 2 | 0.750 | 0.750 | +0.375 | 2 / 0 | 0.500 |")  # the least p of two pairs
    assert seen.startswith(f"| {SEEN} | 2 | 1.000 ")
    assert seen.endswith("|  |  |  |")  # on other slices: nothing to compare


def test_a_fold_that_the_run_did_not_test_is_refused(tmp_path):
    rows = [{"patient": "P_1", "split": split, "tumor_voxels": 5} for split in (BY_PATIENT, BY_SLICE)]
    for tumor, fails in ((5.0, False), (7.0, True)):
        write_table(tmp_path / "per_patient.csv", [{"patient": third_name("P_1", "test"), "volume_true": tumor}])
        if not fails:
            check_fold(rows, tmp_path, fold=0)
            continue
        with pytest.raises(InputError, match=r"--fold=0: .* volume for P_1, .*give the fold of the run"):
            check_fold(rows, tmp_path, fold=0)
