"""From the run folders of a study to one tidy CSV, and from that to its tables in Markdown and LaTeX.

Where there are several targets, there is a table of the mean over them, then one of each target.
"""

import json
import re
from pathlib import Path

import numpy as np
from absl import logging

from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.scores import (
    difference,
    mean_over_targets,
    read_table,
    select_target,
    summarize,
    targets_of,
    write_table,
)
from brainseg_jax.evaluation.statistics import compare_pairs, holm, median_interval
from brainseg_jax.evaluation.volumes import MILLIMETER
from brainseg_jax.evaluation.wording import capital
from brainseg_jax.runs.trained import read_results
from experiments.by_slice import case_of
from experiments.plots import draw_boxes, draw_differences
from experiments.running import Grid
from experiments.studies import Cell, Study

SCORES, RUNS = "scores.csv", "runs.csv"
WHERE = ("study", "cell", "fold", "seed")
NUMBERS = ("dice", "iou", "precision", "recall", "surface_dice", "hd95", "assd")


def collect(name: str, grid: Grid) -> None:
    """Writes `scores.csv`, a row a test case and target of each finished run, and `runs.csv`, a row a finished run.

    A split by slice tests each patient in every fold, on other slices. Dice and IoU of the whole volume are put
    together from the folds; what needs neighboring slices is left blank.
    """
    scores, runs, torn = [], [], {}
    for job in grid.jobs:
        if not grid.is_done(job):
            continue
        run, where = grid.run_of(job), {"study": name, "cell": job.cell.name, "fold": job.fold, "seed": job.seed}
        results = read_results(run)
        seconds = json.loads((run / "time.json").read_text())["seconds"] if (run / "time.json").exists() else None
        facts = {key: results[key] for key in ("epoch", "epochs", "parameters")}
        soft = next((v for key, v in results["test"].items() if key.startswith("soft_iou_per_batch_of_")), None)
        runs.append({**where, **facts, "soft_batch_iou": soft, "seconds": seconds, **results["patients"]})
        rows = read_table(run / "per_patient.csv")
        if job.cell.by_slice:
            torn.setdefault((job.cell.name, job.seed), []).append(rows)
        else:
            scores += [where | row for row in rows]
    for (cell, seed), folds in torn.items():
        if len(folds) == len(grid.budget.folds):
            where = {"study": name, "cell": cell, "fold": None, "seed": seed}
            scores += [dict.fromkeys(scores[0]) | where | row for row in put_together(folds)] if scores else []
    if not scores:
        raise InputError(f"{grid.output}: no cell is finished yet, so there are no tables; see its logs/")
    columns = list(scores[0])
    write_table(grid.output / SCORES, [{key: row[key] for key in columns} for row in scores])
    write_table(grid.output / RUNS, runs)
    if missing := [job.name for job in grid.jobs if not grid.is_done(job)]:
        logging.warning(
            "the tables are made without %d runs that are not finished: %s", len(missing), ", ".join(missing)
        )


def put_together(folds: list[list[dict]]) -> list[dict]:
    """Dice and IoU of whole volumes whose slices were tested in several folds.

    Args:
      folds: rows of `per_patient.csv` of each.

    Returns:
      a row a patient and target: patient, what is known of it, dice, iou, precision, recall and the true and predicted
      volumes.
    """
    cases: dict[tuple, list[dict]] = {}
    for row in (row for rows in folds for row in rows):
        cases.setdefault((case_of(row["patient"]), row.get("target")), []).append(row)
    out = []
    for (case, _), rows in cases.items():
        true, found = (sum(row[key] for row in rows) for key in ("volume_true", "volume_predicted"))
        overlap = sum(0.5 * row["dice"] * (row["volume_true"] + row["volume_predicted"]) for row in rows)
        union = true + found - overlap
        out.append(
            {key: rows[0][key] for key in ("institution", "group", "grade", "target", "unit") if key in rows[0]}
            | {"patient": case, "volume_true": true, "volume_predicted": found}
            | {
                "dice": overlap / (0.5 * (true + found)) if true + found else 1.0,
                "iou": overlap / union if union else 1.0,
            }
            | {"precision": overlap / found if found else float(not true)}
            | {"recall": overlap / true if true else 1.0}
        )
    return out


def by_patient(rows: list[dict]) -> dict[str, dict]:
    """The scores of each patient of one target, the mean over seeds and cases; undefined where it is for all."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["patient"], []).append(row)
    out = {}
    for patient, group in sorted(groups.items()):
        out[patient] = {"patient": patient}
        for name in NUMBERS:
            values = [row[name] for row in group if row[name] is not None]
            out[patient][name] = float(np.mean(values)) if values else None
    return out


def write_tables(study: Study, output: Path) -> None:
    """Writes `table.md`, `table.tex`, `boxes.png` and `differences.png` from the two CSV files, and prints the first.

    Of several targets the pictures are of the mean over them; those of a target are `boxes_<target>.png` and
    `differences_<target>.png`.

    Raises:
      InputError: a CSV file is missing or damaged.
    """
    scores = read_table(output / SCORES)
    runs = [{"epoch": run.get("best_epoch"), **run} for run in read_table(output / RUNS)]  # its name in older files
    if not any(row["cell"] == study.baseline.name for row in scores):
        raise InputError(
            f"{output / SCORES}: no row of the baseline {study.baseline.name!r}, so nothing to compare with"
        )
    targets = targets_of(scores)
    parts = [("", scores)]
    if len(targets) > 1:
        parts = [("mean over the targets", _mean_over_targets(scores))]
        parts += [(target, select_target(scores, target)) for target in targets]
    markdown, latex_text, notes = [], [], []
    for title, rows in parts:
        patients = {cell.name: by_patient([row for row in rows if row["cell"] == cell.name]) for cell in study.cells}
        cells = [cell for cell in study.cells if patients[cell.name]]
        header, lines = table(study, cells, patients, runs)
        notes = words(study, cells, patients, runs, unit=scores[0].get("unit"), targets=targets)
        heading = f"### {capital(title)}\n\n" if title else ""
        markdown.append(f"{heading}{to_markdown(header, lines)}\n\n")
        latex_text.append((f"% {title}\n" if title else "") + to_latex(header, lines))
        dice = {cell.words: {p: row["dice"] for p, row in patients[cell.name].items()} for cell in cells}
        suffix = f"_{_file_name(title)}" if title != parts[0][0] else ""
        draw_boxes(output / f"boxes{suffix}.png", dice)
        if len(dice) > 1:
            draw_differences(output / f"differences{suffix}.png", dice)
    text = f"{study.question}\n\n{''.join(markdown)}" + "\n".join(f"- {note}" for note in notes) + "\n"
    (output / "table.md").write_text(text)
    (output / "table.tex").write_text("\n".join([*latex_text, *(f"% {note}" for note in notes)]) + "\n")
    print(text)


def _mean_over_targets(scores: list[dict]) -> list[dict]:
    """`mean_over_targets` of each run: the same case is scored by many."""
    runs: dict[tuple, list[dict]] = {}
    for row in scores:
        runs.setdefault(tuple(row[name] for name in WHERE), []).append(row)
    return [row for rows in runs.values() for row in mean_over_targets(rows)]


def _file_name(target: str) -> str:
    """The target in letters that any file system takes."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", target)


def table(study: Study, cells: list[Cell], patients: dict[str, dict], runs: list[dict]) -> tuple[list, list[list]]:
    """Header and rows of the study's table, as words."""
    baseline = patients[study.baseline.name]
    tests, changes = [], []
    for cell in cells:
        both = [p for p in patients[cell.name] if p in baseline] if cell is not study.baseline else []
        first, other = ([rows[p] for p in both] for rows in (baseline, patients[cell.name]))
        changes.append(difference(first, other, "dice"))
        tests.append(compare_pairs(np.array([b["dice"] - a["dice"] for a, b in zip(first, other, strict=True)])))
    adjusted = holm([test.p for test in tests])
    published = any(cell.published for cell in cells)
    header = ["", "patients", "Dice mean", "Dice median", "IoU mean", "IoU median", "HD95 mean (patients)"]
    header += ["Dice, change", "better / worse", "p (Holm)", "effect", "epoch scored", "parameters", "minutes"]
    header += ["soft IoU of batches", "the same, published"] if published else []
    out = []
    for cell, change, test, p in zip(cells, changes, tests, adjusted, strict=True):
        rows = list(patients[cell.name].values())
        scores = summarize_scores(rows)
        own = [run for run in runs if run["cell"] == cell.name]
        row = [cell.words, str(len(rows))]
        row += [
            number(scores[key], scores[f"{key}_ci95"]) for key in ("dice_mean", "dice_median", "iou_mean", "iou_median")
        ]
        row.append(
            f"{number(scores['hd95_mean'], digits=1)} ({scores['hd95_patients']})" if scores["hd95_patients"] else ""
        )
        if cell is study.baseline:
            row += ["baseline", "", "", ""]
        else:
            row += [number(change["mean"], change["mean_ci95"], signed=True), f"{test.increased} / {test.decreased}"]
            row += [probability(p), number(test.effect, digits=2, signed=True)]
        row += [mean_of(own, "epoch", 1), mean_of(own, "parameters", 0), mean_of(own, "seconds", 1, 60.0)]
        if published:
            row += [mean_of(own, "soft_batch_iou", 3), number(cell.published, digits=4)]
        out.append(row)
    return header, out


def summarize_scores(rows: list[dict]) -> dict:
    """`scores.summarize`, and the intervals of the medians."""
    out = summarize([row | {"slices": 0, "tumor_slices": 0} for row in rows])
    for name in ("dice", "iou"):
        out[f"{name}_median_ci95"] = median_interval(np.array([row[name] for row in rows]))
    return out


def words(
    study: Study,
    cells: list[Cell],
    patients: dict[str, dict],
    runs: list[dict],
    *,
    unit: str | None = None,
    targets: tuple[str, ...] = (),
) -> list[str]:
    """What a reader must know to read the tables; `unit` is that of distances, `targets` are their names if several."""
    several = len(targets) > 1
    sizes = sorted({(run["train"], run["val"], run["test"]) for run in runs if run["cell"] == study.baseline.name})
    seeds = len({run["seed"] for run in runs})
    out = [
        "3-D scores by patient on the native grid, each of the network that was not trained on the patient; "
        "folds by patient "
        + ", ".join(str(fold) for fold in sorted({run["fold"] for run in runs}))
        + f" of {study.folds}, of "
        + ", ".join(f"{a} / {b} / {c}" for a, b, c in sizes)
        + f" to train / validate / test; {seeds} seed{'s, averaged patient by patient' if seeds > 1 else ''}. "
        "In brackets 95 % bootstrap intervals over patients: BCa for means, percentile for medians.",
        f"Change: against {study.baseline.words}, patient by patient. p: two-sided Wilcoxon signed-rank test, adjusted "
        f"by Holm's method for the {len(cells) - 1} comparisons of {'each' if several else 'the'} table. Effect: "
        "matched-pairs rank-biserial correlation, -1 (all patients worse) to 1 (all better).",
        f"HD95 in {MILLIMETER if unit == MILLIMETER else 'voxels'}, on the patients for whom it is defined: not where "
        "one of the two masks is empty. "
        "Best epoch and minutes: mean over runs; "
        "minutes are wall time on whatever machine ran them.",
    ]
    if several:
        out.append(
            "Mean over the targets: of each patient the mean of the scores of all targets; HD95 counts only where it "
            "is defined for all."
        )
    if any(cell.by_slice for cell in cells):
        out.append("Split by slice: the slices of each patient stand in training, validation and test. Never do that.")
    if any(cell.rescores for cell in cells):
        out.append(
            "Minutes of " + ", ".join(c.words for c in cells if c.rescores) + ": of scoring; nothing was trained."
        )
    if any(cell.published for cell in cells):
        out.append(
            "The published figures are soft IoUs over batches of 32 of another 11 patients, from a training whose "
            "cross-entropy run began with the weights of the Dice run; ours are over batches of our test slices."
        )
    few = [cell.words for cell in cells if len(patients[cell.name]) < len(patients[study.baseline.name])]
    if few:
        out.append(f"Not finished, fewer patients than the baseline: {', '.join(few)}.")
    return out


def number(value: float | None, interval: list | None = None, *, digits: int = 3, signed: bool = False) -> str:
    """A figure in words, with its interval."""
    if value is None:
        return ""
    form = f"{'+' if signed else ''}.{digits}f"
    text = format(value, form)
    return text if interval is None else f"{text} [{interval[0]:{form}}, {interval[1]:{form}}]"


def probability(p: float | None) -> str:
    """A p-value in words."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def mean_of(rows: list[dict], key: str, digits: int, unit: float = 1.0) -> str:
    """The mean of a column in words; a blank where nobody knows."""
    values = [row[key] for row in rows if row[key] is not None]
    return f"{np.mean(values) / unit:,.{digits}f}" if values else ""


def to_markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def to_latex(header: list[str], rows: list[list[str]]) -> str:
    """A table in LaTeX, for `booktabs`."""

    def line(cells: list[str]) -> str:
        return " & ".join(latex(cell) for cell in cells) + r" \\"

    body = [r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}", r"\toprule", line(header), r"\midrule"]
    return "\n".join([*body, *(line(row) for row in rows), r"\bottomrule", r"\end{tabular}"]) + "\n"


def latex(text: str) -> str:
    """Words for LaTeX: what it would take for a command is escaped."""
    for character in "%&_#":
        text = text.replace(character, "\\" + character)
    # A line of a table that begins with a bracket would be taken for an argument of the line before.
    return text.replace("< ", "$<$ ").replace("[", "{[}").replace("]", "{]}")
