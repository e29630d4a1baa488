"""Trains and scores: `python -m brainseg_jax.main --config=configs/attn_dice.py --workdir=runs/attn_dice`."""

import brainseg_jax.import_errors  # isort: skip  # noqa: F401

import jax
from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from brainseg_jax import cli
from brainseg_jax.compilation import keep_compiled
from brainseg_jax.config_files import config_names, find_config
from brainseg_jax.errors import InputError
from brainseg_jax.files import user_path
from brainseg_jax.training.loop import train


class _ConfigParser(config_flags.ConfigFileFlagParser):
    """Finds the configs of this package by name too."""

    def parse(self, path: str) -> ConfigDict:
        return super().parse(find_config(path) if path else path)


CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    f"A config file, or one of this package by name: {', '.join(config_names())}. A colon and a scale can follow: "
    "attn_dice.py:cpu.",
)
flags.FLAGS["config"].parser = _ConfigParser("config")
WORKDIR = flags.DEFINE_string("workdir", None, "The run folder; a run that lies there goes on from its latest epoch.")
MLFLOW = flags.DEFINE_string(
    "mlflow", "", "A folder, or the address of an MLflow server, that gets the metrics too. Takes the extra mlflow."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for a run of several processes.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.")
SCHEDULED = flags.DEFINE_bool(
    "scheduled", False, "In place of these three: join the processes that srun, mpirun or Kubernetes started."
)


def main(_: list[str]) -> None:
    """Joins the other processes where there are any, then trains.

    Until the training heeds it itself, SIGTERM ends it as Ctrl-C does: nothing half-written is left.
    """
    if not WORKDIR.value:
        raise InputError("--workdir is empty: give the run folder")
    _join()
    keep_compiled(CONFIG.value.compilation_cache)
    with cli.sigterm_interrupts():
        train(CONFIG.value, user_path(WORKDIR.value, "--workdir"), mlflow=MLFLOW.value)


def _join() -> None:
    """Joins the other processes of a run, where the flags name or announce them."""
    together = (COORDINATOR.value, PROCESSES.value, PROCESS.value)
    if SCHEDULED.value:
        if any(value is not None for value in together):
            raise InputError("--scheduled with --coordinator, --processes or --process: give the one or the others")
        try:
            jax.distributed.initialize()
        except ValueError as error:  # no environment that JAX knows
            raise InputError(
                "--scheduled: no scheduler that JAX knows started this process; start it by srun (slurm/train.slurm), "
                "or give --coordinator, --processes and --process"
            ) from error
    elif any(value is not None for value in together):
        if any(value is None for value in together) or not 0 <= PROCESS.value < PROCESSES.value:
            raise InputError(
                f"--coordinator={COORDINATOR.value} --processes={PROCESSES.value} --process={PROCESS.value}: a run of "
                "several processes needs all three, and --process from 0 to --processes less one"
            )
        jax.distributed.initialize(*together)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
