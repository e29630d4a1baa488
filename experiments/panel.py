"""Draws the same slices under each cell of a study, so that its scores can be checked by eye."""

from absl import logging

from brainseg_jax.errors import InputError, StorageError
from brainseg_jax.evaluation.pictures import PictureSlice, draw_grid
from brainseg_jax.evaluation.scores import read_table
from brainseg_jax.evaluation.volumes import TOLERANCE
from brainseg_jax.inference.postprocess import posts_from_json
from brainseg_jax.runs.evaluation import build_evaluation
from brainseg_jax.runs.kept import read_kept
from brainseg_jax.runs.trained import read_results
from experiments.running import StudyGrid
from experiments.studies import Job, config_of

QUANTILES = (0.0, 0.25, 0.5, 1.0)  # of the baseline's Dice: the panel shows these patients


def draw_study_panel(grid: StudyGrid) -> None:
    """Writes `panel.png`: one row per cell, one column per patient of the first fold.

    Each column shows the slice with the largest reference tumor. The function draws nothing until the baseline of this
    fold is finished. A split by slice is left out, since it has no whole patients.
    """
    fold, seed = grid.budget.folds[0], grid.budget.seeds[0]
    jobs = [job for job in grid.jobs if (job.fold, job.seed) == (fold, seed) and not job.cell.by_slice]
    jobs = [job for job in jobs if grid.is_done(job)]
    if not jobs or jobs[0].cell is not grid.study.baseline:
        return
    tested = sorted(read_table(grid.run_of(jobs[0]) / "per_patient.csv"), key=lambda row: (row["dice"], row["patient"]))
    patients = [tested[round(q * (len(tested) - 1))]["patient"] for q in QUANTILES]
    rows = {}
    for job in jobs:
        try:
            rows[job.cell.label] = slices_of_job(job, grid, list(dict.fromkeys(patients)))
        except (InputError, StorageError) as error:
            logging.warning("the panel leaves out %s: %s", job.name, error)
    if rows:
        draw_grid(grid.output / "panel.png", rows)


def slices_of_job(job: Job, grid: StudyGrid, patients: list[str]) -> list[PictureSlice]:
    """Returns, for each patient, the slice with the largest reference tumor and the job's prediction."""
    run = grid.run_of(job)
    config = config_of(job, grid.budget, source=grid.source)
    config.split.file = str(run / "split.json")
    evaluation = build_evaluation(config, run)
    cohort = evaluation.cohort
    posts = posts_from_json(read_results(run)["postprocess"], cohort.description)
    kept = read_kept(grid.run_of(grid.base_of(job)), config, cohort.description)
    network = evaluation.with_variables(kept.variables)
    assessed = evaluation.assessor.assess(network, patients, posts, tolerance=TOLERANCE)
    scored = {row["patient"]: row["dice"] for row in read_table(run / "per_patient.csv")}
    slices = []
    for patient in patients:
        (index,) = cohort.indices([patient])
        largest = assessed.largest[patient]
        truth, prediction = largest.masks
        slices.append(
            PictureSlice(
                title=f"{patient}, slice {cohort.numbers[index][largest.index]}: 3-D Dice {scored[patient]:.3f}",
                scan=largest.scan,
                truth=truth,
                prediction=prediction,
                attention=None,
            )
        )
    return slices
