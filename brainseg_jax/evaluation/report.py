"""A report for people: one HTML file that fetches nothing, of one run or of several side by side.

The same input gives the same bytes: no date, no path, no random name is in it.
"""

import dataclasses
import json
import subprocess
from importlib import metadata
from pathlib import Path

import jinja2
import numpy as np

import brainseg_jax
from brainseg_jax.evaluation import plots, wording
from brainseg_jax.evaluation.calibration import Calibration
from brainseg_jax.evaluation.case_pictures import Case
from brainseg_jax.evaluation.scores import summarize, summarize_groups
from brainseg_jax.files import write_whole

MAX_RUNS = len(plots.RUNS)


@dataclasses.dataclass(frozen=True)
class Scored:
    """What is reported of one run, or of one folder of masks.

    Attributes:
      name: by which it is told from the others in a report.
      rows: of `volumes.score_volume`, with "patient" and, where known, "institution" and "grade"; one or more.
      facts: what it is made from, label -> words; the labels of all in a report are alike.
      epochs: rows of `metrics.jsonl`; empty where there was no training.
      calibration: None where there are no probabilities.
      threshold: of the probability; None where there are none.
      config: every setting of the run, or None.
      kept: which checkpoint is scored, best or last (`train.keep`).
    """

    name: str
    rows: list[dict]
    facts: dict[str, str]
    epochs: list[dict] = dataclasses.field(default_factory=list)
    calibration: Calibration | None = None
    threshold: float | None = None
    config: dict | None = None
    kept: str = "best"


def write_report(path: Path, runs: list[Scored], cases: list[Case], *, tolerance: float) -> None:
    """Writes the report, all or nothing.

    Args:
      path: of the HTML file.
      runs: one to `MAX_RUNS`, of the same patients in the same order.
      cases: pictures of these patients, with one overlay for each of the runs.
      tolerance: of surface Dice, in the rows' unit.
    """
    worst_first = sorted(range(len(cases)), key=lambda i: (np.mean([run.rows[i]["dice"] for run in runs]), i))
    unit = runs[0].rows[0]["unit"]
    summaries = [summarize(run.rows) for run in runs]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("brainseg_jax.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        names=[run.name for run in runs],
        patients=len(cases),
        facts=[(label, [run.facts[label] for run in runs]) for label in runs[0].facts],
        headlines=wording.headlines(summaries, [run.calibration for run in runs], unit, tolerance),
        plots=_plots(runs, summaries, unit),
        scores=wording.score_table([run.rows for run in runs], summaries, unit, tolerance),
        groups=wording.group_table([summarize_groups(run.rows) for run in runs]),
        rules=wording.rules(unit, calibrated=any(run.calibration for run in runs)),
        columns=wording.patient_columns([run.name for run in runs], runs[0].rows[0], unit),
        rows=[wording.patient_row([run.rows[i] for run in runs]) for i in worst_first],
        cases=[(cases[i], [run.rows[i]["dice"] for run in runs], _first_shown(cases[i])) for i in worst_first],
        data=[_data(cases[i]) for i in worst_first],
        maps=[
            name for name in ("probability", "attention") if any(getattr(o, name) for c in cases for o in c.overlays)
        ],
        has_scan=any(case.flair for case in cases),
        configs=[(run.name, json.dumps(_without_places(run.config), indent=2)) for run in runs if run.config],
        code=code_version(),
    )
    write_whole(path, lambda part: part.write_text(page, encoding="utf-8"))


def code_version() -> str:
    """The last commit that changed this package, where it lies in a checkout; else its version, else "unknown"."""
    git = ["git", "-C", str(Path(brainseg_jax.__file__).parent)]
    try:
        commit, changes = (
            subprocess.run([*git, *command, "--", "."], capture_output=True, text=True, check=True).stdout.strip()
            for command in (["log", "-1", "--format=%h"], ["status", "--porcelain"])
        )
        if commit:  # else another project's checkout
            return f"commit {commit}{' with changes' if changes else ''}"
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        return f"version {metadata.version('brainseg_jax')}"
    except metadata.PackageNotFoundError:
        return "unknown"


def _first_shown(case: Case) -> int:
    """The slice with the most tumor; where there is none, with the most that is predicted."""
    areas = np.array([case.truth.areas, *(overlay.mask.areas for overlay in case.overlays)])
    return int(np.argmax(areas[0] if areas[0].any() else areas.sum(axis=0)))


def _without_places(config: dict) -> dict:
    """The config without the paths of its data on this machine, which are nobody's business."""
    data = config.get("data", {})
    named = {key: Path(data[key]).name for key in ("source", "dir") if Path(data.get(key, "")).is_absolute()}
    return {**config, "data": data | named} if named else config


def _data(case: Case) -> dict:
    return dataclasses.asdict(case) | {"first": _first_shown(case)}


def _plots(runs: list[Scored], summaries: list[dict], unit: str) -> list[tuple[str, str, str]]:
    """Title, explanation and SVG of each plot that the runs have something for."""
    dice = {run.name: {row["patient"]: row["dice"] for row in run.rows} for run in runs}
    intervals = {run.name: summary["dice_mean_ci95"] for run, summary in zip(runs, summaries, strict=True)}
    pairs = {
        run.name: {row["patient"]: (row["volume_true"], row["volume_predicted"]) for row in run.rows} for run in runs
    }
    drawn = [("Dice of the patients", wording.PLOTS["dice"], plots.dice_distribution(dice, intervals))]
    if len(runs) > 1:
        first, *others = dice
        svg = plots.paired((first, dice[first]), {name: dice[name] for name in others}, "3-D Dice")
        drawn.append(("Dice, patient by patient", wording.PLOTS["paired"], svg))
    volume_unit = wording.volume_unit(unit)
    drawn.append(("Volume of the tumor", wording.PLOTS["volumes"], plots.volumes(pairs, volume_unit)))
    calibrations = {run.name: run.calibration for run in runs if run.calibration}
    if calibrations:
        used = {run.name: run.threshold for run in runs}
        drawn.append(
            ("Can the probabilities be believed?", wording.PLOTS["calibration"], plots.reliability(calibrations))
        )
        drawn.append(("Dice against the threshold", wording.PLOTS["thresholds"], plots.thresholds(calibrations, used)))
    epochs = {run.name: run.epochs for run in runs if run.epochs}
    if epochs:
        loss = plots.curves(epochs, {"train_loss": ("training", "-"), "val_loss": ("validation", "--")}, "loss")
        drawn.append(("Training: loss", wording.PLOTS["loss"], loss))
        val = plots.curves(
            epochs, {"val_dice_mean": ("mean", "-"), "val_dice_median": ("median", "--")}, "validation Dice"
        )
        kept = wording.validation([run.kept for run in runs if run.epochs])
        drawn.append(("Training: Dice of the validation patients", kept, val))
    return drawn
