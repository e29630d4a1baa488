"""Plots of a study: the patients' Dice under each cell, and how far each patient moves from the baseline."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from brainseg_jax.evaluation.statistics import mean_interval

matplotlib.use("Agg", force=False)
DOT, LINE = "#1f6fb2", "#d1495b"


def draw_boxes(path: Path, dice: dict[str, dict[str, float]]) -> None:
    """Writes a PNG: a box of quartiles for each cell, each patient a dot, the mean a diamond with its interval.

    Args:
      path: of the PNG.
      dice: by cell, of each patient.
    """
    values = [np.array(list(patients.values())) for patients in dice.values()]
    _draw(path, list(dice), values, "3-D Dice", limits=(-0.02, 1.02), boxes=True)


def draw_differences(path: Path, dice: dict[str, dict[str, float]]) -> None:
    """Writes a PNG: each patient's Dice less that under the first cell, a dot; the mean with its interval.

    Args:
      path: of the PNG.
      dice: by cell, of each patient; patients that one of two cells lacks are left out.
    """
    (name, first), *others = dice.items()
    values = [np.array([value - first[p] for p, value in patients.items() if p in first]) for _, patients in others]
    label = f"3-D Dice less that of: {name}"
    _draw(path, [other for other, _ in others], values, label, limits=(-1.02, 1.02), boxes=False)


def _draw(
    path: Path, names: list[str], values: list[np.ndarray], label: str, *, limits: tuple[float, float], boxes: bool
) -> None:
    figure = Figure(figsize=(8.0, 0.9 + 0.5 * len(names)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(names), 0, -1)
    if boxes:
        axes.boxplot(values, positions=places, orientation="horizontal", widths=0.6, showfliers=False)
    else:
        axes.axvline(0.0, color="gray", linewidth=1)
    for place, own in zip(places, values, strict=True):
        # Spread by rank, so that equal dots stand beside one another and the picture is the same each time.
        offset = 0.2 * (np.argsort(np.argsort(own, kind="stable")) % 5 - 2) / 2
        axes.plot(own, place + offset, "o", color=DOT, alpha=0.45, markersize=4, markeredgewidth=0)
        if len(own):
            axes.plot(own.mean(), place, "D", color=LINE, markersize=6)
        if interval := mean_interval(own):
            axes.plot(interval, [place, place], color=LINE, linewidth=2)
    axes.set_yticks(places, names)
    axes.set(xlabel=label, xlim=limits, ylim=(0.4, len(names) + 0.6))
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
