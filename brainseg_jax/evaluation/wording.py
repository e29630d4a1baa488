"""The words and figures of a report: what each score means, and how its values are written."""

from brainseg_jax.evaluation.calibration import BINS, Calibration
from brainseg_jax.evaluation.scores import difference
from brainseg_jax.evaluation.volumes import MILLIMETER

PLOTS = {
    "dice": "How many patients reached which Dice. Each dot below is a patient; the diamond is the mean with its 95 % "
    "interval.",
    "paired": "Each dot is a patient. Above the diagonal the run is better than the first one.",
    "volumes": "Each dot is a patient; on the diagonal the predicted volume is the true one.",
    "calibration": "Of all voxels of the head with a predicted probability near x, the share that is tumor. On the "
    "diagonal a probability means what it says. Below: how many voxels there are, on a logarithmic scale.",
    "thresholds": "Mean Dice if voxels counted as tumor from another probability on, no part taken out. Dotted: the "
    "threshold used.",
    "loss": "What the training makes small, of the training and of the validation patients.",
}
_KEPT = {"best": "of the highest mean", "last": "of the last epoch, whatever its Dice,"}


def validation(kept: list[str]) -> str:
    """Which checkpoint the figures are of, for the plot of the validation Dice; `train.keep` of each run."""
    if len(set(kept)) == 1:
        return f"The checkpoint {_KEPT[kept[0]]} is the one that is scored here."
    return "Which checkpoint of each run is scored here stands at the top, under Checkpoint."


def volume_unit(unit: str) -> str:
    """Of the volumes, where distances are in `unit`."""
    return "mL" if unit == MILLIMETER else "voxels"


def score_words(unit: str, tolerance: float) -> dict[str, tuple[str, str]]:
    """Label and meaning, one line, of each score of `scores.SCORES`."""
    length = unit if unit == MILLIMETER else "voxels"
    volume = volume_unit(unit)
    return {
        "dice": ("3-D Dice", "overlap of predicted and true tumor over the whole volume: 0 none, 1 the same"),
        "iou": ("IoU", "intersection over union; the same overlap on a stricter scale"),
        "precision": ("Precision", "share of the predicted voxels that are tumor"),
        "recall": ("Recall", "share of the tumor's voxels that are predicted"),
        "surface_dice": (
            f"Surface Dice at {tolerance:g} {length}",
            f"share of both surfaces that lies within {tolerance:g} {length} of the other",
        ),
        "hd95": (f"HD95, {length}", "95 % of each surface lies nearer to the other than this; small is good"),
        "assd": (f"Mean surface distance, {length}", "mean distance between the two surfaces; small is good"),
        "volume_error_relative": ("Relative volume error, %", "predicted less true volume, as a share of the true"),
        "volume_error": (f"Volume error, {volume}", "predicted less true volume; above 0 too much is predicted"),
        "volume_error_absolute": (f"Absolute volume error, {volume}", "the same without its sign"),
    }


def rules(unit: str, *, calibrated: bool) -> list[str]:
    """What else must be known to read the figures."""
    lines = [
        "All scores are of whole volumes, patient by patient, then averaged; never of slices or of all voxels as one.",
        "95 % interval: of the mean, by bootstrap over the patients (BCa, 10 000 resamples); with few patients it is "
        "wide, and it does not cover other hospitals or scanners.",
        "Where true and predicted mask are both empty, a score is that of perfect agreement. Where only one is, "
        "overlap and surface Dice are 0, and a distance is undefined: it is left out of mean and median, and the "
        "column Patients says how many are left. A relative volume error is undefined where there is no tumor.",
        "A surface is the voxels of a mask with a face towards the outside. Parts of a mask are connected through "
        "faces, edges or corners.",
        "Distances are in mm and volumes in mL, from the spacing of the voxels."
        if unit == MILLIMETER
        else "The spacing of the voxels is not known: distances count voxels, and a step from slice to slice counts as "
        "one, though slices lie further apart than pixels in most scans. Do not read them as mm.",
    ]
    if calibrated:
        lines.append(
            f"Expected calibration error: mean over the voxels of the head of the distance between predicted "
            f"probability and share of tumor, in {BINS} bins of equal width. Head: brighter on FLAIR than a fifth of "
            "the volume's 99th percentile. Most of its voxels are surely healthy, so the error is small in any case."
        )
    return lines


def headlines(
    summaries: list[dict], calibrations: list[Calibration | None], unit: str, tolerance: float
) -> list[dict[str, object]]:
    """The cards on top: label, meaning and, for each run, a large value and what is said below it."""
    words = score_words(unit, tolerance)
    cards = [
        {
            "label": words[name][0],
            "meaning": words[name][1],
            "values": [_headline(name, summary) for summary in summaries],
        }
        for name in ("dice", "surface_dice", "hd95", "volume_error_relative")
    ]

    def counted(label: str, name: str, of: str, meaning: str) -> dict[str, object]:
        return {"label": label, "meaning": meaning, "values": [(f"{s[name]:,} of {s[of]:,}", "") for s in summaries]}

    cards += [
        counted("Tumor slices found", "found_slices", "tumor_slices", "where the prediction meets the tumor"),
        counted(
            "False alarms", "false_positive_slices", "empty_slices", "slices without tumor, and something is predicted"
        ),
        {
            "label": "Lesions found",
            "meaning": "connected parts of the true mask that the prediction meets; false ones meet no tumor",
            "values": [
                (
                    f"{s['found_lesions']:,} of {s['found_lesions'] + s['missed_lesions']:,}",
                    f"{s['false_lesions']:,} false",
                )
                for s in summaries
            ],
        },
    ]
    if any(calibrations):
        cards.append(
            {
                "label": "Calibration error",
                "meaning": "how far predicted probabilities are from what is true, in the head",
                "values": [(f"{c.error:.4f}" if c else "–", "") for c in calibrations],
            }
        )
    return cards


def _headline(name: str, summary: dict) -> tuple[str, str]:
    interval = summary[f"{name}_mean_ci95"]
    below = f"95 % interval {write(name, interval[0])} to {write(name, interval[1])}; " if interval else ""
    below += f"median {write(name, summary[f'{name}_median'])}"
    defined = summary.get(f"{name}_patients", summary["patients"])
    if defined < summary["patients"]:
        below += f"; defined for {defined} of {summary['patients']} patients"
    return write(name, summary[f"{name}_mean"]), below


def score_table(rows: list[list[dict]], summaries: list[dict], unit: str, tolerance: float) -> list[dict]:
    """Every score: label, meaning and cells; five cells of one run, or one of each run and its difference to the first.

    Args:
      rows: of each run.
      summaries: of each run.
      unit: of the rows.
      tolerance: of surface Dice.
    """
    table = []
    for name, (label, meaning) in score_words(unit, tolerance).items():
        cells = []
        for k, summary in enumerate(summaries):
            mean = write(name, summary[f"{name}_mean"])
            interval = _interval(name, summary[f"{name}_mean_ci95"])
            rest = [write(name, summary[f"{name}_median"]), write(name, summary[f"{name}_std"]).lstrip("+")]
            defined = f"{summary.get(f'{name}_patients', summary['patients'])}"
            if len(summaries) == 1:
                cells = [mean, interval, *rest, defined]
                break
            cells.append(f"{mean} {interval}".rstrip() + f", median {rest[0]}, {defined} patients")
            if k:
                change = difference(rows[0], rows[k], name)
                interval = _interval(name, change["mean_ci95"], sign=True)
                cells.append(f"{write(name, change['mean'], sign=True)} {interval}")
        table.append({"label": label, "meaning": meaning, "cells": cells})
    return table


def group_table(groups: list[dict[str, dict[str, dict]]]) -> list[tuple[str, str, int, list[str]]]:
    """Kind of group, name, patients and, for each run, mean Dice with interval and median."""
    return [
        (
            kind,
            name,
            summary["patients"],
            [
                f"{write('dice', s['dice_mean'])} {_interval('dice', s['dice_mean_ci95'])}".rstrip()
                + f", median {write('dice', s['dice_median'])}"
                for s in (run[kind][name] for run in groups)
            ],
        )
        for kind, members in groups[0].items()
        for name, summary in members.items()
    ]


_COLUMNS = {
    "dice": "Dice",
    "surface_dice": "Surface Dice",
    "hd95": "HD95",
    "assd": "Mean distance",
    "precision": "Precision",
    "recall": "Recall",
    "volume_true": "True volume",
    "volume_predicted": "Predicted volume",
    "found_lesions": "Lesions found",
    "missed_lesions": "Lesions missed",
    "false_lesions": "False lesions",
    "tumor_slices": "Tumor slices",
    "found_slices": "Tumor slices found",
    "false_positive_slices": "Empty slices with false alarm",
    "institution": "Institution",
    "grade": "Grade code",
}
_OF_SEVERAL = ("dice", "surface_dice", "volume_predicted")  # columns of each run, where there are several
_OF_PATIENT = ("volume_true", "institution", "grade")  # one column each then


def patient_columns(names: list[str], row: dict, unit: str) -> list[str]:
    """Heads of the table of patients, for rows like `row`; of several runs a few scores of each."""
    labels = {name: label for name, label in _COLUMNS.items() if name in row}
    labels |= {name: f"{labels[name]}, {volume_unit(unit)}" for name in ("volume_true", "volume_predicted")}
    if len(names) == 1:
        return ["Patient", *labels.values()]
    heads = [f"{labels[score]}, {name}" for score in _OF_SEVERAL for name in names]
    return ["Patient", *heads, *(labels[name] for name in _OF_PATIENT if name in labels)]


def patient_row(rows: list[dict]) -> list[tuple[str, str | float]]:
    """Cells of one patient in all runs, as written and as sorted by; "" is undefined and comes last."""
    first = rows[0]
    cells = [(first["patient"], first["patient"])]
    if len(rows) == 1:
        return cells + [_cell(name, first[name]) for name in _COLUMNS if name in first]
    cells += [_cell(name, row[name]) for name in _OF_SEVERAL for row in rows]
    return cells + [_cell(name, first[name]) for name in _OF_PATIENT if name in first]


def _cell(name: str, value: str | float | None) -> tuple[str, str | float]:
    if name == "grade" and value < 0:
        return "–", ""
    return write(name, value), "" if value is None else value


def write(name: str, value: str | float | None, *, sign: bool = False) -> str:
    """A score as it is read: shares to three digits, distances to one, volumes to three figures or whole voxels."""
    if value is None:
        return "–"
    if isinstance(value, (str, int)):
        return str(value) if isinstance(value, str) else f"{value:,}"
    plus = "+" if sign or name in ("volume_error", "volume_error_relative") else ""
    if name == "volume_error_relative":
        text = f"{100 * value:{plus}.0f}"
    elif name in ("hd95", "assd"):
        text = f"{value:{plus}.1f}"
    elif name.startswith("volume"):
        text = f"{value:{plus},.0f}" if abs(value) >= 100 else f"{value:{plus}.1f}"
    else:
        text = f"{value:{plus}.3f}"
    return text.replace("-", "−")


def _interval(name: str, ends: list[float] | None, *, sign: bool = False) -> str:
    return f"[{write(name, ends[0], sign=sign)}, {write(name, ends[1], sign=sign)}]" if ends else ""
