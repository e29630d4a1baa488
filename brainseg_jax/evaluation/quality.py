"""How good the number beside each mask is: the risk-coverage curve, and how often the expected Dice holds.

Rows of cases (see `scores`) that were predicted by a network have the columns of `QUALITY`.
"""

import math
from collections.abc import Sequence

import numpy as np

from brainseg_jax.evaluation.scores import QUALITY, case_name
from brainseg_jax.inference.quality import LEAST_PATIENTS, ExpectedDice, Pair, Quality

AGREEMENT, EXPECTED, LOWER, UPPER = QUALITY


def columns(quality: Quality) -> dict[str, float | None]:
    """The columns of a row, None where something is not known."""
    return dict(zip(QUALITY, (quality.agreement, *(quality.expected or (None,) * 3)), strict=True))


def risk_coverage(confidence: Sequence[float | None], dice: Sequence[float]) -> np.ndarray:
    """The risk of the surest cases: the mean of 1 - Dice over them (Geifman and El-Yaniv 2017, arXiv 1705.08500).

    Cases of equal confidence have no order: each has the mean risk of them all, as on average over all orders.

    Args:
      confidence: of each case, larger is surer; None, where it is not known, is less sure than any number.
      dice: of each case, in [0, 1].

    Returns:
      of the 1, 2, ..., n surest cases, [n] float64; their coverage is 1 / n, 2 / n, ..., 1.
    """
    values = np.array([-np.inf if value is None else value for value in confidence], np.float64)
    _, groups = np.unique(-values, return_inverse=True)
    means = np.bincount(groups, weights=1.0 - np.asarray(dice, np.float64)) / np.bincount(groups)
    return np.cumsum(means[np.sort(groups)]) / np.arange(1, len(values) + 1)


def area(confidence: Sequence[float | None], dice: Sequence[float]) -> float:
    """The area under the risk-coverage curve, small is good; the mean risk of all cases where confidence says nothing.

    It is the mean of `risk_coverage`. For segmentation it is recommended by Zenk et al. 2025 (arXiv 2406.03323).
    """
    return float(risk_coverage(confidence, dice).mean())


def dice_at(coverage: float, confidence: Sequence[float | None], dice: Sequence[float]) -> float:
    """Mean Dice of the surest cases.

    Args:
      coverage: share of the cases that are accepted, in (0, 1]; their number is rounded up.
      confidence: see `risk_coverage`.
      dice: see `risk_coverage`.
    """
    count = math.ceil(coverage * len(dice) - 1e-9)
    return float(1.0 - risk_coverage(confidence, dice)[count - 1])


def pairs_of(rows: Sequence[dict], targets: Sequence[str]) -> dict[str, tuple[Pair, ...]]:
    """Agreement and Dice of the cases with a mask, by target.

    Args:
      rows: of cases, with the column `AGREEMENT`.
      targets: names of all; rows of a single one have no column "target".
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
    """The expected Dice, from cases that were not trained on.

    Args:
      rows: see `pairs_of`.
      targets: see `pairs_of`.
      source: which cases these are, in words.

    Returns:
      None where a target has masks of fewer than `LEAST_PATIENTS` patients.
    """
    pairs = pairs_of(rows, targets)
    if any(len({pair.patient for pair in own}) < LEAST_PATIENTS for own in pairs.values()):
        return None
    return ExpectedDice(pairs, source)


def with_expected(rows: list[dict], expected: ExpectedDice | None, targets: Sequence[str]) -> list[dict]:
    """Rows with what is expected of each mask; that of a patient is learned from all others.

    Args:
      rows: see `pairs_of`.
      expected: None leaves the columns blank.
      targets: see `pairs_of`.
    """
    out = []
    for row in rows:
        target = row.get("target", targets[0])
        found = expected and expected(target, row[AGREEMENT], without=row["patient"])
        out.append(row | columns(Quality(row[AGREEMENT], found)))
    return out


def summarize_quality(rows: list[dict]) -> dict:
    """How well the number beside each mask does.

    Args:
      rows: of one target, with the columns `QUALITY`.

    Returns:
      cases; area and area_best, under the risk-coverage curve by agreement and, the least there can be, by the Dice
      itself; dice_at_80, the mean of the surest 80 %; and where there are expected Dice: masks, how many have one,
      covered, how many of these have their Dice within the interval, width, its mean, and error, the mean of the
      distance between Dice and expected Dice.
    """
    dice, sure = ([row[name] for row in rows] for name in ("dice", AGREEMENT))
    out = {"cases": len(rows), "area": area(sure, dice), "area_best": area(dice, dice)}
    out["dice_at_80"] = dice_at(0.8, sure, dice)
    known = [row for row in rows if row[EXPECTED] is not None]
    if not known:
        return out
    return out | {
        "masks": len(known),
        "covered": sum(row[LOWER] <= row["dice"] <= row[UPPER] for row in known),
        "width": float(np.mean([row[UPPER] - row[LOWER] for row in known])),
        "error": float(np.mean([abs(row["dice"] - row[EXPECTED]) for row in known])),
    }


def least_sure(rows: list[dict]) -> list[dict]:
    """The rows, those of the lowest expected Dice, or agreement where there is none, first; empty masks before all."""

    def key(row: dict) -> tuple:
        value = row[AGREEMENT] if row[EXPECTED] is None else row[EXPECTED]
        return (-1.0 if value is None else value, case_name(row))

    return sorted(rows, key=key)
