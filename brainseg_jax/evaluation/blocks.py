"""Blocks of scores for JSON files: one block per target and one for their mean, or a single block for one target."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from brainseg_jax.evaluation.calibration import Calibration, summarize_targets
from brainseg_jax.evaluation.scores import by_target, summarize, summarize_groups


class Blocks(NamedTuple):
    """Each field holds the value of one target, or {"targets": {name: value}, "mean": value} for several.

    Attributes:
      scores: see `scores.summarize`.
      groups: see `scores.summarize_groups`.
      calibration: see `calibration.summarize_targets`; None without probabilities.
    """

    scores: dict
    groups: dict
    calibration: dict | None


def score_blocks(rows: list[dict], calibrations: Mapping[str, Calibration], *, target: str = "tumor") -> Blocks:
    """Summarizes rows of one or several targets.

    Args:
      rows: see `scores`.
      calibrations: target -> calibration, in the order of the targets; empty without probabilities.
      target: name of the target if there is only one.
    """
    several = "target" in rows[0]
    groups = by_target(rows, partial(summarize_groups, target="" if several else target))
    return Blocks(by_target(rows, summarize), groups, summarize_targets(calibrations) if calibrations else None)
