"""From the rows of each case to the scores of a set of patients, and to the two files that hold them.

A row holds the scores of one case and one target. Its columns: "patient"; "case" where patients have several cases;
"target" where there are several targets; what is known of the patient ("institution", "group", "grade"); the scores of
`volumes.score_volume`. All rows of a table have the same columns. `summarize`, `summarize_groups` and `difference` take
rows of one target; `by_target` calls them for each target and for the mean.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.statistics import mean_interval
from brainseg_jax.files import write_whole

PER_PATIENT_COUNTS = ("slices", "tumor_slices", "found_slices", "false_positive_slices")
# What is averaged over patients, of those that a row has, and what is added up.
UNDEFINED = ("hd95", "assd", "volume_error_relative")  # for some patients: see volumes.score_volume
SCORES = ("dice", "iou", "precision", "recall", "surface_dice", *UNDEFINED, "volume_error", "volume_error_absolute")
NAMES = ("patient", "case", "target", "institution", "group", "unit")  # columns of text
VOLUMES = ("volume_true", "volume_predicted")
COUNTS = (*PER_PATIENT_COUNTS, "found_lesions", "missed_lesions", "false_lesions")
QUALITY = ("agreement", "expected_dice", "expected_dice_low", "expected_dice_high")  # of a mask, see `quality`


def case_name(row: dict) -> str:
    """By which a case is told from all others: the patient's id where each patient has one case."""
    return row.get("case") or row["patient"]


def targets_of(rows: list[dict]) -> tuple[str, ...]:
    """Names of the targets, in the order of the rows; () where the rows are of one target and have no such column."""
    return tuple(dict.fromkeys(row["target"] for row in rows)) if "target" in rows[0] else ()


def select_target(rows: list[dict], target: str | None) -> list[dict]:
    """The rows of one target; None: those of `mean_over_targets`."""
    return mean_over_targets(rows) if target is None else [row for row in rows if row["target"] == target]


def mean_over_targets(rows: list[dict]) -> list[dict]:
    """One row a case: the mean of each score over the targets.

    A score is undefined (None) where it is undefined for one target, so that all means are over the same targets.
    Counts of slices and lesions, which have no mean, are left out, and so is what is known of each mask (`QUALITY`).
    """
    cases: dict[tuple, list[dict]] = {}
    for row in rows:
        cases.setdefault((row["patient"], row.get("case")), []).append(row)
    return [_mean_of_targets(own) for own in cases.values()]


def _mean_of_targets(own: list[dict]) -> dict:
    row = {name: value for name, value in own[0].items() if name not in ("target", *COUNTS, *QUALITY)}
    for name in (*SCORES, *VOLUMES):
        if name in row:
            values = [other[name] for other in own]
            row[name] = None if None in values else float(np.mean(values))
    return row


def by_target(rows: list[dict], of: Callable[[list[dict]], dict]) -> dict:
    """What `of` says of the rows of each target and of their mean.

    Args:
      rows: of one target or of several.
      of: takes rows of one target, as `summarize` does.

    Returns:
      `of(rows)` where there is one target, else {"targets": {name: of its rows}, "mean": of `mean_over_targets`}.
    """
    targets = targets_of(rows)
    if len(targets) < 2:
        return of(rows)
    blocks = {target: of(select_target(rows, target)) for target in targets}
    return {"targets": blocks, "mean": of(mean_over_targets(rows))}


def by_patient(rows: list[dict]) -> list[dict]:
    """One row a patient, for rows of one target; they are returned as they are where they have no column "case".

    A patient's score is the mean over the patient's cases for which it is defined; counts are added up. The column
    "cases" holds how many there are.
    """
    if "case" not in rows[0]:
        return rows
    patients: dict[str, list[dict]] = {}
    for row in rows:
        patients.setdefault(row["patient"], []).append(row)
    return [_of_patient(own) for own in patients.values()]


def _of_patient(own: list[dict]) -> dict:
    row = {name: value for name, value in own[0].items() if name not in ("case", *QUALITY)} | {"cases": len(own)}
    for name in (*SCORES, *VOLUMES):
        if name in row:
            values = [case[name] for case in own if case[name] is not None]
            row[name] = float(np.mean(values)) if values else None
    return row | {name: sum(case[name] for case in own) for name in COUNTS if name in row}


def summarize(rows: list[dict]) -> dict:
    """Scores of a set of patients, and detection on slices and of lesions.

    Args:
      rows: of one target, one or more, all with the same columns.

    Returns:
      patients; cases, where the rows have this column; for each score of `SCORES` that the rows hold: _mean, _median,
      _std (sample; None for one patient), _mean_ci95 (low, high; BCa bootstrap over patients, 10 000 resamples, fixed
      seed; None for fewer than 3 patients or where all are alike), and _patients where the score can be undefined: on
      how many patients it is defined, as the others are in none of its figures; sums of the counts of `COUNTS` that the
      rows hold, and empty_slices. Where patients have several cases a patient counts once, see `by_patient`.
    """
    rows = by_patient(rows)
    out: dict = {"patients": len(rows)}
    if "cases" in rows[0]:
        out["cases"] = sum(row["cases"] for row in rows)
    for name in SCORES:
        if name not in rows[0]:
            continue
        values = np.array([row[name] for row in rows if row[name] is not None], np.float64)
        out[f"{name}_mean"] = float(values.mean()) if len(values) else None
        out[f"{name}_median"] = float(np.median(values)) if len(values) else None
        out[f"{name}_std"] = float(values.std(ddof=1)) if len(values) > 1 else None
        out[f"{name}_mean_ci95"] = mean_interval(values)
        if name in UNDEFINED:
            out[f"{name}_patients"] = len(values)
    out |= {name: sum(row[name] for row in rows) for name in COUNTS if name in rows[0]}
    if "slices" in rows[0]:
        out["empty_slices"] = out["slices"] - out["tumor_slices"]
    return out


def summarize_groups(rows: list[dict], *, target: str = "tumor") -> dict[str, dict[str, dict]]:
    """`summarize` by institution or group, by grade (code of data.csv) and by third of the reference volume.

    Args:
      rows: of one target; the columns "institution", "group" and "grade" make groups where the rows have them.
      target: the name of the target in rows that have no column "target"; "" in means over targets.

    Returns:
      kind of group -> name of the group -> summary. Patients of unknown grade (-1) are one group. Thirds are of these
      patients in order of volume, as equal in number as can be, and only of 3 patients or more. Where patients have
      several cases, the volume is the mean over them.
    """
    rows = by_patient(rows)
    kinds: dict[str, list[tuple[str, dict]]] = {}
    for column in ("institution", "group"):
        if column in rows[0]:
            kinds[column] = [(row[column], row) for row in rows]
    if len(rows) >= 3:
        by_volume = sorted(rows, key=lambda row: (row["volume_true"], row["patient"]))
        thirds = np.array_split(np.arange(len(rows)), 3)
        kinds[f"{rows[0].get('target', target)} size".strip()] = [
            (name, by_volume[i])
            for name, part in zip(("smallest third", "middle third", "largest third"), thirds, strict=True)
            for i in part
        ]
    if "grade" in rows[0]:
        in_order = sorted(rows, key=lambda row: row["grade"] if row["grade"] >= 0 else np.inf)
        kinds["grade"] = [(f"code {row['grade']}" if row["grade"] >= 0 else "unknown", row) for row in in_order]
    return {
        kind: {
            name: summarize([row for n, row in members if n == name]) for name in dict.fromkeys(n for n, _ in members)
        }
        for kind, members in kinds.items()
    }


def difference(first: list[dict], other: list[dict], name: str) -> dict:
    """How a score changes from one run to another, patient by patient.

    Args:
      first: rows of the one, of one target.
      other: of the other, the same patients and cases in the same order.
      name: of `SCORES`.

    Returns:
      mean: of other less first, None where it is undefined for all; mean_ci95: see `summarize`; patients: where it is
      defined in both. Where patients have several cases, a patient's change is the mean over the cases that are
      defined in both.
    """
    changes: dict[tuple, list[float]] = {}
    for index, (a, b) in enumerate(zip(first, other, strict=True)):
        if a[name] is not None and b[name] is not None:
            patient = (a["patient"],) if "case" in a else (index,)
            changes.setdefault(patient, []).append(b[name] - a[name])
    change = np.array([np.mean(own) for own in changes.values()], np.float64)
    mean = float(change.mean()) if len(change) else None
    return {"mean": mean, "mean_ci95": mean_interval(change), "patients": len(change)}


def differences(first: list[dict], other: list[dict]) -> dict:
    """`difference` of every score that the rows hold, by target as in `by_target`; arguments: see `difference`."""

    def of(a: list[dict], b: list[dict]) -> dict:
        return {name: difference(a, b, name) for name in SCORES if name in a[0]}

    targets = targets_of(first)
    if len(targets) < 2:
        return of(first, other)
    blocks = {target: of(select_target(first, target), select_target(other, target)) for target in targets}
    return {"targets": blocks, "mean": of(mean_over_targets(first), mean_over_targets(other))}


def read_table(path: Path) -> list[dict]:
    """The inverse of `write_table`: numbers are numbers again, a blank is None; names stay text, as in patient 007.

    Raises:
      InputError: the file cannot be read or holds no rows.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = [{name: _value(name, text) for name, text in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as a table ({error}); put back a whole copy") from error
    if not rows:
        raise InputError(f"{path} holds no rows; put back a whole copy")
    return rows


def _value(name: str, text: str) -> float | int | str | None:
    for kind in () if name in NAMES else (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def write_table(path: Path, rows: list[dict]) -> None:
    """Writes rows of patients as CSV, all or nothing; an undefined score is a blank."""

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, write)


def write_json(path: Path, content: dict) -> None:
    """Writes JSON, all or nothing."""
    write_whole(path, lambda part: part.write_text(json.dumps(content, indent=2) + "\n"))
