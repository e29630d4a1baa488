"""Statistics over patients: undefined scores, intervals, groups, differences."""

import numpy as np
import pytest

from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.blocks import score_blocks
from brainseg_jax.evaluation.scores import (
    by_target,
    difference,
    differences,
    mean_over_targets,
    read_table,
    select_target,
    summarize,
    summarize_groups,
    targets_of,
    write_table,
)
from brainseg_jax.evaluation.statistics import mean_interval
from brainseg_jax.evaluation.volumes import score_targets, score_volume


def rows_of(dice, hd95=None, **columns):
    masks = np.zeros((2, 4, 4), bool)
    plain = score_volume(masks, masks, spacing=None, tolerance=1.0)
    hd95 = hd95 or [1.0] * len(dice)
    rows = [
        {"patient": f"P{i}", **plain, "dice": d, "hd95": h} for i, (d, h) in enumerate(zip(dice, hd95, strict=True))
    ]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows


def test_an_undefined_score_is_counted_and_not_averaged():
    summary = summarize(rows_of([0.0, 0.5, 0.7, 1.0], hd95=[None, 2.0, 3.0, 10.0]))
    assert summary["hd95_patients"] == 3 and summary["patients"] == 4
    assert (summary["hd95_mean"], summary["hd95_median"]) == (5.0, 3.0)
    assert summary["hd95_std"] == pytest.approx(np.sqrt((9 + 4 + 25) / 2))
    assert summary["dice_mean"] == pytest.approx(0.55) and "dice_patients" not in summary
    nowhere = summarize(rows_of([0.0, 0.0], hd95=[None, None]))
    assert nowhere["hd95_mean"] is nowhere["hd95_median"] is nowhere["hd95_mean_ci95"] is None
    assert nowhere["hd95_patients"] == 0


def test_the_interval_is_that_of_a_large_sample():
    """With many patients the mean is normal: 1.96 standard errors to each side."""
    dice = np.random.default_rng(3).beta(5, 2, size=400)
    low, high = summarize(rows_of(dice.tolist()))["dice_mean_ci95"]
    error = 1.96 * dice.std(ddof=1) / 20
    assert [low, high] == pytest.approx([dice.mean() - error, dice.mean() + error], abs=0.1 * error)


def test_groups():
    rows = rows_of(
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
        institution=["DU", "CS", "DU", "CS", "DU", "DU", "DU"],
        grade=[2, 1, -1, 1, 2, 2, 2],
        volume_true=[70.0, 60.0, 50.0, 40.0, 30.0, 20.0, 10.0],
    )
    groups = summarize_groups(rows)
    assert groups["institution"]["CS"]["dice_mean"] == pytest.approx(0.3)
    assert {name: s["patients"] for name, s in groups["institution"].items()} == {"DU": 5, "CS": 2}
    thirds = groups["tumor size"]
    assert [s["patients"] for s in thirds.values()] == [3, 2, 2]
    assert thirds["smallest third"]["dice_mean"] == pytest.approx(0.6)
    assert thirds["largest third"]["dice_mean"] == pytest.approx(0.15)
    assert [(n, s["patients"]) for n, s in groups["grade"].items()] == [("code 1", 2), ("code 2", 4), ("unknown", 1)]
    assert summarize_groups(rows_of([0.1, 0.2])) == {}


def test_a_difference_is_made_patient_by_patient():
    first = rows_of([0.1, 0.5, 0.9], hd95=[None, 4.0, 2.0])
    other = rows_of([0.3, 0.6, 0.9], hd95=[1.0, 5.0, None])
    change = difference(first, other, "dice")
    assert change["mean"] == pytest.approx(0.1) and change["patients"] == 3
    assert 0.0 <= change["mean_ci95"][0] < 0.1 < change["mean_ci95"][1] <= 0.2
    assert difference(first, other, "hd95") == {"mean": 1.0, "mean_ci95": None, "patients": 1}


def cases_of():
    """Patient P0 has the cases a and b, P1 has c, P2 has d and e."""
    rows = rows_of([0.25, 0.5, 0.875, 0.5, 0.75], hd95=[None, 3.0, 5.0, None, None], slices=[2, 3, 4, 5, 6])
    for row, patient, case in zip(rows, ("P0", "P0", "P1", "P2", "P2"), "abcde", strict=True):
        row |= {"patient": patient, "case": case, "group": "one" if patient == "P0" else "two"}
    return rows


def test_a_patient_counts_once():
    summary = summarize(cases_of())
    patients = np.array([0.375, 0.875, 0.625])
    assert (summary["patients"], summary["cases"]) == (3, 5)
    assert summary["dice_mean"] == summary["dice_median"] == 0.625 and summary["dice_std"] == pytest.approx(0.25)
    assert summary["dice_mean_ci95"] == pytest.approx(mean_interval(patients))
    assert (summary["hd95_mean"], summary["hd95_patients"]) == (4.0, 2)  # undefined in both cases of P2
    assert summary["slices"] == 20 and summary["empty_slices"] == 20
    groups = summarize_groups(cases_of())
    assert {name: (s["patients"], s["cases"]) for name, s in groups["group"].items()} == {"one": (1, 2), "two": (2, 3)}
    assert groups["group"]["two"]["dice_mean"] == pytest.approx(0.75)
    assert [s["cases"] for s in groups["tumor size"].values()] == [2, 1, 2]


def test_a_patient_changes_once():
    other = [row | {"dice": row["dice"] + d} for row, d in zip(cases_of(), (0.1, 0.3, 0.0, -0.1, 0.1), strict=True)]
    other[0]["hd95"], other[1]["hd95"] = 9.0, 4.0
    change = difference(cases_of(), other, "dice")
    assert change["patients"] == 3 and change["mean"] == pytest.approx(0.2 / 3)  # 0.2, 0 and 0
    assert difference(cases_of(), other, "hd95") == {"mean": 0.5, "mean_ci95": None, "patients": 2}


def of_targets():
    """Three patients, two targets: Dice 0.1 0.2 0.3 and 0.5 0.6 0.9; HD95 of the second undefined for P1."""
    rows = []
    for name, dice, hd95 in (("core", [0.1, 0.2, 0.3], [1.0, 2.0, 3.0]), ("whole", [0.5, 0.6, 0.9], [3.0, None, 9.0])):
        volumes = [30.0, 20.0, 10.0]
        rows += [row | {"target": name} for row in rows_of(dice, hd95=hd95, volume_true=volumes)]
    return [rows[i] for i in (0, 3, 1, 4, 2, 5)]


def test_targets_and_their_mean():
    rows = of_targets()
    assert targets_of(rows) == ("core", "whole") and targets_of(rows_of([0.1])) == ()
    blocks = by_target(rows, summarize)
    assert list(blocks) == ["targets", "mean"] and list(blocks["targets"]) == ["core", "whole"]
    assert blocks["targets"]["core"] == summarize(rows_of([0.1, 0.2, 0.3], hd95=[1.0, 2.0, 3.0]))
    assert blocks["targets"]["whole"]["dice_mean"] == pytest.approx(2 / 3)
    mean = blocks["mean"]
    assert mean["patients"] == 3 and mean["dice_mean"] == pytest.approx((0.3 + 0.4 + 0.6) / 3)
    assert mean["dice_mean_ci95"] == pytest.approx(mean_interval(np.array([0.3, 0.4, 0.6])))
    assert (mean["hd95_mean"], mean["hd95_patients"]) == (4.0, 2)  # 2 and 6: not where one target has none
    assert "found_slices" not in mean and "empty_slices" not in mean
    assert "found_slices" not in mean_over_targets(rows)[0] and len(mean_over_targets(rows)) == 3
    alone = rows_of([0.1, 0.2])
    assert by_target(alone, summarize) == summarize(alone)


def test_blocks_of_groups_are_named_after_their_target():
    groups = score_blocks(of_targets(), {}).groups
    assert list(groups["targets"]["core"]) == ["core size"] and list(groups["mean"]) == ["size"]
    assert groups["mean"]["size"]["largest third"]["dice_mean"] == pytest.approx(0.3)
    alone = score_blocks(rows_of([0.1, 0.2, 0.3]), {}, target="lesion")
    assert list(alone.groups) == ["lesion size"] and alone.calibration is None


def test_differences_by_target():
    other = [row | {"dice": row["dice"] + (0.1 if row["target"] == "core" else 0.0)} for row in of_targets()]
    change = differences(of_targets(), other)
    assert change["targets"]["core"]["dice"]["mean"] == pytest.approx(0.1)
    assert change["targets"]["whole"]["dice"]["mean"] == 0.0
    assert change["mean"]["dice"]["mean"] == pytest.approx(0.05)
    assert differences(select_target(of_targets(), "core"), select_target(other, "core")) == change["targets"]["core"]


def test_voxels_that_do_not_count():
    """2 of 8 reference voxels and 3 of 6 predicted voxels are ignored; 3 common voxels remain."""
    truth, predicted = np.zeros((2, 1, 4, 4), bool)
    counted = np.ones((1, 4, 4), bool)
    truth[0, :2] = True
    predicted[0, 1, :3] = predicted[0, 3, :3] = True
    counted[0, 0, :2] = counted[0, 3] = False
    row = score_volume(predicted, truth, spacing=(1.0, 1.0, 1.0), tolerance=0.0, counted=counted)
    assert row["dice"] == pytest.approx(2 * 3 / (6 + 3)) and row["precision"] == 1.0 and row["recall"] == 0.5
    assert (row["volume_true"], row["volume_predicted"]) == (0.006, 0.003)
    assert row["false_lesions"] == 0 and row["found_lesions"] == 1
    nothing = score_volume(predicted, truth, spacing=None, tolerance=0.0, counted=np.zeros_like(counted))
    assert nothing["dice"] == 1.0 and nothing["hd95"] == 0.0 and nothing["tumor_slices"] == 0


def test_a_row_a_target():
    masks = np.zeros((1, 2, 2, 2), bool)
    masks[0, 0, :, 1] = True
    rows = score_targets(masks, masks[..., ::-1], ("a", "b"), spacing=None, tolerance=0.0)
    assert [(row["target"], row["volume_predicted"], row["volume_true"]) for row in rows] == [
        ("a", 0.0, 2.0),
        ("b", 2.0, 0.0),
    ]
    (alone,) = score_targets(masks[..., 1:], masks[..., 1:], ("a",), spacing=None, tolerance=0.0)
    assert "target" not in alone and alone["dice"] == 1.0


def test_names_stay_text(tmp_path):
    rows = [{"patient": "007", "case": "1e3", "target": "3", "group": "12", "dice": 0.5}]
    write_table(tmp_path / "rows.csv", rows)
    assert read_table(tmp_path / "rows.csv") == rows


def test_a_table_is_read_as_it_was_written(tmp_path):
    rows = rows_of([0.25, 1.0], hd95=[None, 2.5], institution=["DU", "CS"])
    write_table(tmp_path / "rows.csv", rows)
    assert read_table(tmp_path / "rows.csv") == rows
    (tmp_path / "empty.csv").write_text("patient,dice\n")
    for name, words in (("empty.csv", "holds no rows"), ("missing.csv", "cannot be read")):
        with pytest.raises(InputError, match=f"{name} {words}"):
            read_table(tmp_path / name)
