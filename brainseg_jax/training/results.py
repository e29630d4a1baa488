"""The end of a run: the best checkpoint scored once on the test patients, in figures and in pictures."""

from pathlib import Path

import jax
import numpy as np

from brainseg_jax.data.cohort import native_image
from brainseg_jax.evaluation.pictures import Slice, draw_curves, draw_panel
from brainseg_jax.evaluation.scores import patient_table, summarize, write_json, write_table
from brainseg_jax.training.experiment import Experiment
from brainseg_jax.training.journal import read_rows
from brainseg_jax.training.scoring import choose_postprocess, evaluate
from brainseg_jax.training.state import TrainState


def write_results(workdir: Path, experiment: Experiment, best: TrainState, *, best_epoch: int, epochs: int) -> dict:
    """Scores the test patients and writes `results.json`, `per_patient.csv`, `curves.png` and the panels.

    Args:
      workdir: the run folder.
      experiment: of the run.
      best: the state of the best validation Dice.
      best_epoch: when that was.
      epochs: trained in all.

    Returns:
      what `results.json` holds.
    """
    cohort, split = experiment.cohort, experiment.split
    post = experiment.postprocess
    if experiment.chooses_postprocess:
        post, _ = choose_postprocess(experiment, best.variables)
    totals, masks = evaluate(experiment, best.variables, split.test, post)
    rows = patient_table(cohort, totals.sums, split.test)
    test = summarize(rows)
    test["loss"] = float(totals.loss / totals.sums.slices.sum())
    # The figure of the reproduced project, which is no score of a patient: see metrics.soft_batch_iou.
    test[f"soft_iou_per_batch_of_{experiment.eval_batch_size}"] = float(totals.soft_batch_iou / totals.batches)
    results = {
        "test": test,
        "postprocess": post._asdict(),
        "best_epoch": best_epoch,
        "best_step": int(best.step),
        "epochs": epochs,
        "parameters": sum(p.size for p in jax.tree.leaves(best.params)),
        "patients": {"train": len(split.train), "val": len(split.val), "test": len(split.test)},
        "train_tumor_fraction": float(cohort.tumor_fraction(split.train)),
        "dataset": {"name": "/".join(experiment.dataset_folder.parts[-3:]), "fingerprint": cohort.fingerprint},
    }
    pictures = _best_median_worst(experiment, best, rows, masks)  # on all processes: the devices predict together
    if jax.process_index() == 0:
        write_table(workdir / "per_patient.csv", rows)
        draw_curves(workdir / "curves.png", read_rows(workdir / "metrics.jsonl"))
        for name, picture in pictures.items():
            draw_panel(workdir / f"panel_{name}.png", [picture])
        write_json(workdir / "results.json", results)  # last: its presence means that the run is whole
    return results


def _best_median_worst(
    experiment: Experiment, best: TrainState, rows: list[dict], masks: np.ndarray
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
    prediction = experiment.predict(best.variables, np.array(slices))
    pictures = {}
    for k, (name, row) in enumerate(chosen.items()):
        i = slices[k]
        pictures[name] = Slice(
            title=f"{name} of {len(rows)} test patients: {row['patient']}, slice {cohort.slice_numbers[i]}, "
            f"3-D Dice {row['dice']:.3f}",
            flair=native_image(experiment.dataset_folder, int(i))[..., 1],
            truth=cohort.native_masks[i, ..., 0] > 0,
            prediction=masks[np.searchsorted(tested, i), ..., 0],
            attention=None if prediction.attention is None else prediction.attention[k, ..., 0],
        )
    return pictures
