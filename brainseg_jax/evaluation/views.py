"""The content of a report for one target, or for the mean over several: cards, tables and plots."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from brainseg_jax.evaluation import plots, wording
from brainseg_jax.evaluation.calibration import Calibration
from brainseg_jax.evaluation.quality import AGREEMENT, EXPECTED
from brainseg_jax.evaluation.scores import by_patient, select_target, summarize, summarize_groups
from brainseg_jax.scans.description import LGG, Description


@dataclasses.dataclass(frozen=True)
class Scored:
    """The input of a report for one run, or for one folder of masks.

    Attributes:
      name: unique name in the report.
      rows: see `scores`; one or more.
      facts: label -> text, shown at the top; all runs of a report have the same labels.
      epochs: rows of `metrics.jsonl`; empty without training.
      calibrations: target -> calibration; empty without probabilities.
      thresholds: target -> threshold of the probability; empty without probabilities.
      config: all settings of the run, or None.
      kept: the scored checkpoint, best or last (`train.keep`).
      description: names the targets; pictures show its channel `Description.shown`.
    """

    name: str
    rows: list[dict]
    facts: dict[str, str]
    epochs: list[dict] = dataclasses.field(default_factory=list)
    calibrations: Mapping[str, Calibration] = dataclasses.field(default_factory=dict)
    thresholds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    config: dict | None = None
    kept: str = "best"
    description: Description = LGG


class Plot(NamedTuple):
    """A plot of a report.

    Attributes:
      title: title of the plot.
      explanation: how to read it.
      figure: the plot, see `plots`.
      prefix: of all names within the SVG.
    """

    title: str
    explanation: str
    figure: Figure
    prefix: str = ""

    @property
    def svg(self) -> str:
        """The SVG element."""
        return plots.prefixed(plots.page_svg(self.figure), self.prefix)


@dataclasses.dataclass(frozen=True)
class View:
    """The content of a report for one target, or for the mean over all; see `wording` for the format of the fields.

    Attributes:
      title: "" if there is one target.
      headlines: the cards.
      scores: the table of all scores.
      groups: the table of groups of patients.
      plots: plots of this target.
      columns: headers of the table of cases.
      rows: rows of that table, in the order of the rows of the runs.
      dice: run -> case -> Dice, as nested lists.
    """

    title: str
    headlines: list[dict]
    scores: list[dict]
    groups: list[tuple[str, str, int, list[str]]]
    plots: list[Plot]
    columns: list[str]
    rows: list[list[wording.Cell]]
    dice: list[list[float]]


def one_view(runs: list[Scored], target: str | None, targets: Sequence[str], tolerance: float) -> View:
    """Creates a view.

    Args:
      runs: one or more, with the same cases in the same order.
      target: name of the target; None: the mean over all.
      targets: names of all targets.
      tolerance: tolerance of surface Dice.
    """
    several = len(targets) > 1
    names = [run.name for run in runs]
    rows = [select_target(run.rows, target) if several else run.rows for run in runs]
    label = target or "target"
    unit = rows[0][0]["unit"]
    summaries = [summarize(run_rows) for run_rows in rows]
    groups = wording.group_table([summarize_groups(run_rows, target=target or "") for run_rows in rows])
    drawings = _plots(runs, rows, summaries, target)
    target_rows = {}
    if target is None:
        target_rows = {name: [select_target(run.rows, name) for run in runs] for name in targets}
        by_run = [{name: summarize(run_rows[k]) for name, run_rows in target_rows.items()} for k in range(len(runs))]
        groups = wording.group_table([{"target": run_summaries} for run_summaries in by_run]) + groups
        drawings.append(_targets_plot(names, target_rows, by_run))
    if several:
        key = 0 if target is None else 1 + list(targets).index(target)
        drawings = [plot._replace(prefix=f"view{key}-") for plot in drawings]
    columns, table = wording.case_table(names, rows, target_rows, unit, label)
    return View(
        title="" if not several else target or "Mean over the targets",
        headlines=wording.headlines(summaries, [_error(run, target) for run in runs], unit, tolerance, label),
        scores=wording.score_table(rows, summaries, unit, tolerance, label),
        groups=groups,
        plots=drawings,
        columns=columns,
        rows=table,
        dice=[[row["dice"] for row in run_rows] for run_rows in rows],
    )


def _error(run: Scored, target: str | None) -> float | None:
    """Returns the calibration error of a target, or the mean over all."""
    if not run.calibrations:
        return None
    if target is None:
        return float(np.mean([calibration.error for calibration in run.calibrations.values()]))
    return run.calibrations[target].error


def _targets_plot(names: list[str], rows: dict[str, list[list[dict]]], summaries: list[dict[str, dict]]) -> Plot:
    """Plots the Dice of all targets; `rows` by target and run, `summaries` by run and target."""
    dice = {
        name: {
            target: {row["patient"]: row["dice"] for row in by_patient(by_run[k])} for target, by_run in rows.items()
        }
        for k, name in enumerate(names)
    }
    intervals = {
        name: {target: summary["dice_mean_ci95"] for target, summary in run_summaries.items()}
        for name, run_summaries in zip(names, summaries, strict=True)
    }
    return Plot("Dice by target", wording.BY_TARGET, plots.dice_by_target(dice, intervals))


def _plots(runs: list[Scored], rows: list[list[dict]], summaries: list[dict], target: str | None) -> list[Plot]:
    """Creates all plots for which data exist; means over targets have no volumes and probabilities."""
    names = [run.name for run in runs]
    words = wording.plot_words(target or "target")
    patients = {name: by_patient(run_rows) for name, run_rows in zip(names, rows, strict=True)}
    dice = {name: {row["patient"]: row["dice"] for row in run_rows} for name, run_rows in patients.items()}
    intervals = {name: summary["dice_mean_ci95"] for name, summary in zip(names, summaries, strict=True)}
    result = [Plot("Dice of the patients", words["dice"], plots.dice_distribution(dice, intervals))]
    if len(runs) > 1:
        first, *others = dice
        figure = plots.paired((first, dice[first]), {name: dice[name] for name in others}, "3-D Dice")
        result.append(Plot("Dice, patient by patient", wording.CHANGE_OF_RUN, figure))
    if target is None:
        return result
    pairs = {
        name: {row["patient"]: (row["volume_true"], row["volume_predicted"]) for row in run_rows}
        for name, run_rows in patients.items()
    }
    figure = plots.volumes(pairs, wording.volume_unit(rows[0][0]["unit"]))
    result.append(Plot(f"Volume of the {target}", words["volumes"], figure))
    with_agreement = {name: run_rows for name, run_rows in zip(names, rows, strict=True) if AGREEMENT in run_rows[0]}
    if with_expected := {
        name: complete
        for name, run_rows in with_agreement.items()
        if (complete := [r for r in run_rows if r[EXPECTED] is not None])
    }:
        result.append(Plot("Dice against the expected Dice", words["expected"], plots.expected_dice(with_expected)))
        result.append(Plot("Patients by expected Dice", words["sorted"], plots.sorted_by_expected(with_expected)))
    if with_agreement:
        result.append(Plot("Risk and coverage", words["risk"], plots.risk(with_agreement)))
    calibrations = {run.name: run.calibrations[target] for run in runs if run.calibrations}
    if calibrations:
        figure = plots.reliability(calibrations, target)
        result.append(Plot("Are the probabilities reliable?", words["calibration"], figure))
        used = {run.name: run.thresholds[target] for run in runs if run.calibrations}
        result.append(Plot("Dice against the threshold", words["thresholds"], plots.thresholds(calibrations, used)))
    return result
