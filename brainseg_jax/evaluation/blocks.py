"""What a JSON file holds of the scores: a block a target and their mean, or a single block of one target."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from brainseg_jax.evaluation.calibration import Calibration, summarize_targets
from brainseg_jax.evaluation.scores import by_target, summarize, summarize_groups


class Blocks(NamedTuple):
    """Each is what it is for one target, or {"targets": {name: that}, "mean": that} for several.

    Attributes:
      scores: see `scores.summarize`.
      groups: see `scores.summarize_groups`.
      calibration: see `calibration.summarize_targets`; None where there are no probabilities.
    """

    scores: dict
    groups: dict
    calibration: dict | None


def score_blocks(rows: list[dict], calibrations: Mapping[str, Calibration], *, target: str = "tumor") -> Blocks:
    """Summarizes rows of one target or of several.

    Args:
      rows: see `scores`.
      calibrations: by target, in the order of the targets; empty where there are no probabilities.
      target: its name, where there is one.
    """
    several = "target" in rows[0]
    groups = by_target(rows, partial(summarize_groups, target="" if several else target))
    return Blocks(by_target(rows, summarize), groups, summarize_targets(calibrations) if calibrations else None)
