"""Patients of a cohort looked at closely: all their scores, calibration, and pictures for the report."""

from typing import NamedTuple

import numpy as np

from brainseg_jax.data.cohort import native_images
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
from brainseg_jax.evaluation.scores import padded_batches
from brainseg_jax.evaluation.volumes import score_volume
from brainseg_jax.training.experiment import Experiment


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
    config: dict,
    experiment: Experiment,
    *,
    part: str,
    post: PostProcess,
    chose_post: bool,
    parameters: int,
    step: int,
) -> dict[str, str]:
    """What the figures of a run rest on, in words for the report.

    Args:
      config: content of the run's `config.json`.
      experiment: of the run.
      part: val or test, whose patients are scored.
      post: makes the masks.
      chose_post: whether it was chosen on the validation patients.
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
    mask = f"probability of at least {post.threshold:g}"
    mask += ", averaged over left-right mirror images" if config["eval"].get("mirror") else ""  # not in older runs
    mask += ", largest 3-D part alone" if post.largest_component else ""
    mask += f", parts of {post.min_voxels} voxels or more" if post.min_voxels > 1 else ""
    return {
        "Data": f"{'/'.join(experiment.dataset_folder.parts[-3:-1])}, fingerprint {experiment.cohort.fingerprint[:12]}",
        "Scored": _scored_on(part, config, experiment.kept, chose_post=chose_post),
        "Split": made,
        "Network": f"{model['name']}, {model['features']} features, depth {model['depth']}, {parameters:,} parameters",
        "Training": f"{config['loss']['name']} loss, {config['data']['image_size']} pixels, seed {config['seed']}",
        "Checkpoint": f"step {step:,}, "
        + ("the last" if experiment.kept == "last" else "the best on the validation patients"),
        "Mask": mask,
    }


def _scored_on(part: str, config: dict, kept: str, *, chose_post: bool) -> str:
    """Which patients are scored, and what was decided on them, which makes their scores too good."""
    if part == "test":
        return "test patients: the run made no choice on them"
    chosen = ["the checkpoint"] * (kept == "best") + ["the post-processing"] * chose_post
    if chosen:
        were = "were" if len(chosen) > 1 else "was"
        return f"validation patients: {' and '.join(chosen)} {were} chosen on them, so these scores are too good"
    words = "validation patients: neither checkpoint nor post-processing was chosen on them"
    decided = ["when the learning rate fell"] * (config["optimizer"]["schedule"] == "plateau")
    decided += ["when to stop early"] * (config["train"]["early_stop_patience"] > 0)
    return f"{words}, but they decided {' and '.join(decided)}" if decided else words
