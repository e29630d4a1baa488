"""From the sums of each patient to the scores of a set of patients, and to the two files that hold them."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from scipy import stats

from brainseg_jax.data.cohort import Cohort
from brainseg_jax.metrics import PatientSums, patient_scores

PER_PATIENT_COUNTS = ("slices", "tumor_slices", "found_slices", "false_positive_slices")


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
    """Scores of a set of patients: mean and median of the patients' 3-D scores, and detection on slices.

    Args:
      rows: of `patient_table`, one or more.

    Returns:
      patients; dice_mean, dice_median, dice_std (sample), dice_mean_ci95 (low, high; BCa bootstrap over patients,
      10 000 resamples, fixed seed; None for fewer than 3 patients); iou, precision and recall, mean and median; and the
      counts tumor_slices, found_slices, empty_slices, false_positive_slices.
    """
    out: dict = {"patients": len(rows)}
    for name in ("dice", "iou", "precision", "recall"):
        values = np.array([row[name] for row in rows])
        out |= {f"{name}_mean": float(values.mean()), f"{name}_median": float(np.median(values))}
    dice = np.array([row["dice"] for row in rows])
    out["dice_std"] = float(dice.std(ddof=1)) if len(dice) > 1 else None
    out["dice_mean_ci95"] = _mean_interval(dice)
    counts = {name: sum(row[name] for row in rows) for name in PER_PATIENT_COUNTS}
    out |= {name: counts[name] for name in ("tumor_slices", "found_slices")}
    out["empty_slices"] = counts["slices"] - counts["tumor_slices"]
    out["false_positive_slices"] = counts["false_positive_slices"]
    return out


def _mean_interval(values: np.ndarray) -> list[float] | None:
    if len(values) < 3 or np.ptp(values) == 0.0:
        return None
    interval = stats.bootstrap((values,), np.mean, n_resamples=10_000, rng=np.random.default_rng(0)).confidence_interval
    return [float(interval.low), float(interval.high)]


def write_table(path: Path, rows: list[dict]) -> None:
    """Writes rows of `patient_table` as CSV, all or nothing."""
    partial = path.with_suffix(".part")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def write_json(path: Path, content: dict) -> None:
    """Writes JSON, all or nothing."""
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)
