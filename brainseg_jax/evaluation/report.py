"""A report as one HTML file without external resources, of one run or of several side by side.

If there are several targets, one control switches the page between their mean and each of them (`views`).

The same input gives the same bytes: the page contains no date, no path and no random id.
"""

import dataclasses
import json
import re
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure

import brainseg_jax
from brainseg_jax.evaluation import plots, wording
from brainseg_jax.evaluation.case_pictures import CasePictures, Outlines, Overlay, target_style
from brainseg_jax.evaluation.quality import AGREEMENT
from brainseg_jax.evaluation.scores import case_name
from brainseg_jax.evaluation.views import Plot, Scored, View, one_view
from brainseg_jax.files import write_whole
from brainseg_jax.scans.description import Description

MAX_RUNS = len(plots.RUNS)


def write_report(path: Path, runs: list[Scored], cases: Sequence[CasePictures], *, tolerance: float) -> None:
    """Writes the report atomically.

    The page is written piece by piece. Memory holds one picture of each case, and all pictures of one case.

    Args:
      path: path of the HTML file.
      runs: one to `MAX_RUNS`, with the same targets and the same cases in the same order.
      cases: pictures of the cases in this order, with one overlay per run; each is read twice.
      tolerance: tolerance of surface Dice, in the unit of the rows.
    """
    description = runs[0].description
    views, training = _views(runs, tolerance)
    order = sorted(range(len(cases)), key=lambda i: (np.mean([dice[i] for dice in views[0].dice]), i))
    for view in views:
        view.rows[:] = [view.rows[i] for i in order]
    names, channel = list(description.names), description.channels[description.shown]
    rows = runs[0].rows
    patient_of = {case_name(row): row["patient"] for row in rows}
    shown = [_first_slice(case) for case in cases]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("brainseg_jax.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").stream(
        names=[run.name for run in runs],
        targets=names,
        word=wording.capital(names[0]),
        styles=[target_style(k) for k in range(len(names))] if len(names) > 1 else [],
        subject=wording.subject(names),
        channel=channel,
        patients=len({row["patient"] for row in rows}),
        several_cases="case" in rows[0],
        searched=" or ".join(["part of a name", *(k for k in ("institution", "group") if k in rows[0])]),
        facts=[(label, [run.facts[label] for run in runs]) for label in runs[0].facts],
        views=views,
        training=training,
        rules=wording.rules(
            rows[0]["unit"],
            targets=names,
            channel=channel,
            calibrated=any(run.calibrations for run in runs),
            rated=AGREEMENT in rows[0],
            several_cases="case" in rows[0],
        ),
        cases=[(shown[i], [[dice[i] for dice in view.dice] for view in views]) for i in order],
        data=((case.name, patient_of[case.name], _data(case)) for case in (cases[i] for i in order)),
        maps=[
            name for name in ("probability", "attention") if any(getattr(o, name) for c in shown for o in c.overlays)
        ],
        step=max(case.step for case in shown),
        has_scan=any(case.scan for case in shown),
        configs=[(run.name, json.dumps(_without_paths(run.config), indent=2)) for run in runs if run.config],
        code=code_version(),
    )
    write_whole(path, lambda part: page.dump(str(part), encoding="utf-8"))


def paper_figures(runs: list[Scored], *, tolerance: float) -> dict[str, Figure]:
    """The plots of the report by file name without ending, for `plots.save_figure`.

    Args:
      runs: see `write_report`.
      tolerance: of surface Dice, in the rows' unit.
    """
    views, training = _views(runs, tolerance)
    titled = [(f"{view.title} {plot.title}", plot.figure) for view in views for plot in view.plots]
    titled += [(plot.title, plot.figure) for plot in training]
    return {re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-"): figure for title, figure in titled}


def _views(runs: list[Scored], tolerance: float) -> tuple[list[View], list[Plot]]:
    """What the page can show, and the plots of the training where the page has several views."""
    description = runs[0].description
    views = [one_view(runs, target, description.names, tolerance) for target in _selectable(description)]
    training = _training_plots(runs)
    if len(views) == 1:
        views[0].plots.extend(training)
        training = []
    return views, training


def _selectable(description: Description) -> list[str | None]:
    """Returns the views of the page: the only target, or the mean over the targets (None) and each target."""
    return [description.names[0]] if len(description.names) == 1 else [None, *description.names]


def code_version() -> str:
    """Returns the last commit that changed this package in a checkout; otherwise the version, or "unknown"."""
    git = ["git", "-C", str(Path(brainseg_jax.__file__).parent)]
    try:
        commit, changes = (
            subprocess.run([*git, *command, "--", "."], capture_output=True, text=True, check=True).stdout.strip()
            for command in (["log", "-1", "--format=%h"], ["status", "--porcelain"])
        )
        if commit:  # empty in the checkout of another project
            return f"commit {commit}{' with changes' if changes else ''}"
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        return f"version {metadata.version('brainseg_jax')}"
    except metadata.PackageNotFoundError:
        return "unknown"


def _first_shown(case: CasePictures) -> int:
    """Returns the slice with the largest area of all targets; without any, that with the largest prediction."""
    true = np.sum([outlines.areas for outlines in case.truth], axis=0)
    predicted = np.sum([outlines.areas for overlay in case.overlays for outlines in overlay.masks], axis=0)
    return int(np.argmax(true if true.any() else predicted))


def _first_slice(case: CasePictures) -> CasePictures:
    """Returns the case with only its first displayed slice."""
    first = _first_shown(case)

    def pick(of_slices: list) -> list:
        return of_slices and [of_slices[first]]

    def pick_masks(masks: list[Outlines]) -> list[Outlines]:
        return [Outlines(pick(one.paths), pick(one.areas)) for one in masks]

    overlays = [
        Overlay(
            pick_masks(one.masks),
            one.probability and [pick(maps) for maps in one.probability],
            one.attention and pick(one.attention),
        )
        for one in case.overlays
    ]
    return dataclasses.replace(
        case,
        numbers=pick(case.numbers),
        scan=case.scan and pick(case.scan),
        truth=pick_masks(case.truth),
        overlays=overlays,
    )


def _without_paths(config: dict) -> dict:
    """Returns the config without absolute paths to the data, which are private."""
    data = config.get("data", {})
    named = {key: Path(data[key]).name for key in ("source", "dir") if Path(data.get(key, "")).is_absolute()}
    return {**config, "data": data | named} if named else config


def _data(case: CasePictures) -> dict:
    return dataclasses.asdict(case) | {"first": _first_shown(case)}


def _training_plots(runs: list[Scored]) -> list[Plot]:
    """Returns the training curves of all trained runs."""
    epochs = {run.name: run.epochs for run in runs if run.epochs}
    if not epochs:
        return []
    loss = plots.curves(epochs, {"train_loss": ("training", "-"), "val_loss": ("validation", "--")}, "loss")
    keys = {"val_dice_mean": ("mean", "-"), "val_dice_median": ("median", "--")}
    kept = wording.validation([run.kept for run in runs if run.epochs])
    return [
        Plot("Training: loss", wording.LOSS, loss),
        Plot("Training: Dice of the validation patients", kept, plots.curves(epochs, keys, "validation Dice")),
    ]
