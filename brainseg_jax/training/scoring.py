"""Scores patients with a network: batches on the devices, post-processing of whole volumes on the host."""

import jax
import numpy as np

from brainseg_jax.evaluation import postprocess
from brainseg_jax.evaluation.postprocess import PostProcess
from brainseg_jax.evaluation.scores import add_up, padded_batches
from brainseg_jax.metrics import PatientSums, patient_sums
from brainseg_jax.training.experiment import Experiment
from brainseg_jax.training.steps import Totals

_patient_sums = jax.jit(patient_sums, static_argnames="patients")


def evaluate(
    experiment: Experiment, variables: dict, patients: tuple[str, ...], post: PostProcess
) -> tuple[Totals, np.ndarray]:
    """Scores all slices of `patients`.

    Args:
      experiment: of the run.
      variables: of its model.
      patients: of its cohort.
      post: makes the masks.

    Returns:
      totals, whose sums are of [P], all patients of the cohort, and the masks that were scored, [n, 256, 256, 1] bool,
      n the slices of `patients` in order of the cohort.
    """
    cohort, batches = experiment.cohort, []
    slices = cohort.slices_of(patients)
    threshold = np.float32(post.threshold)

    def eval_batch(indices: np.ndarray, valid: np.ndarray) -> Totals:
        batch = (experiment.put_batch(indices), experiment.put_batch(valid))
        totals, predicted = experiment.eval_step(variables, experiment.on_devices, *batch, threshold)
        batches.append(np.asarray(predicted)[valid])
        return totals

    totals = add_up(eval_batch, slices, experiment.eval_batch_size)
    masks = np.concatenate(batches)
    if not post.largest_component and post.min_voxels < 2:
        return totals, masks
    of_patient = cohort.patient_index[slices]
    for patient in np.unique(of_patient):
        volume = of_patient == patient
        masks[volume, ..., 0] = post.keep_parts(masks[volume, ..., 0])

    def count_batch(places: np.ndarray, valid: np.ndarray) -> PatientSums:
        truth = cohort.native_masks[slices[places]] > 0
        return _patient_sums(masks[places], truth, of_patient[places], patients=len(cohort.patients), valid=valid)

    return totals._replace(sums=add_up(count_batch, np.arange(len(slices)), experiment.eval_batch_size)), masks


def choose_postprocess(experiment: Experiment, variables: dict) -> tuple[PostProcess, float]:
    """What makes the best masks of the validation patients, and their mean 3-D Dice; see `postprocess.choose`."""
    cohort = experiment.cohort
    return postprocess.choose(
        (probabilities(experiment, variables, patient), cohort.native_masks[cohort.slices_of((patient,)), ..., 0] > 0)
        for patient in experiment.split.val
    )


def probabilities(experiment: Experiment, variables: dict, patient: str) -> np.ndarray:
    """Probability of tumor in the volume of one patient of the cohort, [S, 256, 256] float32."""
    batches = padded_batches(experiment.cohort.slices_of((patient,)), experiment.eval_batch_size)
    return np.concatenate(
        [experiment.predict(variables, slices).probability[valid, ..., 0] for slices, valid in batches]
    )
