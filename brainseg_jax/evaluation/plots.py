"""Plots of a report: SVG for a web page, and files for papers.

Matplotlib writes colors as hexadecimal numbers. The colors defined here are placeholders. `page_svg` replaces each by a
color of the page's style sheet (`templates/report.css`), so the plots also work in dark mode. `save_figure` replaces
them by print colors.
"""

import html
import io
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb, to_rgba_array
from matplotlib.figure import Figure

from brainseg_jax.evaluation.calibration import THRESHOLDS, Calibration
from brainseg_jax.evaluation.quality import AGREEMENT, EXPECTED, LOWER, UPPER, area, lowest_first, risk_coverage
from brainseg_jax.evaluation.scores import case_name

TEXT, LINE = "#010101", "#020202"
RUNS = ("#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04", "#0a0a05", "#0a0a06")
_PAGE_COLORS = {TEXT: "currentColor", LINE: "var(--line)"} | {c: f"var(--run{k})" for k, c in enumerate(RUNS)}
# On white paper: the page's light theme.
_PRINT_COLORS = {TEXT: "#000000", LINE: "#cccccc"} | dict(
    zip(RUNS, ("#b8470a", "#1c5fc0", "#7a3fc0", "#00706a", "#a3143f", "#6b5b00"), strict=True)
)
FORMATS = ("svg", "pdf")  # of `save_figure`
_STYLE: dict[Any, object] = {
    "svg.fonttype": "none",  # text remains text: searchable, in the font of the page
    "svg.hashsalt": "brainseg_jax",  # without it the ids are random
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": LINE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9.0,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
}
_SIZE = (4.4, 3.1)  # inches


def curves(epochs: dict[str, list[dict]], keys: dict[str, tuple[str, str]], label: str) -> Figure:
    """Plots lines by epoch.

    Args:
      epochs: run -> rows of `metrics.jsonl`.
      keys: key of the rows -> label and line style.
      label: label of the vertical axis.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        for color, (name, rows) in zip(RUNS, epochs.items(), strict=False):
            for key, (words, style) in keys.items():
                text = words if len(epochs) == 1 else f"{name}, {words}"
                x, y = [row["epoch"] for row in rows], [row[key] for row in rows]
                axes.plot(x, y, style, color=color, label=text, marker="." if len(x) < 3 else "")
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]  # it is an AutoLocator
        axes.legend()
        return _named(figure, label.replace(" ", "-"))


def dice_distribution(dice: dict[str, dict[str, float]], intervals: dict[str, list[float] | None]) -> Figure:
    """Plots a histogram of the patients' Dice per run: patients as dots below, the mean and its interval above.

    Args:
      dice: run -> patient -> Dice.
      intervals: run -> interval of the mean, or None.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_SIZE[0], max(_SIZE[1], 1.5 * len(dice))), layout="constrained")
        rows = figure.subplots(len(dice), 1, sharex=True, squeeze=False)[:, 0]
        for axes, color, (name, values) in zip(rows, RUNS, dice.items(), strict=False):
            counts, _, _ = axes.hist(list(values.values()), np.linspace(0, 1, 11), color=color, alpha=0.35)
            top = max(counts)
            for patient, value in values.items():
                _mark(axes, value, -0.1 * top, color, patient, f"{patient}: {value:.3f}")
            mean = np.mean(list(values.values()))
            axes.plot(mean, 1.12 * top, "D", color=color, markersize=5)
            if intervals[name]:
                axes.plot(intervals[name], [1.12 * top] * 2, color=color, linewidth=2)
            axes.set(ylim=(-0.2 * top, 1.25 * top), ylabel="patients")
            axes.yaxis.get_major_locator().set_params(integer=True)
            axes.set_yticks([y for y in axes.get_yticks() if 0 <= y <= top])
            if len(dice) > 1:
                axes.set_title(name, loc="left", fontsize=9)
        rows[-1].set(xlabel="3-D Dice", xlim=(-0.02, 1.02))
        return _named(figure, "dice")


def dice_by_target(
    dice: dict[str, dict[str, dict[str, float]]], intervals: dict[str, dict[str, list[float] | None]]
) -> Figure:
    """Plots a row per target and run: the Dice of each patient as a dot, the mean with its interval as a diamond above.

    Args:
      dice: run -> target -> patient -> Dice.
      intervals: run -> target -> interval of the mean, or None.
    """
    targets = list(next(iter(dice.values())))
    step = 0.7 / len(dice)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_SIZE[0], max(_SIZE[1], 0.9 + 0.45 * len(targets) * len(dice))), layout="constrained")
        axes = figure.subplots()
        for r, (color, (name, of_target)) in enumerate(zip(RUNS, dice.items(), strict=False)):
            for t, (target, values) in enumerate(of_target.items()):
                y = -t + 0.35 - step * (r + 0.5)
                for patient, value in values.items():
                    _mark(axes, value, y, color, patient, f"{patient}, {target}: {value:.3f}")
                above = y + 0.3 * step
                axes.plot(np.mean(list(values.values())), above, "D", color=color, markersize=5)
                if interval := intervals[name][target]:
                    axes.plot(interval, [above] * 2, color=color, linewidth=2)
            axes.plot([], [], "o", color=color, label=name, markersize=5)
        axes.set_yticks([-t for t in range(len(targets))], targets)
        axes.set(xlabel="3-D Dice", xlim=(-0.02, 1.02), ylim=(-len(targets) + 0.4, 0.6))
        if len(dice) > 1:
            axes.legend()
        return _named(figure, "targets")


def paired(first: tuple[str, dict[str, float]], others: dict[str, dict[str, float]], label: str) -> Figure:
    """Plots the score of each patient in other runs against the first run, with the diagonal of equal scores."""
    name, reference = first
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=1)
        for color, (other, values) in zip(RUNS[1:], others.items(), strict=False):
            for patient, value in values.items():
                x = reference[patient]
                _mark(axes, x, value, color, patient, f"{patient}: {x:.3f} in {name}, {value:.3f} in {other}")
            axes.plot([], [], "o", color=color, label=other, markersize=5)
        axes.set(xlabel=f"{label}, {name}", ylabel=label, xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axes.legend()
        return _named(figure, "paired")


def expected_dice(rows: dict[str, list[dict]]) -> Figure:
    """Plots the Dice of each case against its expected Dice, with the interval.

    Args:
      rows: run -> rows of cases with the columns of `quality`, all defined.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=1)
        for color, (name, cases) in zip(RUNS, rows.items(), strict=False):
            for row in cases:
                x = row[EXPECTED]
                axes.plot([x, x], [row[LOWER], row[UPPER]], color=color, alpha=0.3, linewidth=1)
                _mark(axes, x, row["dice"], color, row["patient"], _expected_text(row))
            axes.plot([], [], "o", color=color, label=name, markersize=5)
        axes.set(xlabel="expected Dice", ylabel="3-D Dice", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        if len(rows) > 1:
            axes.legend()
        return _named(figure, "expected")


def sorted_by_expected(rows: dict[str, list[dict]]) -> Figure:
    """Plots the cases in order of the expected Dice, lowest first, one row of axes per run; see `expected_dice`."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_SIZE[0], max(_SIZE[1], 1.8 * len(rows))), layout="constrained")
        for axes, color, (name, cases) in zip(
            figure.subplots(len(rows), 1, squeeze=False)[:, 0], RUNS, rows.items(), strict=False
        ):
            for x, row in enumerate(lowest_first(cases), start=1):
                axes.plot([x, x], [row[LOWER], row[UPPER]], color=color, alpha=0.3, linewidth=2)
                axes.plot([x - 0.3, x + 0.3], [row[EXPECTED]] * 2, color=color, linewidth=1)
                _mark(axes, x, row["dice"], color, row["patient"], _expected_text(row))
            axes.set(ylabel="3-D Dice", ylim=(-0.03, 1.03))
            axes.xaxis.get_major_locator().set_params(integer=True)
            if len(rows) > 1:
                axes.set_title(name, loc="left", fontsize=9)
        axes.set(xlabel="cases, lowest expected Dice first")
        return _named(figure, "sorted")


def _expected_text(row: dict) -> str:
    return f"{case_name(row)}: {row['dice']:.3f}, expected {row[EXPECTED]:.3f} ({row[LOWER]:.3f} to {row[UPPER]:.3f})"


def risk(rows: dict[str, list[dict]]) -> Figure:
    """Plots risk-coverage curves by agreement, and dotted by the Dice itself.

    Args:
      rows: run -> rows of cases with the columns of `quality`.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        for color, (name, cases) in zip(RUNS, rows.items(), strict=False):
            dice, confidence = ([row[column] for row in cases] for column in ("dice", AGREEMENT))
            coverage = np.arange(1, len(cases) + 1) / len(cases)
            words = f"area {area(confidence, dice):.3f}, best {area(dice, dice):.3f}"
            marker = "." if len(cases) < 3 else ""
            label = words if len(rows) == 1 else f"{name}, {words}"
            axes.plot(coverage, risk_coverage(confidence, dice), color=color, label=label, marker=marker)
            axes.plot(coverage, risk_coverage(dice, dice), ":", color=color, marker=marker)
        axes.set(
            xlabel="coverage: fraction of the cases, most certain first",
            ylabel="risk: mean of 1 - Dice",
            xlim=(0, 1.02),
        )
        axes.set_ylim(bottom=0)
        axes.legend()
        return _named(figure, "risk")


def volumes(pairs: dict[str, dict[str, tuple[float, float]]], unit: str) -> Figure:
    """Plots the predicted against the reference volume of each patient.

    Args:
      pairs: run -> patient -> (reference, predicted).
      unit: unit of the volumes.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        limit = 1.05 * max((max(pair) for run in pairs.values() for pair in run.values()), default=1.0) or 1.0
        axes.plot([0, limit], [0, limit], color=LINE, linewidth=1)
        for color, (name, patients) in zip(RUNS, pairs.items(), strict=False):
            for patient, (true, predicted) in patients.items():
                words = f"{patient}: {true:,.4g} reference, {predicted:,.4g} predicted ({unit})"
                _mark(axes, true, predicted, color, patient, words)
            axes.plot([], [], "o", color=color, label=name, markersize=5)
        axes.set(xlabel=f"reference volume, {unit}", ylabel=f"predicted volume, {unit}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
            axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,.6g}"))
        if len(pairs) > 1:
            axes.legend()
        return _named(figure, "volumes")


def reliability(calibrations: dict[str, Calibration], target: str) -> Figure:
    """Plots the fraction of the target by predicted probability, and the number of voxels per bin, for each run."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes, counts_axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=1)
        for color, (name, counts) in zip(RUNS, calibrations.items(), strict=False):
            nonempty = counts.voxels > 0
            x, y = (values[nonempty] / counts.voxels[nonempty] for values in (counts.probability, counts.tumor))
            axes.plot(x, y, "o-", color=color, markersize=4, label=name)
            edges = np.linspace(0, 1, len(nonempty) + 1)
            counts_axes.stairs(np.maximum(counts.voxels, 0.5), edges, color=color, baseline=0.5)
        axes.set(ylabel=f"fraction of {target}", ylim=(-0.03, 1.03))
        counts_axes.set(xlabel="predicted probability", ylabel="voxels", yscale="log", xlim=(-0.02, 1.02))
        counts_axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(numticks=4))
        counts_axes.minorticks_off()
        if len(calibrations) > 1:
            axes.legend()
        return _named(figure, "reliability")


def thresholds(calibrations: dict[str, Calibration], used: dict[str, float]) -> Figure:
    """Plots the mean Dice over patients by threshold, and the threshold that each run uses."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        for color, (name, counts) in zip(RUNS, calibrations.items(), strict=False):
            axes.plot(THRESHOLDS, counts.dice.mean(axis=0), color=color, label=name)
            axes.axvline(used[name], color=color, linewidth=1, linestyle=":")
        axes.set(xlabel="threshold of the probability", ylabel="mean 3-D Dice", xlim=(0, 1), ylim=(0, 1))
        if len(calibrations) > 1:
            axes.legend()
        return _named(figure, "thresholds")


def prefixed(svg: str, prefix: str) -> str:
    """Adds a prefix to all ids in the SVG, so that one page can hold the same plot for several targets."""
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    return figure, figure.subplots()


def _mark(axes: Axes, x: float, y: float, color: str, patient: str, words: str) -> None:
    """Draws the dot of a patient; in the page it shows `words`, and a click opens the patient."""
    (dot,) = axes.plot(x, y, "o", color=color, alpha=0.75, markersize=6, markeredgewidth=0)
    dot.set_gid(f"mark|{quote(patient)}|{quote(words)}")  # an id cannot contain blanks or quotation marks


def _named(figure: Figure, name: str) -> Figure:
    figure.set_label(name)
    return figure


def page_svg(figure: Figure) -> str:
    """Returns the SVG element without references to other files, and with ids that are unique in the page."""
    file = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    # The style sheet of the SVG would apply to the whole page.
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for color, replacement in _PAGE_COLORS.items():
        text = text.replace(color, replacement)
    text = re.sub(r'<svg [^>]*viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)

    def mark(match: re.Match) -> str:
        patient, words = (html.escape(unquote(part)) for part in match.groups())
        return f'<g class="mark" data-patient="{patient}"><title>{words}</title>'

    text = re.sub(r'<g id="mark\|([^"|]*)\|([^"]*)">', mark, text)
    return prefixed(text, f"{figure.get_label()}-")


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a plot for a paper, in print colors on white; the same plot gives the same bytes.

    The plot keeps these colors, so `page_svg` comes first. Text stays text.

    Args:
      figure: a plot of this module.
      path: ends in one of `FORMATS`.
    """
    for artist in figure.findobj():
        for kind in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            _recolor(artist, kind)
        artist.set_gid(None)  # identifies a patient to the page
    dates = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"CreationDate": None, "Creator": None}
    with matplotlib.rc_context({**_STYLE, "pdf.fonttype": 42}):
        figure.savefig(path, format=path.suffix[1:], metadata=dates)


def _recolor(artist: Artist, kind: str) -> None:
    """Replaces a placeholder color of an artist by its print color; opacity stays."""
    get, put = getattr(artist, f"get_{kind}", None), getattr(artist, f"set_{kind}", None)
    if get is None or put is None:
        return
    colors = to_rgba_array(get())
    shown = [(*to_rgb(_PRINT_COLORS.get(to_hex(color), to_hex(color))), color[3]) for color in colors]
    if shown and not np.allclose(colors, shown):
        put(shown[0] if len(shown) == 1 else shown)
