"""The words and figures of a report: what each score means, and how its values are written."""

from collections.abc import Sequence

from brainseg_jax.evaluation.calibration import BINS
from brainseg_jax.evaluation.scores import difference
from brainseg_jax.evaluation.volumes import MILLIMETER
from brainseg_jax.inference.quality import HIGH, LOW

CHANGE_OF_RUN = "Each dot is a patient. Above the diagonal the run is better than the first one."
BY_TARGET = "Each dot is a patient; the diamonds are the means with their 95 % intervals."
LOSS = "What the training makes small, of the training and of the validation patients."


def plot_words(target: str) -> dict[str, str]:
    """What the plots of a target show."""
    return {
        "dice": "How many patients reached which Dice. Each dot below is a patient; the diamond is the mean with its "
        "95 % interval.",
        "volumes": "Each dot is a patient; on the diagonal the predicted volume is the true one.",
        "calibration": f"Of all voxels of the head with a predicted probability near x, the share that is {target}. On "
        "the diagonal a probability means what it says. Below: how many voxels there are, on a logarithmic scale.",
        "expected": "Each dot is a patient: its Dice against the one expected of its mask without the reference, as "
        "learned from the other patients. On the diagonal they are alike; the bars are the 90 % intervals.",
        "sorted": "The same in order of the expected Dice, lowest first: dots are the Dice, bars the intervals.",
        "risk": "Mean of 1 - Dice over the patients of the highest agreement, by their share of all. Dotted: in order "
        "of the Dice itself, the best possible. A small area under the curve is good.",
        "thresholds": f"Mean Dice if voxels counted as {target} from another probability on, no part taken out. "
        "Dotted: the threshold used.",
    }


def subject(targets: Sequence[str]) -> str:
    """What a report is about, for its first line."""
    if list(targets) == ["tumor"]:
        return "Brain tumor segmentation"
    return (
        f"Segmentation of {', '.join(targets[:-1])} and {targets[-1]}"
        if targets[1:]
        else f"{capital(targets[0])} segmentation"
    )


def capital(text: str) -> str:
    """The text with a capital letter in front; the other letters stay, as in "GD-enhancing"."""
    return text[:1].upper() + text[1:]


_KEPT = {"best": "of the highest mean", "last": "of the last epoch, whatever its Dice,"}


def validation(kept: list[str]) -> str:
    """Which checkpoint the figures are of, for the plot of the validation Dice; `train.keep` of each run."""
    if len(set(kept)) == 1:
        return f"The checkpoint {_KEPT[kept[0]]} is the one that is scored here."
    return "Which checkpoint of each run is scored here stands at the top, under Checkpoint."


def volume_unit(unit: str) -> str:
    """Of the volumes, where distances are in `unit`."""
    return "mL" if unit == MILLIMETER else "voxels"


def score_words(unit: str, tolerance: float, target: str = "tumor") -> dict[str, tuple[str, str]]:
    """Label and meaning, one line, of each score of `scores.SCORES`, for a target."""
    length = unit if unit == MILLIMETER else "voxels"
    volume = volume_unit(unit)
    return {
        "dice": ("3-D Dice", f"overlap of predicted and true {target} over the whole volume: 0 none, 1 the same"),
        "iou": ("IoU", "intersection over union; the same overlap on a stricter scale"),
        "precision": ("Precision", f"share of the predicted voxels that are {target}"),
        "recall": ("Recall", f"share of the {target}'s voxels that are predicted"),
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


def rules(
    unit: str, *, targets: Sequence[str], channel: str, calibrated: bool, rated: bool, several_cases: bool
) -> list[str]:
    """What else must be known to read the figures.

    Args:
      unit: of the rows.
      targets: their names.
      channel: the one that is shown.
      calibrated: whether there are probabilities.
      rated: whether there is a number beside each mask, see `quality`.
      several_cases: whether patients have several cases.
    """
    target = targets[0] if len(targets) == 1 else "target"
    lines = [
        "All scores are of whole volumes, patient by patient, then averaged; never of slices or of all voxels as one.",
        "95 % interval: of the mean, by bootstrap over the patients (BCa, 10 000 resamples); with few patients it is "
        "wide, and it does not cover other hospitals or scanners.",
        "Where true and predicted mask are both empty, a score is that of perfect agreement. Where only one is, "
        "overlap and surface Dice are 0, and a distance is undefined: it is left out of mean and median, and the "
        "column Patients says how many are left. A relative volume error is undefined where there is no "
        f"{target}.",
        "A surface is the voxels of a mask with a face towards the outside. Parts of a mask are connected through "
        "faces, edges or corners.",
        "Distances are in mm and volumes in mL, from the spacing of the voxels."
        if unit == MILLIMETER
        else "The spacing of the voxels is not known: distances count voxels, and a step from slice to slice counts as "
        "one, though slices lie further apart than pixels in most scans. Do not read them as mm.",
    ]
    if rated:
        lines.append(
            f"Agreement: Dice between the masks at probabilities {LOW} and {HIGH}; no reference is needed for it. "
            "Expected Dice: what masks of this agreement had, of the validation and test patients of the run, each "
            "patient left out for its own. It holds for scans like these; an empty mask has neither."
        )
    if len(targets) > 1:
        lines.append(
            "Mean over the targets: of each patient the mean of the scores of all targets; a distance that is "
            "undefined for one target is undefined in the mean too. Intervals are over patients."
        )
    if several_cases:
        lines.append(
            "Where a patient has several cases, the patient's score is the mean over them, so that each patient counts "
            "once in means, medians and intervals."
        )
    if calibrated:
        lines.append(
            f"Expected calibration error: mean over the voxels of the head of the distance between predicted "
            f"probability and share of {target}, in {BINS} bins of equal width. Head: brighter on {channel} than a "
            "fifth of the volume's 99th percentile. Most of its voxels are surely healthy, so the error is small in "
            "any case."
        )
    return lines


def headlines(
    summaries: list[dict], errors: list[float | None], unit: str, tolerance: float, target: str
) -> list[dict[str, object]]:
    """The cards on top: label, meaning and, for each run, a large value and what is said below it.

    Args:
      summaries: of each run; of means over targets they hold no counts.
      errors: the calibration error of each run, None where there are no probabilities.
      unit: of the rows.
      tolerance: of surface Dice.
      target: in words.
    """
    words = score_words(unit, tolerance, target)
    cards = [
        {
            "label": words[name][0],
            "meaning": words[name][1],
            "values": [_headline(name, summary) for summary in summaries],
        }
        for name in ("dice", "surface_dice", "hd95", "volume_error_relative")
    ]
    if "slices" in summaries[0]:
        cards += _counted(summaries, target)
    if any(error is not None for error in errors):
        cards.append(
            {
                "label": "Calibration error",
                "meaning": "how far predicted probabilities are from what is true, in the head",
                "values": [("–" if error is None else f"{error:.4f}", "") for error in errors],
            }
        )
    return cards


def _counted(summaries: list[dict], target: str) -> list[dict[str, object]]:
    """The cards of slices and lesions."""

    def counted(label: str, name: str, of: str, meaning: str) -> dict[str, object]:
        return {"label": label, "meaning": meaning, "values": [(f"{s[name]:,} of {s[of]:,}", "") for s in summaries]}

    lesions = [
        (f"{s['found_lesions']:,} of {s['found_lesions'] + s['missed_lesions']:,}", f"{s['false_lesions']:,} false")
        for s in summaries
    ]
    return [
        counted(
            f"{capital(target)} slices found",
            "found_slices",
            "tumor_slices",
            f"where the prediction meets the {target}",
        ),
        counted(
            "False alarms",
            "false_positive_slices",
            "empty_slices",
            f"slices without {target}, and something is predicted",
        ),
        {
            "label": "Lesions found",
            "meaning": f"connected parts of the true mask that the prediction meets; false ones meet no {target}",
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
    """Every score: label, meaning and cells; five cells of one run, or one of each run and its difference to the first.

    Args:
      rows: of each run.
      summaries: of each run.
      unit: of the rows.
      tolerance: of surface Dice.
      target: in words.
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
    "volume_true": "True volume",
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
_OF_SEVERAL = ("dice", "expected_dice", "surface_dice", "volume_predicted")  # columns of each of several runs
_OF_MEAN = ("dice", "surface_dice", "hd95", "assd")  # columns of means over targets
_OF_PATIENT = ("volume_true", "institution", "group", "grade")  # one column each then
Cell = tuple[str, str | float]  # as written and as sorted by; "" is undefined and comes last


def patient_table(
    names: list[str], rows: list[list[dict]], of_targets: dict[str, list[list[dict]]], unit: str, target: str
) -> tuple[list[str], list[list[Cell]]]:
    """Heads and rows of the table of cases; of several runs a few scores of each.

    Args:
      names: of the runs.
      rows: of each run, of one target or means over targets.
      of_targets: in a table of means, the rows of each target, by run, whose Dice gets a column; else empty.
      unit: of the rows.
      target: in words.
    """
    known = [name for name in ("case", "patient") if name in rows[0][0]]
    # Of one run all scores, of several a few of each; then what is the same for all runs.
    last = [name for name in _OF_PATIENT if name in rows[0][0] and not (of_targets and name == "volume_true")]
    if of_targets:
        scores = list(_OF_MEAN) if len(names) == 1 else ["dice", "surface_dice"]
    elif len(names) == 1:
        scores, last = [name for name in _COLUMNS if name in rows[0][0] and name not in known], []
    else:
        scores = [name for name in _OF_SEVERAL if name in rows[0][0]]
    # Column, head and rows of each column.
    columns = [(name, _head(name, unit, target), rows[0]) for name in known]
    for name in scores:
        for run, own in zip(names, rows, strict=True):
            head = _head(name, unit, target) + (f", {run}" if len(names) > 1 else "")
            columns.append((name, head, own))
        if name == "dice":
            for other, by_run in of_targets.items():
                columns += [
                    (name, f"Dice of {other}" + (f", {run}" if len(names) > 1 else ""), own)
                    for run, own in zip(names, by_run, strict=True)
                ]
    columns += [(name, _head(name, unit, target), rows[0]) for name in last]
    cells = [[_cell(name, own[i][name]) for name, _, own in columns] for i in range(len(rows[0]))]
    return [head for _, head, _ in columns], cells


def _head(name: str, unit: str, target: str) -> str:
    head = _COLUMNS[name].replace("Tumor", capital(target))
    return f"{head}, {volume_unit(unit)}" if name.startswith("volume") else head


def _cell(name: str, value: str | float | None) -> Cell:
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
