"""What a report shows of one target, or of the mean over several: cards, tables and plots."""

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
    """What is reported of one run, or of one folder of masks.

    Attributes:
      name: by which it is told from the others in a report.
      rows: see `scores`; one or more.
      facts: what it is made from, label -> words; the labels of all in a report are alike.
      epochs: rows of `metrics.jsonl`; empty where there was no training.
      calibrations: of each target, by its name; empty where there are no probabilities.
      thresholds: of the probability of each target, by its name; empty where there are none.
      config: every setting of the run, or None.
      kept: which checkpoint is scored, best or last (`train.keep`).
      description: its targets are scored, and pictures show its channel `Description.shown`.
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
      title: in words.
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
    """What a report shows of one target, or of the mean over all (`wording` tells what the parts hold).

    Attributes:
      title: "" where there is one target.
      headlines: the cards.
      scores: the table of all scores.
      groups: the table of groups of patients.
      plots: those of this target.
      columns: heads of the table of cases.
      rows: of that table, in the order of the runs' rows.
      dice: of each run, of each case.
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
    """Makes a view.

    Args:
      runs: one or more, of the same cases in the same order.
      target: which one; None: the mean over all.
      targets: names of all.
      tolerance: of surface Dice.
    """
    several = len(targets) > 1
    names = [run.name for run in runs]
    rows = [select_target(run.rows, target) if several else run.rows for run in runs]
    words = target or "target"
    unit = rows[0][0]["unit"]
    summaries = [summarize(own) for own in rows]
    groups = wording.group_table([summarize_groups(own, target=target or "") for own in rows])
    drawn = _plots(runs, rows, summaries, target)
    of_targets = {}
    if target is None:
        of_targets = {name: [select_target(run.rows, name) for run in runs] for name in targets}
        by_run = [{name: summarize(own[k]) for name, own in of_targets.items()} for k in range(len(runs))]
        groups = wording.group_table([{"target": of_run} for of_run in by_run]) + groups
        drawn.append(_targets_plot(names, of_targets, by_run))
    if several:
        key = 0 if target is None else 1 + list(targets).index(target)
        drawn = [plot._replace(prefix=f"view{key}-") for plot in drawn]
    columns, table = wording.patient_table(names, rows, of_targets, unit, words)
    return View(
        title="" if not several else target or "Mean over the targets",
        headlines=wording.headlines(summaries, [_error(run, target) for run in runs], unit, tolerance, words),
        scores=wording.score_table(rows, summaries, unit, tolerance, words),
        groups=groups,
        plots=drawn,
        columns=columns,
        rows=table,
        dice=[[row["dice"] for row in own] for own in rows],
    )


def _error(run: Scored, target: str | None) -> float | None:
    """The calibration error of a target, or the mean over all."""
    if not run.calibrations:
        return None
    if target is None:
        return float(np.mean([calibration.error for calibration in run.calibrations.values()]))
    return run.calibrations[target].error


def _targets_plot(names: list[str], rows: dict[str, list[list[dict]]], summaries: list[dict[str, dict]]) -> Plot:
    """Dice of all targets; rows by target and run, summaries by run and target."""
    dice = {
        name: {
            target: {row["patient"]: row["dice"] for row in by_patient(by_run[k])} for target, by_run in rows.items()
        }
        for k, name in enumerate(names)
    }
    intervals = {
        name: {target: summary["dice_mean_ci95"] for target, summary in of_run.items()}
        for name, of_run in zip(names, summaries, strict=True)
    }
    return Plot("Dice by target", wording.BY_TARGET, plots.dice_by_target(dice, intervals))


def _plots(runs: list[Scored], rows: list[list[dict]], summaries: list[dict], target: str | None) -> list[Plot]:
    """The plots that the runs have something for; of means over targets there are no volumes and probabilities."""
    names = [run.name for run in runs]
    words = wording.plot_words(target or "target")
    patients = {name: by_patient(own) for name, own in zip(names, rows, strict=True)}
    dice = {name: {row["patient"]: row["dice"] for row in own} for name, own in patients.items()}
    intervals = {name: summary["dice_mean_ci95"] for name, summary in zip(names, summaries, strict=True)}
    drawn = [Plot("Dice of the patients", words["dice"], plots.dice_distribution(dice, intervals))]
    if len(runs) > 1:
        first, *others = dice
        figure = plots.paired((first, dice[first]), {name: dice[name] for name in others}, "3-D Dice")
        drawn.append(Plot("Dice, patient by patient", wording.CHANGE_OF_RUN, figure))
    if target is None:
        return drawn
    pairs = {
        name: {row["patient"]: (row["volume_true"], row["volume_predicted"]) for row in own}
        for name, own in patients.items()
    }
    figure = plots.volumes(pairs, wording.volume_unit(rows[0][0]["unit"]))
    drawn.append(Plot(f"Volume of the {target}", words["volumes"], figure))
    rated = {name: own for name, own in zip(names, rows, strict=True) if AGREEMENT in own[0]}
    if known := {name: some for name, own in rated.items() if (some := [r for r in own if r[EXPECTED] is not None])}:
        drawn.append(Plot("Dice against the expected Dice", words["expected"], plots.expected_dice(known)))
        drawn.append(Plot("Patients by expected Dice", words["sorted"], plots.sorted_by_expected(known)))
    if rated:
        drawn.append(Plot("Risk and coverage", words["risk"], plots.risk(rated)))
    calibrations = {run.name: run.calibrations[target] for run in runs if run.calibrations}
    if calibrations:
        figure = plots.reliability(calibrations, target)
        drawn.append(Plot("Can the probabilities be believed?", words["calibration"], figure))
        used = {run.name: run.thresholds[target] for run in runs if run.calibrations}
        drawn.append(Plot("Dice against the threshold", words["thresholds"], plots.thresholds(calibrations, used)))
    return drawn
