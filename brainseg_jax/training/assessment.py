"""Patients of a cohort looked at closely: all their scores, calibration, and pictures for the report."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from brainseg_jax.data.cohort import native_images
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.calibration import Calibration, calibrate
from brainseg_jax.evaluation.case_pictures import (
    Case,
    Overlay,
    attention_pictures,
    outline,
    probability_pictures,
    scan_pictures,
)
from brainseg_jax.evaluation.postprocess import PostProcess
from brainseg_jax.evaluation.report import Scored
from brainseg_jax.evaluation.scores import padded_batches
from brainseg_jax.evaluation.volumes import score_volume
from brainseg_jax.training.experiment import Experiment, build_experiment
from brainseg_jax.training.journal import read_rows
from brainseg_jax.training.scoring import evaluate
from brainseg_jax.training.trained import load_trained


class Assessment(NamedTuple):
    """What is known of some patients.

    Attributes:
      rows: of `volumes.score_volume`, with "patient", "institution" and "grade" before.
      calibration: of all of them.
      cases: their pictures.
    """

    rows: list[dict]
    calibration: Calibration
    cases: list[Case]


def assess(
    experiment: Experiment, variables: dict, patients: tuple[str, ...], masks: np.ndarray, *, tolerance: float
) -> Assessment:
    """Predicts the patients once more, for probabilities and attention, and scores the masks given.

    All processes must call it, as the devices predict together.

    Args:
      experiment: of the run.
      variables: of its model.
      patients: of its cohort, one or more.
      masks: [n, 256, 256, 1] bool, n the slices of `patients` in order of the cohort, as of `scoring.evaluate`.
      tolerance: of surface Dice, in voxels: the dataset holds no spacing.
    """
    cohort, slices = experiment.cohort, experiment.cohort.slices_of(patients)
    rows, cases, calibrations = [], [], []
    for patient in patients:
        own = cohort.slices_of((patient,))
        batches = padded_batches(own, experiment.eval_batch_size)
        predicted = [(experiment.predict(variables, indices), valid) for indices, valid in batches]
        probability = np.concatenate([p.probability[valid, ..., 0] for p, valid in predicted])
        mask, truth = masks[np.isin(slices, own), ..., 0], cohort.native_masks[own, ..., 0] > 0
        flair = native_images(experiment.dataset_folder, own)[..., 1]
        attention = None
        if predicted[0][0].attention is not None:
            attention = attention_pictures(np.concatenate([p.attention[valid, ..., 0] for p, valid in predicted]))
        place = cohort.patients.index(patient)
        known = {"patient": patient, "institution": cohort.institutions[place], "grade": cohort.grades[place]}
        rows.append(known | score_volume(mask, truth, spacing=None, tolerance=tolerance))
        calibrations.append(calibrate(probability, truth, flair))
        cases.append(
            Case(
                patient=patient,
                size=truth.shape[1:],
                numbers=cohort.slice_numbers[own].tolist(),
                flair=scan_pictures(flair),
                truth=outline(truth),
                overlays=[Overlay(outline(mask), probability_pictures(probability), attention)],
            )
        )
    return Assessment(rows, sum(calibrations[1:], start=calibrations[0]), cases)


def facts(
    config: dict, experiment: Experiment, *, part: str, post: PostProcess, parameters: int, step: int
) -> dict[str, str]:
    """What the figures of a run rest on, in words for the report.

    Args:
      config: content of the run's `config.json`.
      experiment: of the run.
      part: val or test, whose patients are scored.
      post: makes the masks.
      parameters: of the network, their number.
      step: of the checkpoint.
    """
    split, patients, model = config["split"], experiment.split, config["model"]
    made = (
        f"by patient, {len(patients.train)} to train, {len(patients.val)} to validate, {len(patients.test)} to test; "
    )
    if split["file"]:
        made += "taken from a file"
    elif split["folds"]:
        made += f"fold {split['fold']} of {split['folds']}, stratified by institution, seed {split['seed']}"
    else:
        made += f"stratified by institution, seed {split['seed']}"
    scored = "test patients: no choice was made on them"
    if part == "val":
        scored = "validation patients: the checkpoint was chosen on them, so these scores are too good"
    mask = f"probability of at least {post.threshold:g}"
    mask += ", largest 3-D part alone" if post.largest_component else ""
    mask += f", parts of {post.min_voxels} voxels or more" if post.min_voxels > 1 else ""
    return {
        "Data": f"{'/'.join(experiment.dataset_folder.parts[-3:-1])}, fingerprint {experiment.cohort.fingerprint[:12]}",
        "Scored": scored,
        "Split": made,
        "Network": f"{model['name']}, {model['features']} features, depth {model['depth']}, {parameters:,} parameters",
        "Training": f"{config['loss']['name']} loss, {config['data']['image_size']} pixels, seed {config['seed']}",
        "Checkpoint": f"step {step:,}, the best on the validation patients",
        "Mask": mask,
    }


def score_runs(folders: list[Path], *, part: str, tolerance: float) -> tuple[list[Scored], list[Case]]:
    """Scores the best checkpoints of runs on the patients of one part of their split.

    Args:
      folders: of the runs, one or more, all of the same data and the same patients in this part.
      part: val or test.
      tolerance: of surface Dice, in voxels.

    Returns:
      what a report needs of each run, and the pictures with an overlay of each.

    Raises:
      InputError: a folder cannot be used, its data are not there, or the runs have other patients.
      StorageError: a checkpoint is damaged.
    """
    scored: list[Scored] = []
    cases: list[Case] = []
    for folder, name in zip(folders, names_of(folders), strict=True):
        run, own = _score_run(folder, name, part, tolerance)
        patients = ({row["patient"] for row in r.rows} for r in (run, *scored[:1]))
        if scored and (different := sorted(set.symmetric_difference(*patients))):
            raise InputError(
                f"--run: {folders[0]} and {folder} do not have the same {part} patients, so they cannot be compared "
                f"patient by patient; only one of them has {', '.join(different)}"
            )
        if not scored:
            cases = own
        else:
            cases = [dataclasses.replace(c, overlays=c.overlays + o.overlays) for c, o in zip(cases, own, strict=True)]
        scored.append(run)
    return scored, cases


def names_of(folders: list[Path]) -> list[str]:
    """The last parts of the paths, as many as tell all apart."""
    parts = [folder.absolute().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise InputError(f"--run={','.join(map(str, folders))}: a folder twice; give each once")
    length = 1
    while len({p[-length:] for p in parts}) < len(parts):
        length += 1
    return ["/".join(p[-length:]) for p in parts]


def _score_run(folder: Path, name: str, part: str, tolerance: float) -> tuple[Scored, list[Case]]:
    trained = load_trained(folder)
    config = json.loads((folder / "config.json").read_text())
    trained.config.split.file = str(folder / "split.json")  # the run's own, whatever a seed would make today
    experiment = build_experiment(trained.config)
    if experiment.cohort.fingerprint != trained.fingerprint:
        raise InputError(
            f"{folder} was trained on data of fingerprint {trained.fingerprint[:12]}, and {experiment.dataset_folder} "
            f"has {experiment.cohort.fingerprint[:12]}; prepare the data of the run again"
        )
    patients = tuple(sorted(getattr(experiment.split, part)))
    _, masks = evaluate(experiment, trained.variables, patients, trained.postprocess)
    rows, calibration, cases = assess(experiment, trained.variables, patients, masks, tolerance=tolerance)
    told = facts(
        config,
        experiment,
        part=part,
        post=trained.postprocess,
        parameters=sum(p.size for p in jax.tree.leaves(trained.variables["params"])),
        step=trained.step,
    )
    epochs = read_rows(folder / "metrics.jsonl")
    return Scored(name, rows, told, epochs, calibration, trained.postprocess.threshold, config), cases
