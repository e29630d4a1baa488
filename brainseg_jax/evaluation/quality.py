"""Evaluation of the confidence of masks: the risk-coverage curve, and the coverage of the expected Dice.

Rows of cases (see `scores`) that a network predicted have the columns of `QUALITY`.
"""

import math
from collections.abc import Sequence

import numpy as np

from brainseg_jax.evaluation.scores import QUALITY, case_name
from brainseg_jax.inference.quality import MIN_PATIENTS, ExpectedDice, Pair, Quality

AGREEMENT, EXPECTED, LOWER, UPPER = QUALITY


def columns(quality: Quality) -> dict[str, float | None]:
    """Returns the columns of a row; unknown values are None."""
    return dict(zip(QUALITY, (quality.agreement, *(quality.expected or (None,) * 3)), strict=True))


def risk_coverage(confidence: Sequence[float | None], dice: Sequence[float]) -> np.ndarray:
    """Returns the risk of the most certain cases: their mean of 1 - Dice (Geifman and El-Yaniv 2017, arXiv 1705.08500).

    Cases of equal confidence have no order. Each of them has their mean risk, which is the average over all orders.

    Args:
      confidence: one value per case, larger is more certain; None (unknown) is below all numbers.
      dice: one value per case, in [0, 1].

    Returns:
      the risk of the 1, 2, ..., n most certain cases, [n] float64; their coverage is 1 / n, 2 / n, ..., 1.
    """
    values = np.array([-np.inf if value is None else value for value in confidence], np.float64)
    _, groups = np.unique(-values, return_inverse=True)
    means = np.bincount(groups, weights=1.0 - np.asarray(dice, np.float64)) / np.bincount(groups)
    return np.cumsum(means[np.sort(groups)]) / np.arange(1, len(values) + 1)


def area(confidence: Sequence[float | None], dice: Sequence[float]) -> float:
    """Returns the area under the risk-coverage curve (lower is better), as the mean of `risk_coverage`.

    Zenk et al. 2025 (arXiv 2406.03323) recommend it for segmentation. An uninformative confidence gives the mean risk
    of all cases.
    """
    return float(risk_coverage(confidence, dice).mean())


def dice_at(coverage: float, confidence: Sequence[float | None], dice: Sequence[float]) -> float:
    """Returns the mean Dice of the most certain cases.

    Args:
      coverage: fraction of the cases that are accepted, in (0, 1]; the number of cases is rounded up.
      confidence: see `risk_coverage`.
      dice: see `risk_coverage`.
    """
    count = math.ceil(coverage * len(dice) - 1e-9)
    return float(1.0 - risk_coverage(confidence, dice)[count - 1])


def pairs_of(rows: Sequence[dict], targets: Sequence[str]) -> dict[str, tuple[Pair, ...]]:
    """Returns target -> agreement and Dice of the cases with a nonempty mask.

    Args:
      rows: rows of cases with the column `AGREEMENT`.
      targets: names of all targets; rows of a single target have no column "target".
    """
    return {
        target: tuple(
            Pair(row[AGREEMENT], row["dice"], row["patient"])
            for row in rows
            if row[AGREEMENT] is not None and row.get("target", target) == target
        )
        for target in targets
    }


def learn(rows: Sequence[dict], targets: Sequence[str], source: str) -> ExpectedDice | None:
    """Learns the expected Dice from cases that were not used for training.

    Args:
      rows: see `pairs_of`.
      targets: see `pairs_of`.
      source: describes these cases.

    Returns:
      None if a target has nonempty masks of fewer than `MIN_PATIENTS` patients.
    """
    pairs = pairs_of(rows, targets)
    if any(len({pair.patient for pair in of_target}) < MIN_PATIENTS for of_target in pairs.values()):
        return None
    return ExpectedDice(pairs, source)


def with_expected(rows: list[dict], expected: ExpectedDice | None, targets: Sequence[str]) -> list[dict]:
    """Adds the expected Dice to rows; the value of a patient is learned from all other patients.

    Args:
      rows: see `pairs_of`.
      expected: None leaves the columns blank.
      targets: see `pairs_of`.
    """
    result = []
    for row in rows:
        target = row.get("target", targets[0])
        estimate = expected(target, row[AGREEMENT], without=row["patient"]) if expected else None
        result.append(row | columns(Quality(row[AGREEMENT], estimate)))
    return result


def summarize_quality(rows: list[dict]) -> dict:
    """Summarizes how well agreement and expected Dice predict the Dice.

    Args:
      rows: rows of one target with the columns `QUALITY`.

    Returns:
      cases: number of cases.
      area: area under the risk-coverage curve by agreement.
      area_best: area by the Dice itself, the minimum.
      dice_at_80: mean Dice of the most certain 80 %.
      If there are expected Dice, also:
      masks: number of cases with an expected Dice.
      covered: number of them with a Dice within the interval.
      width: mean width of the interval.
      error: mean of |Dice - expected Dice|.
    """
    dice, confidence = ([row[name] for row in rows] for name in ("dice", AGREEMENT))
    out = {"cases": len(rows), "area": area(confidence, dice), "area_best": area(dice, dice)}
    out["dice_at_80"] = dice_at(0.8, confidence, dice)
    estimated = [row for row in rows if row[EXPECTED] is not None]
    if not estimated:
        return out
    return out | {
        "masks": len(estimated),
        "covered": sum(row[LOWER] <= row["dice"] <= row[UPPER] for row in estimated),
        "width": float(np.mean([row[UPPER] - row[LOWER] for row in estimated])),
        "error": float(np.mean([abs(row["dice"] - row[EXPECTED]) for row in estimated])),
    }


def lowest_first(rows: list[dict]) -> list[dict]:
    """Sorts rows by expected Dice (or agreement, if there is none), lowest first; empty masks come before all."""

    def key(row: dict) -> tuple:
        value = row[AGREEMENT] if row[EXPECTED] is None else row[EXPECTED]
        return (-1.0 if value is None else value, case_name(row))

    return sorted(rows, key=key)
