"""Scores patients with a network: batches on the devices, post-processing of whole volumes on the host."""

import jax
import numpy as np

from brainseg_jax.evaluation.postprocess import keep_largest_component
from brainseg_jax.evaluation.scores import add_up
from brainseg_jax.metrics import PatientSums, patient_sums
from brainseg_jax.training.experiment import Experiment
from brainseg_jax.training.steps import Totals

_patient_sums = jax.jit(patient_sums, static_argnames="patients")


def evaluate(experiment: Experiment, variables: dict, patients: tuple[str, ...]) -> tuple[Totals, np.ndarray]:
    """Scores all slices of `patients`.

    Args:
      experiment: of the run.
      variables: of its model.
      patients: of its cohort.

    Returns:
      totals, whose sums are of [P], all patients of the cohort, and the masks that were scored, [n, 256, 256, 1] bool,
      n the slices of `patients` in order of the cohort.
    """
    cohort, batches = experiment.cohort, []
    slices = cohort.slices_of(patients)

    def eval_batch(indices: np.ndarray, valid: np.ndarray) -> Totals:
        batch = (experiment.put_batch(indices), experiment.put_batch(valid))
        totals, predicted = experiment.eval_step(variables, experiment.on_devices, *batch)
        batches.append(np.asarray(predicted)[valid])
        return totals

    totals = add_up(eval_batch, slices, experiment.eval_batch_size)
    masks = np.concatenate(batches)
    if not experiment.largest_component:
        return totals, masks
    of_patient = cohort.patient_index[slices]
    for patient in np.unique(of_patient):
        volume = of_patient == patient
        masks[volume, ..., 0] = keep_largest_component(masks[volume, ..., 0])

    def count_batch(places: np.ndarray, valid: np.ndarray) -> PatientSums:
        truth = cohort.native_masks[slices[places]] > 0
        return _patient_sums(masks[places], truth, of_patient[places], patients=len(cohort.patients), valid=valid)

    return totals._replace(sums=add_up(count_batch, np.arange(len(slices)), experiment.eval_batch_size)), masks
