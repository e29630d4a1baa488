"""Writes the scores of a study as tidy CSV files, and from these its tables in Markdown and LaTeX.

With several targets there is one table of the mean over targets and one per target.
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
from brainseg_jax.files import write_whole
from brainseg_jax.runs.trained import read_results
from experiments.by_slice import original_case
from experiments.plots import draw_boxes, draw_differences
from experiments.running import StudyGrid
from experiments.studies import Cell, Study

SCORES, RUNS = "scores.csv", "runs.csv"
WHERE = ("study", "cell", "fold", "seed")
NUMBERS = ("dice", "iou", "precision", "recall", "surface_dice", "hd95", "assd")


def collect(name: str, grid: StudyGrid) -> None:
    """Writes `scores.csv` (one row per finished run, test case and target) and `runs.csv` (one row per finished run).

    A split by slice tests each patient in every fold, on different slices. Dice and IoU of the whole volume are merged
    from the folds. Scores that need neighboring slices stay blank.
    """
    scores, runs, slice_folds = [], [], {}
    for job in grid.jobs:
        if not grid.is_done(job):
            continue
        run, run_columns = grid.run_of(job), {"study": name, "cell": job.cell.name, "fold": job.fold, "seed": job.seed}
        results = read_results(run)
        seconds = json.loads((run / "time.json").read_text())["seconds"] if (run / "time.json").exists() else None
        facts = {key: results[key] for key in ("epoch", "epochs", "parameters")}
        soft = next((v for key, v in results["test"].items() if key.startswith("soft_iou_per_batch_of_")), None)
        runs.append({**run_columns, **facts, "soft_batch_iou": soft, "seconds": seconds, **results["patients"]})
        rows = read_table(run / "per_patient.csv")
        if job.cell.by_slice:
            slice_folds.setdefault((job.cell.name, job.seed), []).append(rows)
        else:
            scores += [run_columns | row for row in rows]
    for (cell, seed), folds in slice_folds.items():
        if len(folds) == len(grid.budget.folds):
            run_columns = {"study": name, "cell": cell, "fold": None, "seed": seed}
            scores += [dict.fromkeys(scores[0]) | run_columns | row for row in merge_folds(folds)] if scores else []
    if not scores:
        raise InputError(f"{grid.output}: no cell is finished yet, so there are no tables; see the logs in logs/")
    columns = list(scores[0])
    write_table(grid.output / SCORES, [{key: row[key] for key in columns} for row in scores])
    write_table(grid.output / RUNS, runs)
    if missing := [job.name for job in grid.jobs if not grid.is_done(job)]:
        logging.warning("the tables leave out %d unfinished runs: %s", len(missing), ", ".join(missing))


def merge_folds(folds: list[list[dict]]) -> list[dict]:
    """Returns Dice and IoU of whole volumes with slices that were tested in several folds.

    Args:
      folds: rows of `per_patient.csv` of each.

    Returns:
      one row per patient and target: patient, group columns, dice, iou, precision, recall, volume_true,
      volume_predicted.
    """
    cases: dict[tuple, list[dict]] = {}
    for row in (row for rows in folds for row in rows):
        cases.setdefault((original_case(row["patient"]), row.get("target")), []).append(row)
    merged = []
    for (case, _), rows in cases.items():
        reference, predicted = (sum(row[key] for row in rows) for key in ("volume_true", "volume_predicted"))
        overlap = sum(0.5 * row["dice"] * (row["volume_true"] + row["volume_predicted"]) for row in rows)
        union = reference + predicted - overlap
        merged.append(
            {key: rows[0][key] for key in ("institution", "group", "grade", "target", "unit") if key in rows[0]}
            | {"patient": case, "volume_true": reference, "volume_predicted": predicted}
            | {
                "dice": overlap / (0.5 * (reference + predicted)) if reference + predicted else 1.0,
                "iou": overlap / union if union else 1.0,
            }
            | {"precision": overlap / predicted if predicted else float(not reference)}
            | {"recall": overlap / reference if reference else 1.0}
        )
    return merged


def average_by_patient(rows: list[dict]) -> dict[str, dict]:
    """Returns each patient's scores for one target, the mean over seeds and cases.

    A score is None if it is undefined in all rows of the patient.
    """
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["patient"], []).append(row)
    averages = {}
    for patient, group in sorted(groups.items()):
        averages[patient] = {"patient": patient}
        for name in NUMBERS:
            values = [row[name] for row in group if row[name] is not None]
            averages[patient][name] = float(np.mean(values)) if values else None
    return averages


def write_tables(study: Study, output: Path) -> None:
    """Writes `table.md`, `table.tex`, `boxes.png` and `differences.png` from the two CSV files; prints the first.

    With several targets the plots show the mean over them. The plots of one target are `boxes_<target>.png` and
    `differences_<target>.png`.

    Raises:
      InputError: a CSV file is missing or damaged.
    """
    scores = read_table(output / SCORES)
    runs = [{"epoch": run.get("best_epoch"), **run} for run in read_table(output / RUNS)]  # older files
    if not any(row["cell"] == study.baseline.name for row in scores):
        raise InputError(f"{output / SCORES}: the baseline {study.baseline.name!r} has no rows; finish it first")
    targets = targets_of(scores)
    parts = [("", scores)]
    if len(targets) > 1:
        parts = [("mean over the targets", _mean_over_targets(scores))]
        parts += [(target, select_target(scores, target)) for target in targets]
    markdown, latex_text, notes = [], [], []
    for title, rows in parts:
        patients = {
            cell.name: average_by_patient([row for row in rows if row["cell"] == cell.name]) for cell in study.cells
        }
        cells = [cell for cell in study.cells if patients[cell.name]]
        header, lines = table(study, cells, patients, runs)
        notes = table_notes(study, cells, patients, runs, unit=scores[0].get("unit"), targets=targets)
        heading = f"### {capital(title)}\n\n" if title else ""
        markdown.append(f"{heading}{to_markdown(header, lines)}\n\n")
        latex_text.append((f"% {title}\n" if title else "") + to_latex(header, lines))
        dice = {cell.label: {p: row["dice"] for p, row in patients[cell.name].items()} for cell in cells}
        suffix = f"_{_file_name(title)}" if title != parts[0][0] else ""
        draw_boxes(output / f"boxes{suffix}.png", dice)
        if len(dice) > 1:
            draw_differences(output / f"differences{suffix}.png", dice)
    text = f"{study.question}\n\n{''.join(markdown)}" + "\n".join(f"- {note}" for note in notes) + "\n"
    (output / "table.md").write_text(text)
    (output / "table.tex").write_text("\n".join([*latex_text, *(f"% {note}" for note in notes)]) + "\n")
    print(text)


def _mean_over_targets(scores: list[dict]) -> list[dict]:
    """Applies `mean_over_targets` to each run separately, since many runs score the same case."""
    runs: dict[tuple, list[dict]] = {}
    for row in scores:
        runs.setdefault(tuple(row[name] for name in WHERE), []).append(row)
    return [row for rows in runs.values() for row in mean_over_targets(rows)]


def _file_name(target: str) -> str:
    """Replaces the characters of a target that a file system may refuse."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", target)


def table(study: Study, cells: list[Cell], patients: dict[str, dict], runs: list[dict]) -> tuple[list, list[list]]:
    """Returns header and rows of the study's table, as text."""
    baseline = patients[study.baseline.name]
    tests, changes = [], []
    for cell in cells:
        common = [p for p in patients[cell.name] if p in baseline] if cell is not study.baseline else []
        first, second = ([rows[p] for p in common] for rows in (baseline, patients[cell.name]))
        changes.append(difference(first, second, "dice"))
        tests.append(compare_pairs(np.array([b["dice"] - a["dice"] for a, b in zip(first, second, strict=True)])))
    adjusted = holm([test.p for test in tests])
    published = any(cell.published for cell in cells)
    header = ["", "patients", "Dice mean", "Dice median", "IoU mean", "IoU median", "HD95 mean (patients)"]
    header += ["Dice, change", "better / worse", "p (Holm)", "effect", "epoch scored", "parameters", "minutes"]
    header += ["soft IoU of batches", "the same, published"] if published else []
    lines = []
    for cell, change, test, p in zip(cells, changes, tests, adjusted, strict=True):
        rows = list(patients[cell.name].values())
        scores = summarize_scores(rows)
        cell_runs = [run for run in runs if run["cell"] == cell.name]
        row = [cell.label, str(len(rows))]
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
        row += [
            mean_of(cell_runs, "epoch", 1),
            mean_of(cell_runs, "parameters", 0),
            mean_of(cell_runs, "seconds", 1, 60.0),
        ]
        if published:
            row += [mean_of(cell_runs, "soft_batch_iou", 3), number(cell.published, digits=4)]
        lines.append(row)
    return header, lines


def summarize_scores(rows: list[dict]) -> dict:
    """Returns `scores.summarize` with intervals of the medians."""
    summary = summarize([row | {"slices": 0, "tumor_slices": 0} for row in rows])
    for name in ("dice", "iou"):
        summary[f"{name}_median_ci95"] = median_interval(np.array([row[name] for row in rows]))
    return summary


def table_notes(
    study: Study,
    cells: list[Cell],
    patients: dict[str, dict],
    runs: list[dict],
    *,
    unit: str | None = None,
    targets: tuple[str, ...] = (),
) -> list[str]:
    """Returns notes on how to read the tables; `unit` is that of distances, `targets` the names if several."""
    several = len(targets) > 1
    sizes = sorted({(run["train"], run["val"], run["test"]) for run in runs if run["cell"] == study.baseline.name})
    seeds = len({run["seed"] for run in runs})
    notes = [
        "3-D scores by patient on the native grid, each from a network that was not trained on this patient; "
        "folds by patient "
        + ", ".join(str(fold) for fold in sorted({run["fold"] for run in runs}))
        + f" of {study.folds}, with "
        + ", ".join(f"{a} / {b} / {c}" for a, b, c in sizes)
        + f" patients to train / validate / test; {seeds} seed{'s, averaged per patient' if seeds > 1 else ''}. "
        "Brackets: 95 % bootstrap intervals over patients, BCa for means, percentile for medians.",
        f"Change: against {study.baseline.label}, patient by patient. p: two-sided Wilcoxon signed-rank test, adjusted "
        f"by Holm's method for the {len(cells) - 1} comparisons of {'each' if several else 'the'} table. Effect: "
        "matched-pairs rank-biserial correlation, -1 (all patients worse) to 1 (all better).",
        f"HD95 in {MILLIMETER if unit == MILLIMETER else 'voxels'}, over the patients with a defined value: it "
        "is undefined if one of the two masks is empty. "
        "Epoch and minutes: mean over runs; "
        "minutes are wall time of the machines that ran them.",
    ]
    if several:
        notes.append(
            "Mean over the targets: for each patient the mean of the scores of all targets; HD95 counts only if it "
            "is defined for all."
        )
    if any(cell.by_slice for cell in cells):
        notes.append("Split by slice: slices of each patient are in training, validation and test. Never do this.")
    if any(cell.rescores for cell in cells):
        notes.append(
            "Minutes of " + ", ".join(c.label for c in cells if c.rescores) + ": scoring only; nothing was trained."
        )
    if any(cell.published for cell in cells):
        notes.append(
            "The published figures are soft IoUs over batches of 32, on another 11 patients. Their cross-entropy run "
            "started from the weights of their Dice run. Ours are over batches of our test slices."
        )
    few = [cell.label for cell in cells if len(patients[cell.name]) < len(patients[study.baseline.name])]
    if few:
        notes.append(f"Not finished, with fewer patients than the baseline: {', '.join(few)}.")
    return notes


def number(value: float | None, interval: list | None = None, *, digits: int = 3, signed: bool = False) -> str:
    """Formats a value with its interval; None becomes empty."""
    if value is None:
        return ""
    form = f"{'+' if signed else ''}.{digits}f"
    text = format(value, form)
    return text if interval is None else f"{text} [{interval[0]:{form}}, {interval[1]:{form}}]"


def probability(p: float | None) -> str:
    """Formats a p-value; None becomes empty."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def mean_of(rows: list[dict], key: str, digits: int, unit: float = 1.0) -> str:
    """Formats the mean of a column divided by `unit`; empty if the column has no values."""
    values = [row[key] for row in rows if row[key] is not None]
    return f"{np.mean(values) / unit:,.{digits}f}" if values else ""


def to_markdown(header: list[str], rows: list[list[str]]) -> str:
    """Formats a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_scores(output: Path, rows: list[dict], markdown: str) -> None:
    """Writes `scores.csv` and `table.md`, and prints the table."""
    output.mkdir(parents=True, exist_ok=True)
    write_table(output / SCORES, rows)
    write_whole(output / "table.md", lambda path: path.write_text(f"{markdown}\n", encoding="utf-8"))
    print(markdown)


def to_latex(header: list[str], rows: list[list[str]]) -> str:
    """Formats a table in LaTeX, for `booktabs`."""

    def line(cells: list[str]) -> str:
        return " & ".join(latex(cell) for cell in cells) + r" \\"

    body = [r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}", r"\toprule", line(header), r"\midrule"]
    return "\n".join([*body, *(line(row) for row in rows), r"\bottomrule", r"\end{tabular}"]) + "\n"


def latex(text: str) -> str:
    """Escapes the characters that LaTeX would read as commands."""
    for character in "%&_#":
        text = text.replace(character, "\\" + character)
    # LaTeX reads a bracket at the start of a row as an argument of the row before.
    return text.replace("< ", "$<$ ").replace("[", "{[}").replace("]", "{]}")
