"""Ends a run: scores its kept checkpoint once on the test patients and writes scores and pictures."""

import json
from collections.abc import Callable
from pathlib import Path

import jax

from brainseg_jax.data.cohort import Cohort
from brainseg_jax.data.splits import PARTS, Split
from brainseg_jax.errors import StorageError
from brainseg_jax.evaluation.assessment import Assessment
from brainseg_jax.evaluation.blocks import score_blocks
from brainseg_jax.evaluation.pictures import PictureSlice, draw_curves, draw_panel
from brainseg_jax.evaluation.quality import learn, summarize_quality, with_expected
from brainseg_jax.evaluation.report import write_report
from brainseg_jax.evaluation.scores import (
    case_name,
    mean_over_targets,
    select_target,
    targets_of,
    write_json,
    write_table,
)
from brainseg_jax.evaluation.views import Scored
from brainseg_jax.evaluation.volumes import TOLERANCE
from brainseg_jax.inference.postprocess import posts_to_json
from brainseg_jax.runs.evaluation import Evaluation
from brainseg_jax.runs.facts import facts
from brainseg_jax.runs.metrics_log import read_rows
from brainseg_jax.runs.processes import on_first_process
from brainseg_jax.runs.trained import EXPECTED_DICE
from brainseg_jax.training.state import TrainState


def write_results(workdir: Path, evaluation: Evaluation, kept: TrainState, *, epoch: int, epochs: int) -> dict:
    """Scores the test cases; writes `results.json`, `per_patient.csv`, `report.html`, `curves.png` and the panels.

    Writes `expected_dice.json` if enough validation and test patients have masks, see `ExpectedDice`.

    Args:
      workdir: run folder.
      evaluation: evaluation of the run.
      kept: state to score: of the best validation Dice, or the last (`train.keep`).
      epoch: epoch of `kept`.
      epochs: number of trained epochs.

    Returns:
      The content of `results.json`.

    Raises:
      StorageError: a file cannot be written.
    """
    cohort, split, assessor = evaluation.cohort, evaluation.split, evaluation.assessor
    network = evaluation.with_variables(kept.variables)
    # All processes run this: their devices predict together.
    posts = assessor.choose(network, split.val) if evaluation.chooses_posts else evaluation.posts
    validation_rows = assessor.agreements(network, split.val, posts)
    assessed = assessor.assess(network, split.test, posts, tolerance=TOLERANCE)
    description = cohort.description
    expected_dice = learn(assessed.rows + validation_rows, description.names, _source(cohort, split))
    rows = with_expected(assessed.rows, expected_dice, description.names)
    blocks = score_blocks(rows, assessed.calibrations, target=description.names[0])
    test = blocks.scores
    if assessor.loss:
        test["loss"] = assessor.loss.loss
        # The reproduced project's metric, which is not a score of a patient: see metrics.soft_batch_iou.
        test[f"soft_iou_per_batch_of_{assessor.runner.batch_size}"] = assessor.loss.soft_iou
    parameters = sum(p.size for p in jax.tree.leaves(kept.params))
    results = {
        "test": test,
        "groups": blocks.groups,
        "calibration": blocks.calibration,
        "expected_dice": _quality(rows + with_expected(validation_rows, expected_dice, description.names)),
        "surface_tolerance": TOLERANCE,
        "postprocess": posts_to_json(posts, description),
        "kept": evaluation.kept,
        "epoch": epoch,
        "step": int(kept.step),
        "epochs": epochs,
        "parameters": parameters,
        "patients": {part: len(cohort.patients_of(getattr(split, part))) for part in PARTS},
        "train_tumor_fraction": float(cohort.target_fractions[cohort.slices_of(split.train)].mean()),
        "dataset": {"name": "/".join(cohort.folder.parts[-3:]), "fingerprint": cohort.fingerprint},
    }
    pictures = _best_median_worst(cohort, assessed)

    def write() -> None:
        config, epochs_trained = json.loads((workdir / "config.json").read_text()), read_rows(workdir / "metrics.jsonl")
        run_facts = facts(
            config,
            evaluation,
            part="test",
            posts=posts,
            chose_posts=evaluation.chooses_posts,
            parameters=parameters,
            step=int(kept.step),
        )
        thresholds = dict(zip(description.names, (post.threshold for post in posts), strict=True))
        run = Scored(
            workdir.name,
            rows,
            run_facts,
            epochs_trained,
            assessed.calibrations,
            thresholds,
            config,
            evaluation.kept,
            description,
        )
        write_table(workdir / "per_patient.csv", rows)
        if expected_dice:
            write_json(workdir / EXPECTED_DICE, expected_dice.to_json())
        else:
            (workdir / EXPECTED_DICE).unlink(missing_ok=True)  # from fewer epochs
        write_report(workdir / "report.html", [run], assessed.cases, tolerance=TOLERANCE)
        draw_curves(workdir / "curves.png", epochs_trained)
        for name, picture in pictures.items():
            draw_panel(workdir / f"panel_{name}.png", [picture], description=description)
        write_json(workdir / "results.json", results)  # last: its presence marks a complete run

    on_first_process("write the results", lambda: _write_or_storage_error(workdir, write))
    return results


def _quality(rows: list[dict]) -> dict:
    """Result of `summarize_quality`: for one target, or by the name of each target."""
    names = targets_of(rows)
    return {name: summarize_quality(select_target(rows, name)) for name in names} if names else summarize_quality(rows)


def _source(cohort: Cohort, split: Split) -> str:
    val, test = (len(cohort.patients_of(part)) for part in (split.val, split.test))
    data = f"{cohort.folder.parts[-3]}, fingerprint {cohort.fingerprint[:12]}"
    return f"{val} validation and {test} test patients of {data}"


def _write_or_storage_error(workdir: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise StorageError(
            f"the results cannot be written in {workdir} ({error}); make room or make the folder "
            "writable, then the same command writes them"
        ) from error


def _best_median_worst(cohort: Cohort, assessed: Assessment) -> dict[str, PictureSlice]:
    """The slice with the largest reference mask of the test patients with best, median and worst Dice."""
    rows = mean_over_targets(assessed.rows) if len(cohort.description.names) > 1 else assessed.rows
    order = sorted(rows, key=lambda row: row["dice"])
    selected = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    cases = "cases" if "case" in rows[0] else "patients"
    pictures = {}
    for name, row in selected.items():
        case = case_name(row)
        (index,) = cohort.indices([case])
        largest = assessed.largest[case]
        truth, prediction = largest.masks
        pictures[name] = PictureSlice(
            title=f"{name} of {len(order)} test {cases}: {case}, slice {cohort.numbers[index][largest.index]}, "
            f"3-D Dice {row['dice']:.3f}",
            scan=largest.scan,
            truth=truth,
            prediction=prediction,
            attention=largest.attention,
        )
    return pictures
