"""The two kinds of cells that `brainseg_jax.main` cannot run: rescoring a checkpoint, and training on a split by slice.

    python -m experiments.cell --config=configs/unet_dice.py:cpu --config.eval.largest_component=True \
      --rescores=RUN --workdir=NEW_RUN
    python -m experiments.cell --config=configs/unet_dice.py:cpu --by_slice=0 --workdir=RUN

`ablation.py` starts them. Each writes a run folder like that of any run.
"""

import shutil
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from brainseg_jax import cli
from brainseg_jax.compilation import use_plain_numbers
from brainseg_jax.data.cohort import Cohort
from brainseg_jax.data.load_cohort import load_cohort
from brainseg_jax.errors import InputError
from brainseg_jax.main import CONFIG, WORKDIR
from brainseg_jax.runs.evaluation import build_evaluation
from brainseg_jax.runs.kept import read_kept
from brainseg_jax.runs.results import write_results
from brainseg_jax.runs.run_folder import claim_run_folder, flatten, lock_run_folder
from brainseg_jax.runs.trained import read_json, read_results
from brainseg_jax.training.loop import train
from experiments.by_slice import split_cases

RESCORES = flags.DEFINE_string("rescores", None, "Run folder; score its kept checkpoint under this config.")
BY_SLICE = flags.DEFINE_integer("by_slice", None, "Train on a split by slice with this test fold.")


def main(_: list[str]) -> None:
    """Runs one cell."""
    if (RESCORES.value is None) == (BY_SLICE.value is None):
        raise InputError("give either --rescores=RUN or --by_slice=FOLD; brainseg_jax.main runs other trainings")
    use_plain_numbers()
    workdir = Path(WORKDIR.value)
    if RESCORES.value is not None:
        rescore(CONFIG.value, Path(RESCORES.value), workdir)
    else:
        train_by_slice(CONFIG.value, workdir, fold=BY_SLICE.value)


def rescore(config: ConfigDict, run: Path, workdir: Path) -> dict:
    """Scores the kept checkpoint of a finished run under a config that differs only in `eval`.

    Args:
      config: of the new scores.
      run: folder of the finished run.
      workdir: folder for the new scores.

    Returns:
      the content of the new `results.json`.

    Raises:
      InputError: the run is not finished, or differs in more than its scoring.
    """
    trained = read_json(run / "config.json")
    old, new = flatten(trained), flatten(config.to_dict())
    differing = {key for key in new if old.get(key) != new[key]} - {
        "data.source",
        "data.dir",
    }  # the fingerprint below checks the data
    if sections := sorted({key.partition(".")[0] for key in differing} - {"eval", "split"}):
        raise InputError(
            f"{run} was trained under another config ({', '.join(sections)}); rescore a run of this config"
        )
    old_results = read_results(run)
    if old_results is None:
        raise InputError(f"{run} is not finished (no results.json); finish it first")
    evaluation = build_evaluation(config, run)
    cohort = evaluation.cohort
    if cohort.fingerprint != trained["dataset"]["fingerprint"]:
        raise InputError(f"{run} was trained on other data; prepare its data again")
    with lock_run_folder(workdir):
        claim_run_folder(workdir, config, cohort, evaluation.split)
        kept = read_kept(run, config, cohort.description)
        shutil.copyfile(run / "metrics.jsonl", workdir / "metrics.jsonl")
        return write_results(workdir, evaluation, kept, epoch=old_results["epoch"], epochs=old_results["epochs"])


def train_by_slice(config: ConfigDict, workdir: Path, *, fold: int) -> dict:
    """Trains and scores as `train` does, on a cohort with cases divided into thirds (`by_slice.py`)."""

    def load(*arguments: object, **keywords: object) -> Cohort:
        return split_cases(load_cohort(*arguments, **keywords), fold=fold)

    return train(config, workdir, load=load)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
