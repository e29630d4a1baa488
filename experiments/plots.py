"""Plots of a study: Dice of the patients under each cell, and differences from the baseline."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from brainseg_jax.evaluation.statistics import mean_interval

matplotlib.use("Agg", force=False)
DOT, LINE = "#1f6fb2", "#d1495b"


def draw_boxes(path: Path, dice: dict[str, dict[str, float]]) -> None:
    """Writes a PNG: for each cell a box of quartiles, one dot per patient, and the mean with its interval.

    Args:
      path: of the PNG.
      dice: by cell, then by patient.
    """
    values = [np.array(list(patients.values())) for patients in dice.values()]
    _draw(path, list(dice), values, "3-D Dice", limits=(-0.02, 1.02), boxes=True)


def draw_differences(path: Path, dice: dict[str, dict[str, float]]) -> None:
    """Writes a PNG: each patient's Dice minus that under the first cell, and the mean difference with its interval.

    Args:
      path: of the PNG.
      dice: by cell, then by patient. Patients that either of the two cells lacks are left out.
    """
    (name, first), *others = dice.items()
    values = [np.array([value - first[p] for p, value in patients.items() if p in first]) for _, patients in others]
    label = f"3-D Dice minus that of: {name}"
    _draw(path, [other for other, _ in others], values, label, limits=(-1.02, 1.02), boxes=False)


def _draw(
    path: Path, names: list[str], values: list[np.ndarray], label: str, *, limits: tuple[float, float], boxes: bool
) -> None:
    figure = Figure(figsize=(8.0, 0.9 + 0.5 * len(names)), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(len(names), 0, -1)
    if boxes:
        axes.boxplot(values, positions=positions, orientation="horizontal", widths=0.6, showfliers=False)
    else:
        axes.axvline(0.0, color="gray", linewidth=1)
    for position, scores in zip(positions, values, strict=True):
        # An offset by rank separates equal values and is the same in every call.
        offset = 0.2 * (np.argsort(np.argsort(scores, kind="stable")) % 5 - 2) / 2
        axes.plot(scores, position + offset, "o", color=DOT, alpha=0.45, markersize=4, markeredgewidth=0)
        if len(scores):
            axes.plot(scores.mean(), position, "D", color=LINE, markersize=6)
        if interval := mean_interval(scores):
            axes.plot(interval, [position, position], color=LINE, linewidth=2)
    axes.set_yticks(positions, names)
    axes.set(xlabel=label, xlim=limits, ylim=(0.4, len(names) + 0.6))
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
