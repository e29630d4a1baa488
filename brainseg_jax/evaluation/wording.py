"""Texts and number formats of a report: the meaning of each score, and how its values are written."""

from collections.abc import Sequence
from typing import Any

from brainseg_jax.evaluation.calibration import BINS
from brainseg_jax.evaluation.scores import difference
from brainseg_jax.evaluation.volumes import MILLIMETER
from brainseg_jax.inference.quality import HIGH, LOW

CHANGE_OF_RUN = "Each dot is a patient. Above the diagonal, the run is better than the first one."
BY_TARGET = "Each dot is a patient. The diamonds are the means with their 95 % intervals."
LOSS = "The loss that the training minimizes, for the training and the validation patients."


def plot_words(target: str) -> dict[str, str]:
    """Returns the explanations of the plots of a target."""
    return {
        "dice": "Number of patients by Dice. Each dot below is a patient; the diamond is the mean with its interval.",
        "volumes": "Each dot is a patient. On the diagonal, the predicted volume equals the reference volume.",
        "calibration": f"The fraction of {target} among the voxels of the head with a predicted probability near x. On "
        "the diagonal, the probabilities are correct. Below: the number of voxels, on a logarithmic scale.",
        "expected": "Each dot is a case. The expected Dice is learned from other patients, without the reference. "
        "On the diagonal, it equals the Dice. The bars are the 90 % intervals.",
        "sorted": "The same, sorted by expected Dice, lowest first. Dots are the Dice, bars the 90 % intervals.",
        "risk": "Mean of 1 - Dice over the cases with the highest agreement, against the fraction of cases kept. "
        "Dotted: the best possible curve, sorted by the Dice itself. A smaller area under the curve is better.",
        "thresholds": f"Mean Dice if all voxels with at least this probability count as {target}; no components are "
        "removed. Dotted: the threshold that is used.",
    }


def subject(targets: Sequence[str]) -> str:
    """Returns the topic of a report, for its first line."""
    if list(targets) == ["tumor"]:
        return "Brain tumor segmentation"
    return (
        f"Segmentation of {', '.join(targets[:-1])} and {targets[-1]}"
        if targets[1:]
        else f"{capital(targets[0])} segmentation"
    )


def capital(text: str) -> str:
    """Capitalizes the first letter; other letters do not change, as in "GD-enhancing"."""
    return text[:1].upper() + text[1:]


_KEPT = {"best": "of the highest mean", "last": "of the last epoch, whatever its Dice,"}


def validation(kept: list[str]) -> str:
    """Which checkpoint the figures are of, for the plot of the validation Dice; `train.keep` of each run."""
    if len(set(kept)) == 1:
        return f"The checkpoint {_KEPT[kept[0]]} is the one that is scored here."
    return "The entry Checkpoint at the top tells which checkpoint of each run is scored here."


def volume_unit(unit: str) -> str:
    """Returns the unit of volumes if distances are in `unit`."""
    return "mL" if unit == MILLIMETER else "voxels"


def score_words(unit: str, tolerance: float, target: str = "tumor") -> dict[str, tuple[str, str]]:
    """Returns label and one-line meaning of each score of `scores.SCORES`, for a target."""
    length = unit if unit == MILLIMETER else "voxels"
    volume = volume_unit(unit)
    return {
        "dice": (
            "3-D Dice",
            f"overlap of predicted and reference {target} over the whole volume: 0 is none, 1 is perfect",
        ),
        "iou": ("IoU", "intersection over union: the same overlap on a stricter scale"),
        "precision": ("Precision", f"fraction of the predicted voxels that are {target}"),
        "recall": ("Recall", f"fraction of the {target}'s voxels that are predicted"),
        "surface_dice": (
            f"Surface Dice at {tolerance:g} {length}",
            f"fraction of both surfaces within {tolerance:g} {length} of the other surface",
        ),
        "hd95": (f"HD95, {length}", "95 % of each surface is within this distance of the other; lower is better"),
        "assd": (f"Mean surface distance, {length}", "mean distance between the two surfaces; lower is better"),
        "volume_error_relative": (
            "Relative volume error, %",
            "predicted minus reference volume, relative to the reference",
        ),
        "volume_error": (
            f"Volume error, {volume}",
            "predicted minus reference volume; positive: too much is predicted",
        ),
        "volume_error_absolute": (f"Absolute volume error, {volume}", "absolute value of the volume error"),
    }


def rules(
    unit: str, *, targets: Sequence[str], channel: str, calibrated: bool, rated: bool, several_cases: bool
) -> list[str]:
    """Returns what a reader must know about the numbers of the report.

    Args:
      unit: unit of the rows.
      targets: names of the targets.
      channel: the displayed channel.
      calibrated: whether there are probabilities.
      rated: whether masks have an agreement, see `quality`.
      several_cases: whether patients have several cases.
    """
    target = targets[0] if len(targets) == 1 else "target"
    lines = [
        "Each score is computed per patient over the whole volume, then averaged over patients; never over slices or "
        "all voxels together.",
        "95 % interval: interval of the mean, by bootstrap over the patients (BCa, 10 000 resamples). With few "
        "patients it is wide. It does not cover other hospitals or scanners.",
        "If reference and prediction are both empty, the scores are those of perfect agreement. If only one is empty, "
        "overlap and surface Dice are 0 and distances are undefined. Undefined values do not count in mean and median; "
        "the column Patients shows how many values count. The relative volume error is undefined without "
        f"{target}.",
        "The surface of a mask is its voxels with a face towards the outside. Connected components touch through "
        "faces, edges or corners.",
        "Distances are in mm and volumes in mL, from the spacing of the voxels."
        if unit == MILLIMETER
        else "The spacing of the voxels is unknown, so distances are in voxels. A step between slices counts 1, "
        "although slices are further apart than pixels in most scans. Do not read them as mm.",
    ]
    if rated:
        lines.append(
            f"Agreement: Dice between the masks at probabilities {LOW} and {HIGH}; it needs no reference. "
            "Expected Dice: the Dice of masks with this agreement. It is learned from the validation and test patients "
            "of the run, without the patient itself. It is valid for similar scans only. An empty mask has neither."
        )
    if len(targets) > 1:
        lines.append(
            "Mean over the targets: for each patient, the mean of the scores of all targets. A distance that is "
            "undefined for one target is undefined in the mean. Intervals are over patients."
        )
    if several_cases:
        lines.append(
            "The score of a patient with several cases is the mean over the cases, so each patient counts once in "
            "means, medians and intervals."
        )
    if calibrated:
        lines.append(
            f"Expected calibration error: mean difference between predicted probability and fraction of {target} over "
            f"the voxels of the head, in {BINS} bins of equal width. Head: brighter on {channel} than a fifth of the "
            "volume's 99th percentile. Most of its voxels are clearly healthy, so the error is always small."
        )
    return lines


def headlines(
    summaries: list[dict], errors: list[float | None], unit: str, tolerance: float, target: str
) -> list[dict[str, object]]:
    """Returns the cards at the top: label, meaning and, for each run, a large value and the text below it.

    Args:
      summaries: one per run; those of means over targets contain no counts.
      errors: calibration error of each run, None without probabilities.
      unit: unit of the rows.
      tolerance: tolerance of surface Dice.
      target: name of the target.
    """
    words = score_words(unit, tolerance, target)
    cards: list[dict[str, object]] = [
        {
            "label": words[name][0],
            "meaning": words[name][1],
            "values": [_headline(name, summary) for summary in summaries],
        }
        for name in ("dice", "surface_dice", "hd95", "volume_error_relative")
    ]
    if "slices" in summaries[0]:
        cards += _count_cards(summaries, target)
    if any(error is not None for error in errors):
        cards.append(
            {
                "label": "Calibration error",
                "meaning": "difference between predicted probabilities and reference, in the head",
                "values": [("–" if error is None else f"{error:.4f}", "") for error in errors],
            }
        )
    return cards


def _count_cards(summaries: list[dict], target: str) -> list[dict[str, object]]:
    """Returns the cards of slices and lesions."""

    def count_card(label: str, name: str, total: str, meaning: str) -> dict[str, object]:
        return {"label": label, "meaning": meaning, "values": [(f"{s[name]:,} of {s[total]:,}", "") for s in summaries]}

    lesions = [
        (f"{s['found_lesions']:,} of {s['found_lesions'] + s['missed_lesions']:,}", f"{s['false_lesions']:,} false")
        for s in summaries
    ]
    return [
        count_card(
            f"{capital(target)} slices found",
            "found_slices",
            "tumor_slices",
            f"slices where prediction and {target} overlap",
        ),
        count_card(
            "False alarms",
            "false_positive_slices",
            "empty_slices",
            f"slices without {target} but with a prediction",
        ),
        {
            "label": "Lesions found",
            "meaning": f"reference components that overlap the prediction; false: predicted, without {target}",
            "values": lesions,
        },
    ]


def _headline(name: str, summary: dict) -> tuple[str, str]:
    interval = summary[f"{name}_mean_ci95"]
    below = f"95 % interval {write(name, interval[0])} to {write(name, interval[1])}; " if interval else ""
    below += f"median {write(name, summary[f'{name}_median'])}"
    defined = summary.get(f"{name}_patients", summary["patients"])
    if defined < summary["patients"]:
        below += f"; defined for {defined} of {summary['patients']} patients"
    return write(name, summary[f"{name}_mean"]), below


def score_table(rows: list[list[dict]], summaries: list[dict], unit: str, tolerance: float, target: str) -> list[dict]:
    """Returns label, meaning and cells of every score.

    One run has five cells. Several runs have one cell each, and a cell for the difference from the first run.

    Args:
      rows: rows of each run.
      summaries: summary of each run.
      unit: unit of the rows.
      tolerance: tolerance of surface Dice.
      target: name of the target.
    """
    table = []
    for name, (label, meaning) in score_words(unit, tolerance, target).items():
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
    """Returns kind of group, name, patients and, for each run, mean Dice with interval and median."""
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
    "case": "Case",
    "patient": "Patient",
    "dice": "Dice",
    "surface_dice": "Surface Dice",
    "expected_dice": "Expected Dice",
    "expected_dice_low": "Expected, from",
    "expected_dice_high": "Expected, to",
    "agreement": "Agreement",
    "hd95": "HD95",
    "assd": "Mean distance",
    "precision": "Precision",
    "recall": "Recall",
    "volume_true": "Reference volume",
    "volume_predicted": "Predicted volume",
    "found_lesions": "Lesions found",
    "missed_lesions": "Lesions missed",
    "false_lesions": "False lesions",
    "tumor_slices": "Tumor slices",
    "found_slices": "Tumor slices found",
    "false_positive_slices": "Empty slices with false alarm",
    "institution": "Institution",
    "group": "Group",
    "grade": "Grade code",
}
_OF_SEVERAL = ("dice", "expected_dice", "surface_dice", "volume_predicted")  # columns of each run if there are several
_OF_MEAN = ("dice", "surface_dice", "hd95", "assd")  # columns of means over targets
_OF_PATIENT = ("volume_true", "institution", "group", "grade")  # one column for all runs
Cell = tuple[str, str | float]  # displayed text and sort key; "" is undefined and sorts last


def case_table(
    names: list[str], rows: list[list[dict]], of_targets: dict[str, list[list[dict]]], unit: str, target: str
) -> tuple[list[str], list[list[Cell]]]:
    """Returns headers and rows of the table of cases; several runs have a few scores each.

    Args:
      names: names of the runs.
      rows: rows of each run, for one target or means over targets.
      of_targets: for a table of means: target -> rows of each run, shown as Dice columns. Otherwise empty.
      unit: unit of the rows.
      target: name of the target.
    """
    identity = [name for name in ("case", "patient") if name in rows[0][0]]
    # One run has all scores, several have a few scores each. Columns that are the same for all runs come last.
    shared = [name for name in _OF_PATIENT if name in rows[0][0] and not (of_targets and name == "volume_true")]
    if of_targets:
        scores = list(_OF_MEAN) if len(names) == 1 else ["dice", "surface_dice"]
    elif len(names) == 1:
        scores, shared = [name for name in _COLUMNS if name in rows[0][0] and name not in identity], []
    else:
        scores = [name for name in _OF_SEVERAL if name in rows[0][0]]
    # name, header and rows of each column
    columns = [(name, _head(name, unit, target), rows[0]) for name in identity]
    for name in scores:
        for run, run_rows in zip(names, rows, strict=True):
            head = _head(name, unit, target) + (f", {run}" if len(names) > 1 else "")
            columns.append((name, head, run_rows))
        if name == "dice":
            for other, by_run in of_targets.items():
                columns += [
                    (name, f"Dice of {other}" + (f", {run}" if len(names) > 1 else ""), run_rows)
                    for run, run_rows in zip(names, by_run, strict=True)
                ]
    columns += [(name, _head(name, unit, target), rows[0]) for name in shared]
    cells = [[_cell(name, run_rows[i][name]) for name, _, run_rows in columns] for i in range(len(rows[0]))]
    return [head for _, head, _ in columns], cells


def _head(name: str, unit: str, target: str) -> str:
    head = _COLUMNS[name].replace("Tumor", capital(target))
    return f"{head}, {volume_unit(unit)}" if name.startswith("volume") else head


def _cell(name: str, value: Any) -> Cell:
    if name == "grade" and value < 0:
        return "–", ""
    return write(name, value), "" if value is None else value


def write(name: str, value: str | float | None, *, sign: bool = False) -> str:
    """Formats a score: fractions with three decimals, distances with one, relative volume errors as whole percents.

    Volumes have one decimal; from 100 on they are integers.
    """
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
