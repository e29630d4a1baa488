"""Tables of a study: statistics against scipy, merged and averaged scores by hand."""

import numpy as np
import pytest
from scipy import stats

from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.scores import write_table
from experiments.by_slice import third_name
from experiments.studies import Cell, Study
from experiments.tables import average_by_patient, latex, merge_folds, write_tables

STUDY = Study(
    "What of it?", (Cell("base", "the baseline"), Cell("other", "the other_one"), Cell("new", "the new one")), {}
)


def test_a_volume_is_put_together_from_its_folds():
    """Overlaps 30 and 0, with 40 + 60 reference and 40 + 20 predicted voxels."""
    row = {"institution": "DU", "grade": 2, "unit": "voxel"}
    first = row | {
        "patient": third_name("T_D_1_9", "test"),
        "dice": 0.75,
        "volume_true": 40.0,
        "volume_predicted": 40.0,
    }
    second = first | {"dice": 0.0, "volume_true": 60.0, "volume_predicted": 20.0}
    (whole,) = merge_folds([[first], [second]])
    assert whole["patient"] == "T_D_1_9"
    assert whole["dice"] == pytest.approx(60 / 160) and whole["iou"] == pytest.approx(30 / 130)
    assert whole["precision"] == pytest.approx(0.5) and whole["recall"] == pytest.approx(0.3)
    nothing = first | {"dice": 1.0, "volume_true": 0.0, "volume_predicted": 0.0}
    assert merge_folds([[nothing]])[0]["dice"] == merge_folds([[nothing]])[0]["iou"] == 1.0


def make_rows(cell, dice, seed=0):
    scores = {"iou": 0.5, "precision": 0.5, "recall": 0.5, "surface_dice": 0.5, "hd95": None, "assd": 1.0}
    where = {"study": "tiny", "cell": cell, "fold": 0, "seed": seed}
    return [where | {"patient": f"P{i:02d}", "dice": value} | scores for i, value in enumerate(dice)]


def test_the_table_says_what_scipy_says(tmp_path, capsys):
    rng = np.random.default_rng(0)
    base, other, new = rng.uniform(0.3, 0.9, (3, 12))
    rows = make_rows("base", base) + make_rows("other", other) + make_rows("new", new)
    run = {"fold": 0, "seed": 0, "best_epoch": 3, "parameters": 1000, "seconds": 90.0, "soft_batch_iou": 0.5}
    run |= {"train": 20, "val": 4, "test": 12}
    write_table(tmp_path / "scores.csv", rows)
    write_table(tmp_path / "runs.csv", [{"cell": name, **run} for name in ("base", "other", "new")])
    write_tables(STUDY, tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    cells = {
        row[1]: row for row in ([c.strip() for c in line.split("|")] for line in table.splitlines()) if len(row) > 5
    }
    p = sorted([stats.wilcoxon(other, base).pvalue, stats.wilcoxon(new, base).pvalue])
    expected = {f"{min(1.0, 2 * p[0]):.3f}", f"{max(min(1.0, 2 * p[0]), p[1]):.3f}"}
    assert {cells["the other_one"][10], cells["the new one"][10]} == expected
    assert cells["the baseline"][3].startswith(f"{base.mean():.3f} [") and cells["the baseline"][8] == "baseline"
    assert cells["the other_one"][4].startswith(f"{np.median(other):.3f} [")
    assert cells["the other_one"][8].startswith(f"{(other - base).mean():+.3f} [")
    assert cells["the other_one"][9] == f"{(other > base).sum()} / {(other < base).sum()}"
    assert cells["the baseline"][12:15] == ["3.0", "1,000", "1.5"]
    text = (tmp_path / "table.tex").read_text()
    assert (
        r"the other\_one & 12 &" in text
        and text.count(r" \\") == 4
        and "[" not in text.split(r"\end")[0].replace("{[}", "")
    )
    assert (tmp_path / "boxes.png").stat().st_size > 5000 and (tmp_path / "differences.png").stat().st_size > 5000
    write_table(tmp_path / "scores.csv", make_rows("other", other))
    with pytest.raises(InputError, match=r"scores\.csv: the baseline 'base' has no rows"):
        write_tables(STUDY, tmp_path)


def test_a_table_a_target(tmp_path, capsys):
    """Dice of `a` as given, of `b` half of it: the mean is three quarters of it."""
    base, new = np.random.default_rng(1).uniform(0.2, 0.9, (2, 8))
    rows = []
    for cell, dice in (("base", base), ("new", new)):
        of_targets = [[row | {"target": t} for row in make_rows(cell, f * dice)] for t, f in (("a", 1.0), ("b/c", 0.5))]
        rows += [row for pair in zip(*of_targets, strict=True) for row in pair]
    run = {"fold": 0, "seed": 0, "epoch": 3, "parameters": 10, "seconds": 9.0, "soft_batch_iou": None}
    run |= {"train": 20, "val": 4, "test": 8}
    write_table(tmp_path / "scores.csv", rows)
    write_table(tmp_path / "runs.csv", [{"cell": name, **run} for name in ("base", "new")])
    write_tables(STUDY, tmp_path)
    capsys.readouterr()
    _, *parts = (tmp_path / "table.md").read_text().split("### ")
    for part, title, factor in zip(parts, ("Mean over the targets", "A", "B/c"), (0.75, 1.0, 0.5), strict=True):
        assert part.startswith(f"{title}\n")
        cells = {line.split("|")[1].strip(): line.split("|") for line in part.splitlines() if line.count("|") > 5}
        assert cells["the baseline"][3].strip().startswith(f"{factor * base.mean():.3f} [")
        assert cells["the new one"][8].strip().startswith(f"{factor * (new - base).mean():+.3f} [")
        assert cells["the new one"][2].strip() == "8"
    assert (tmp_path / "table.tex").read_text().count(r"\begin{tabular}") == 3
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {f"{kind}{of}.png" for kind in ("boxes", "differences") for of in ("", "_a", "_b_c")}


def test_seeds_are_averaged_patient_by_patient():
    rows = make_rows("base", [0.2, 0.4]) + make_rows("base", [0.6, 0.8], seed=1)
    rows[0]["hd95"] = 3.0
    found = average_by_patient(rows)
    assert [found[p]["dice"] for p in ("P00", "P01")] == pytest.approx([0.4, 0.6])
    assert (found["P00"]["hd95"], found["P01"]["hd95"]) == (3.0, None)


def test_latex_takes_nothing_for_a_command():
    assert latex("a_b 5 % < 0.1 [x]") == r"a\_b 5 \% $<$ 0.1 {[}x{]}"
