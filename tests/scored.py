"""Scores runs and folders in memory and reads whole folders of masks; the commands do this case by case."""

import io

from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.folders import begin_folders
from brainseg_jax.evaluation.records import join, read_records, write_records
from brainseg_jax.runs.comparison import begin_runs
from brainseg_jax.scans.masks import describe_faults, find_masks
from brainseg_jax.shards import ALL


def collect(work):
    """The data of a report for each run, and the pictures of all cases with an overlay per run."""
    with io.BytesIO() as file:
        write_records(file, work.scorings, ALL, read_records(file, ALL))
        file.seek(0)
        runs, pictures = join([read_records(file, ALL)])
        return runs, list(pictures)


def score_runs(folders, *, part, tolerance):
    return collect(begin_runs(folders, part=part, tolerance=tolerance))


def score_folders(predictions, truth, *, tolerance, targets=""):
    (run,), cases = collect(begin_folders(predictions, truth, tolerance=tolerance, targets=targets))
    return run, cases


def read_masks(folder):
    """The masks by case name; InputError lists all unreadable ones."""
    masks, faults = {}, []
    for case, files in find_masks(folder).items():
        try:
            masks[case] = files.read()
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError(describe_faults(folder, faults))
    return masks
