"""The two kinds of cells that `brainseg_jax.main` cannot run: a checkpoint scored anew, and a split by slice.

    python -m experiments.cell --config=configs/unet_dice.py:cpu --config.eval.largest_component=True \
      --rescores=RUN --workdir=NEW_RUN
    python -m experiments.cell --config=configs/unet_dice.py:cpu --by_slice=0 --workdir=RUN

`ablation.py` starts them; each leaves a run folder like that of any run.
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
from experiments.by_slice import torn

RESCORES = flags.DEFINE_string("rescores", None, "The run whose kept checkpoint is scored under this config.")
BY_SLICE = flags.DEFINE_integer("by_slice", None, "Train on a split by slice; which fold of it is tested.")


def main(_: list[str]) -> None:
    """Runs one cell."""
    if (RESCORES.value is None) == (BY_SLICE.value is None):
        raise InputError("give --rescores=RUN or --by_slice=FOLD; plain trainings are brainseg_jax.main's")
    use_plain_numbers()
    workdir = Path(WORKDIR.value)
    if RESCORES.value is not None:
        rescore(CONFIG.value, Path(RESCORES.value), workdir)
    else:
        train_by_slice(CONFIG.value, workdir, fold=BY_SLICE.value)


def rescore(config: ConfigDict, run: Path, workdir: Path) -> dict:
    """Scores the checkpoint that a finished run kept under a config that differs in `eval` alone.

    Args:
      config: of the new scores.
      run: folder of the run.
      workdir: of the new scores.

    Returns:
      what `results.json` holds.

    Raises:
      InputError: the run has not ended, or differs in more than its scoring.
    """
    trained = read_json(run / "config.json")
    found, asked = flatten(trained), flatten(config.to_dict())
    other = {key for key in asked if found.get(key) != asked[key]} - {
        "data.source",
        "data.dir",
    }  # by fingerprint, below
    if different := sorted({key.partition(".")[0] for key in other} - {"eval", "split"}):
        raise InputError(f"{run} was trained under another config ({', '.join(different)}); rescore a run of this one")
    before = read_results(run)
    if before is None:
        raise InputError(f"{run} has not ended (no results.json); run it to its end first")
    evaluation = build_evaluation(config, run)
    cohort = evaluation.cohort
    if cohort.fingerprint != trained["dataset"]["fingerprint"]:
        raise InputError(f"{run} was trained on other data; prepare its data again")
    with lock_run_folder(workdir):
        claim_run_folder(workdir, config, cohort, evaluation.split)
        kept = read_kept(run, config, cohort.description)
        shutil.copyfile(run / "metrics.jsonl", workdir / "metrics.jsonl")
        return write_results(workdir, evaluation, kept, epoch=before["epoch"], epochs=before["epochs"])


def train_by_slice(config: ConfigDict, workdir: Path, *, fold: int) -> dict:
    """Trains and scores as `train` does, on a cohort in which each case is taken for three, see `by_slice.py`."""

    def load(*arguments: object, **named: object) -> Cohort:
        return torn(load_cohort(*arguments, **named), fold=fold)

    return train(config, workdir, load=load)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
