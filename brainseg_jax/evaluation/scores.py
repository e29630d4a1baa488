"""From the sums of each patient to the scores of a set of patients, and to the two files that hold them."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from brainseg_jax.data.cohort import Cohort
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.statistics import mean_interval
from brainseg_jax.files import write_whole
from brainseg_jax.metrics import PatientSums, patient_scores

PER_PATIENT_COUNTS = ("slices", "tumor_slices", "found_slices", "false_positive_slices")
# What is averaged over patients, of those that a row has, and what is added up.
UNDEFINED = ("hd95", "assd", "volume_error_relative")  # for some patients: see volumes.score_volume
SCORES = ("dice", "iou", "precision", "recall", "surface_dice", *UNDEFINED, "volume_error", "volume_error_absolute")
COUNTS = (*PER_PATIENT_COUNTS, "found_lesions", "missed_lesions", "false_lesions")


def padded_batches(indices: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of one size, the last one padded, so that each slice counts once and one compiled step serves all.

    Args:
      indices: [M] int, M > 0.
      batch_size: B.

    Yields:
      (indices [B] int32, valid [B] bool); padding repeats the last index and is not valid.
    """
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        padding = batch_size - len(batch)
        yield np.pad(batch, (0, padding), mode="edge").astype(np.int32), np.arange(batch_size) < len(batch)


def add_up(eval_batch: Callable, indices: np.ndarray, batch_size: int) -> tuple:
    """Sums what `eval_batch(indices, valid)` gives, a pytree of additive counts, over all slices.

    The sum is made on the host in 64-bit, so that it does not depend on how many batches there were.
    """
    totals = None
    for batch, valid in padded_batches(indices, batch_size):
        part = jax.tree.map(lambda x: np.asarray(x).astype(np.float64), eval_batch(batch, valid))
        totals = part if totals is None else jax.tree.map(np.add, totals, part)
    return totals


def patient_table(cohort: Cohort, sums: PatientSums, patients: tuple[str, ...]) -> list[dict]:
    """One row a patient, in the order of `patients`: id, institution, 3-D scores and counts of slices.

    Args:
      cohort: gives institutions and the order of the sums.
      sums: of [P], P patients of the cohort.
      patients: whose rows are wanted.

    Returns:
      rows for `per_patient.csv`.
    """
    scores = patient_scores(sums)
    rows = []
    for patient in patients:
        i = cohort.patients.index(patient)
        row = {"patient": patient, "institution": cohort.institutions[i]}
        row |= {name: float(values[i]) for name, values in scores.items()}
        rows.append(row | {name: int(getattr(sums, name)[i]) for name in PER_PATIENT_COUNTS})
    return rows


def summarize(rows: list[dict]) -> dict:
    """Scores of a set of patients, and detection on slices and of lesions.

    Args:
      rows: of `patient_table` or `volumes.score_volume`, one or more, all with the same columns.

    Returns:
      patients; for each score of `SCORES` that the rows hold: _mean, _median, _std (sample; None for one patient),
      _mean_ci95 (low, high; BCa bootstrap over patients, 10 000 resamples, fixed seed; None for fewer than 3 patients
      or where all are alike), and _patients where the score can be undefined: on how many patients it is defined, as
      the others are in none of its figures; sums of the counts of `COUNTS` that the rows hold, and empty_slices.
    """
    out: dict = {"patients": len(rows)}
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
    out["empty_slices"] = out["slices"] - out["tumor_slices"]
    return out


def summarize_groups(rows: list[dict]) -> dict[str, dict[str, dict]]:
    """`summarize` by institution, by grade (code of data.csv) and by third of the true tumor volume.

    Args:
      rows: of patients; those of "institution" and "grade" make groups where they stand in the rows.

    Returns:
      kind of group -> name of the group -> summary. Patients of unknown grade (-1) are one group. Thirds are of these
      patients in order of volume, as equal in number as can be, and only of 3 patients or more.
    """
    kinds: dict[str, list[tuple[str, dict]]] = {}
    if "institution" in rows[0]:
        kinds["institution"] = [(row["institution"], row) for row in rows]
    if len(rows) >= 3:
        by_volume = sorted(rows, key=lambda row: (row["volume_true"], row["patient"]))
        thirds = np.array_split(np.arange(len(rows)), 3)
        kinds["tumor size"] = [
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
      first: rows of the one.
      other: of the other, the same patients in the same order.
      name: of `SCORES`.

    Returns:
      mean: of other less first, None where it is undefined for all; mean_ci95: see `summarize`; patients: where it is
      defined in both.
    """
    pairs = [(a[name], b[name]) for a, b in zip(first, other, strict=True)]
    change = np.array([b - a for a, b in pairs if a is not None and b is not None], np.float64)
    mean = float(change.mean()) if len(change) else None
    return {"mean": mean, "mean_ci95": mean_interval(change), "patients": len(change)}


def read_table(path: Path) -> list[dict]:
    """The inverse of `write_table`: numbers are numbers again, a blank is None.

    Raises:
      InputError: the file cannot be read or holds no rows.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as a table ({error}); put back a whole copy") from error
    if not rows:
        raise InputError(f"{path} holds no rows; put back a whole copy")
    return rows


def _value(text: str) -> float | int | str | None:
    for kind in (int, float):
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
