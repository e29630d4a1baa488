"""Statistics over patients: undefined scores, intervals, groups, differences."""

import numpy as np
import pytest

from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.scores import difference, read_table, summarize, summarize_groups, write_table
from brainseg_jax.evaluation.volumes import score_volume


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
    """Of many patients the mean is normal: 1.96 standard errors to each side."""
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


def test_a_table_is_read_as_it_was_written(tmp_path):
    rows = rows_of([0.25, 1.0], hd95=[None, 2.5], institution=["DU", "CS"])
    write_table(tmp_path / "rows.csv", rows)
    assert read_table(tmp_path / "rows.csv") == rows
    (tmp_path / "empty.csv").write_text("patient,dice\n")
    for name, words in (("empty.csv", "holds no rows"), ("missing.csv", "cannot be read")):
        with pytest.raises(InputError, match=f"{name} {words}"):
            read_table(tmp_path / name)
