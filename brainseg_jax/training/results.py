"""The end of a run: the kept checkpoint scored once on the test patients, in figures and in pictures."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from brainseg_jax.data.cohort import native_images
from brainseg_jax.errors import StorageError
from brainseg_jax.evaluation.pictures import Slice, draw_curves, draw_panel
from brainseg_jax.evaluation.report import Scored, write_report
from brainseg_jax.evaluation.scores import summarize, summarize_groups, write_json, write_table
from brainseg_jax.evaluation.volumes import TOLERANCE
from brainseg_jax.training.assessment import assess, facts
from brainseg_jax.training.experiment import Experiment, on_first_process
from brainseg_jax.training.journal import read_rows
from brainseg_jax.training.scoring import choose_postprocess, evaluate
from brainseg_jax.training.state import TrainState


def write_results(workdir: Path, experiment: Experiment, kept: TrainState, *, epoch: int, epochs: int) -> dict:
    """Scores the test patients; writes `results.json`, `per_patient.csv`, `report.html`, `curves.png` and the panels.

    Args:
      workdir: the run folder.
      experiment: of the run.
      kept: the state that is scored: of the best validation Dice, or the last (`train.keep`).
      epoch: when that was.
      epochs: trained in all.

    Returns:
      what `results.json` holds.

    Raises:
      StorageError: they cannot be written.
    """
    cohort, split = experiment.cohort, experiment.split
    post = experiment.postprocess
    if experiment.chooses_postprocess:
        post, _ = choose_postprocess(experiment, kept.variables)
    totals, masks = evaluate(experiment, kept.variables, split.test, post)
    # On all processes: the devices predict together.
    rows, calibration, cases = assess(experiment, kept.variables, split.test, masks, tolerance=TOLERANCE)
    pictures = _best_median_worst(experiment, kept, rows, masks)
    test = summarize(rows)
    test["loss"] = float(totals.loss / totals.sums.slices.sum())
    # The figure of the reproduced project, which is no score of a patient: see metrics.soft_batch_iou.
    test[f"soft_iou_per_batch_of_{experiment.eval_batch_size}"] = float(totals.soft_batch_iou / totals.batches)
    parameters = sum(p.size for p in jax.tree.leaves(kept.params))
    results = {
        "test": test,
        "groups": summarize_groups(rows),
        "calibration": calibration.summary(),
        "surface_tolerance": TOLERANCE,
        "postprocess": post._asdict(),
        "kept": experiment.kept,
        "epoch": epoch,
        "step": int(kept.step),
        "epochs": epochs,
        "parameters": parameters,
        "patients": {"train": len(split.train), "val": len(split.val), "test": len(split.test)},
        "train_tumor_fraction": float(cohort.tumor_fraction(split.train)),
        "dataset": {"name": "/".join(experiment.dataset_folder.parts[-3:]), "fingerprint": cohort.fingerprint},
    }

    def write() -> None:
        config, epochs_trained = json.loads((workdir / "config.json").read_text()), read_rows(workdir / "metrics.jsonl")
        told = facts(
            config,
            experiment,
            part="test",
            post=post,
            chose_post=experiment.chooses_postprocess,
            parameters=parameters,
            step=int(kept.step),
        )
        run = Scored(workdir.name, rows, told, epochs_trained, calibration, post.threshold, config, experiment.kept)
        write_table(workdir / "per_patient.csv", rows)
        write_report(workdir / "report.html", [run], cases, tolerance=TOLERANCE)
        draw_curves(workdir / "curves.png", epochs_trained)
        for name, picture in pictures.items():
            draw_panel(workdir / f"panel_{name}.png", [picture])
        write_json(workdir / "results.json", results)  # last: its presence means that the run is whole

    on_first_process("write the results", lambda: _telling_of_disks(workdir, write))
    return results


def _telling_of_disks(workdir: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise StorageError(
            f"the results cannot be written in {workdir} ({error}); make room or writable, then the same command "
            "writes them"
        ) from error


def _best_median_worst(
    experiment: Experiment, state: TrainState, rows: list[dict], masks: np.ndarray
) -> dict[str, Slice]:
    """The slice of largest true tumor of the test patients of best, median and worst Dice."""
    order = sorted(rows, key=lambda row: row["dice"])
    chosen = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    cohort = experiment.cohort
    tested = cohort.slices_of(experiment.split.test)
    slices = []
    for row in chosen.values():
        of_patient = cohort.slices_of((row["patient"],))
        sizes = cohort.native_masks[of_patient].sum(axis=(1, 2, 3), dtype=np.int64)
        slices.append(of_patient[int(np.argmax(sizes))])
    # At the size that is compiled already.
    prediction = experiment.predict(state.variables, np.resize(slices, experiment.eval_batch_size))
    scans = native_images(experiment.dataset_folder, np.array(slices))
    pictures = {}
    for k, (name, row) in enumerate(chosen.items()):
        i = slices[k]
        pictures[name] = Slice(
            title=f"{name} of {len(rows)} test patients: {row['patient']}, slice {cohort.slice_numbers[i]}, "
            f"3-D Dice {row['dice']:.3f}",
            flair=scans[k, ..., 1],
            truth=cohort.native_masks[i, ..., 0] > 0,
            prediction=masks[np.searchsorted(tested, i), ..., 0],
            attention=None if prediction.attention is None else prediction.attention[k, ..., 0],
        )
    return pictures
