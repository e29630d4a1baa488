"""From scores of single cases to scores of a set of patients, and the two files that hold them.

A row holds the scores of one case and one target. Its columns are:

- "patient"; "case" if it has another name than its patient; "target" if there are several targets
- known facts about the patient: "institution", "group", "grade"
- the scores of `volumes.score_volume`

All rows of a table have the same columns. `summarize`, `summarize_groups` and `difference` take rows of one target.
`by_target` calls them for each target and for the mean.
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
# SCORES are averaged over patients, COUNTS are summed; rows may lack some of them.
UNDEFINED = ("hd95", "assd", "volume_error_relative")  # for some patients, see volumes.score_volume
SCORES = ("dice", "iou", "precision", "recall", "surface_dice", *UNDEFINED, "volume_error", "volume_error_absolute")
NAMES = ("patient", "case", "target", "institution", "group", "unit")  # columns of text
VOLUMES = ("volume_true", "volume_predicted")
COUNTS = (*PER_PATIENT_COUNTS, "found_lesions", "missed_lesions", "false_lesions")
QUALITY = (
    "agreement",
    "expected_dice",
    "expected_dice_low",
    "expected_dice_high",
)  # confidence of a mask, see `quality`


def case_name(row: dict) -> str:
    """Returns the unique name of a case: the patient's id if each patient has one case."""
    return row.get("case") or row["patient"]


def targets_of(rows: list[dict]) -> tuple[str, ...]:
    """Returns the target names in the order of the rows; () if there is one target and thus no such column."""
    return tuple(dict.fromkeys(row["target"] for row in rows)) if "target" in rows[0] else ()


def select_target(rows: list[dict], target: str | None) -> list[dict]:
    """Returns the rows of one target; for None, those of `mean_over_targets`."""
    return mean_over_targets(rows) if target is None else [row for row in rows if row["target"] == target]


def mean_over_targets(rows: list[dict]) -> list[dict]:
    """Returns one row per case: the mean of each score over the targets.

    A score is undefined (None) if it is undefined for one target, so all means are over the same targets. Counts of
    slices and lesions have no mean and are omitted. The columns of `QUALITY` are also omitted.
    """
    cases: dict[tuple, list[dict]] = {}
    for row in rows:
        cases.setdefault((row["patient"], row.get("case")), []).append(row)
    return [_mean_of_targets(of_case) for of_case in cases.values()]


def _mean_of_targets(rows: list[dict]) -> dict:
    row = {name: value for name, value in rows[0].items() if name not in ("target", *COUNTS, *QUALITY)}
    for name in (*SCORES, *VOLUMES):
        if name in row:
            values = [target_row[name] for target_row in rows]
            row[name] = None if None in values else float(np.mean(values))
    return row


def by_target(rows: list[dict], summary: Callable[[list[dict]], dict]) -> dict:
    """Applies `summary` to the rows of each target and to their mean.

    Args:
      rows: rows of one or several targets.
      summary: takes rows of one target, such as `summarize`.

    Returns:
      `summary(rows)` for one target, else {"targets": {name: summary}, "mean": summary of `mean_over_targets`}.
    """
    targets = targets_of(rows)
    if len(targets) < 2:
        return summary(rows)
    blocks = {target: summary(select_target(rows, target)) for target in targets}
    return {"targets": blocks, "mean": summary(mean_over_targets(rows))}


def by_patient(rows: list[dict]) -> list[dict]:
    """Returns one row per patient, for rows of one target. Rows without a column "case" are returned unchanged.

    The score of a patient is the mean over the cases for which it is defined; counts are summed. The column "cases"
    holds the number of cases.
    """
    if "case" not in rows[0]:
        return rows
    patients: dict[str, list[dict]] = {}
    for row in rows:
        patients.setdefault(row["patient"], []).append(row)
    return [_mean_of_cases(of_patient) for of_patient in patients.values()]


def _mean_of_cases(rows: list[dict]) -> dict:
    row = {name: value for name, value in rows[0].items() if name not in ("case", *QUALITY)} | {"cases": len(rows)}
    for name in (*SCORES, *VOLUMES):
        if name in row:
            values = [case[name] for case in rows if case[name] is not None]
            row[name] = float(np.mean(values)) if values else None
    return row | {name: sum(case[name] for case in rows) for name in COUNTS if name in row}


def summarize(rows: list[dict]) -> dict:
    """Summarizes a set of patients: scores, and detection of slices and lesions.

    A patient with several cases counts once, see `by_patient`.

    Args:
      rows: one or more rows of one target, all with the same columns.

    Returns:
      patients: number of patients.
      cases: number of cases, if the rows have this column.
      For each score of `SCORES` in the rows: _mean, _median, _std (sample; None for one patient) and _mean_ci95.
      _mean_ci95: (low, high), BCa bootstrap over patients, 10 000 resamples, fixed seed. None for fewer than 3 patients
        or if all values are equal.
      _patients: only for scores that can be undefined, the number of patients with a defined value; the others do not
        count in any value above.
      The sums of the counts of `COUNTS` in the rows, and empty_slices.
    """
    rows = by_patient(rows)
    summary: dict = {"patients": len(rows)}
    if "cases" in rows[0]:
        summary["cases"] = sum(row["cases"] for row in rows)
    for name in SCORES:
        if name not in rows[0]:
            continue
        values = np.array([row[name] for row in rows if row[name] is not None], np.float64)
        summary[f"{name}_mean"] = float(values.mean()) if len(values) else None
        summary[f"{name}_median"] = float(np.median(values)) if len(values) else None
        summary[f"{name}_std"] = float(values.std(ddof=1)) if len(values) > 1 else None
        summary[f"{name}_mean_ci95"] = mean_interval(values)
        if name in UNDEFINED:
            summary[f"{name}_patients"] = len(values)
    summary |= {name: sum(row[name] for row in rows) for name in COUNTS if name in rows[0]}
    if "slices" in rows[0]:
        summary["empty_slices"] = summary["slices"] - summary["tumor_slices"]
    return summary


def summarize_groups(rows: list[dict], *, target: str = "tumor") -> dict[str, dict[str, dict]]:
    """Applies `summarize` by institution or group, by grade (code of data.csv) and by third of the reference volume.

    Args:
      rows: rows of one target; the columns "institution", "group" and "grade" form groups if present.
      target: name of the target if the rows have no column "target"; "" for means over targets.

    Returns:
      kind of group -> name of the group -> summary. Patients of unknown grade (-1) form one group. The thirds divide 3
      or more patients, in order of volume, into parts that are as equal as possible. The volume of a patient with
      several cases is the mean over them.
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
    """Returns the change of a score from one run to another, patient by patient.

    Args:
      first: rows of the first run, of one target.
      other: rows of the other run, with the same patients and cases in the same order.
      name: a score of `SCORES`.

    Returns:
      mean: mean of other minus first, None if undefined for all patients.
      mean_ci95: see `summarize`.
      patients: number of patients with a defined change. The change of a patient with several cases is the mean over
        the cases that are defined in both runs.
    """
    changes: dict[tuple, list[float]] = {}
    for index, (a, b) in enumerate(zip(first, other, strict=True)):
        if a[name] is not None and b[name] is not None:
            patient = (a["patient"],) if "case" in a else (index,)
            changes.setdefault(patient, []).append(b[name] - a[name])
    change = np.array([np.mean(of_patient) for of_patient in changes.values()], np.float64)
    mean = float(change.mean()) if len(change) else None
    return {"mean": mean, "mean_ci95": mean_interval(change), "patients": len(change)}


def differences(first: list[dict], other: list[dict]) -> dict:
    """Returns the `difference` of every score in the rows, by target as in `by_target`."""

    def of_target(a: list[dict], b: list[dict]) -> dict:
        return {name: difference(a, b, name) for name in SCORES if name in a[0]}

    targets = targets_of(first)
    if len(targets) < 2:
        return of_target(first, other)
    blocks = {target: of_target(select_target(first, target), select_target(other, target)) for target in targets}
    return {"targets": blocks, "mean": of_target(mean_over_targets(first), mean_over_targets(other))}


def read_table(path: Path) -> list[dict]:
    """Inverse of `write_table`: numbers are parsed, and a blank is None. Names stay text, for example patient 007.

    Raises:
      InputError: the file cannot be read or has no rows.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = [{name: _value(name, text) for name, text in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as a table ({error}); restore it from a copy") from error
    if not rows:
        raise InputError(f"{path} holds no rows; restore it from a copy")
    return rows


def _value(name: str, text: str) -> float | int | str | None:
    for kind in () if name in NAMES else (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def write_table(path: Path, rows: list[dict]) -> None:
    """Writes rows as CSV, atomically; an undefined score is blank."""

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, write)


def write_json(path: Path, content: dict) -> None:
    """Writes JSON, atomically."""
    write_whole(path, lambda part: part.write_text(json.dumps(content, indent=2) + "\n"))
