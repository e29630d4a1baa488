"""Trains and scores: `python -m brainseg_jax.main --config=configs/attn_dice.py --workdir=runs/attn_dice`."""

import brainseg_jax.import_errors  # isort: skip  # noqa: F401

import jax
from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from brainseg_jax import cli, sharding
from brainseg_jax.compilation import keep_compiled
from brainseg_jax.config_files import config_names, find_config
from brainseg_jax.errors import InputError
from brainseg_jax.files import user_path
from brainseg_jax.training.loop import train


class _ConfigParser(config_flags.ConfigFileFlagParser):
    """Also finds the configs of this package by name."""

    def parse(self, path: str) -> ConfigDict:
        return super().parse(find_config(path) if path else path)


CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    f"A config file, or the name of a config of this package: {', '.join(config_names())}. A colon and a scale can "
    "follow: attn_dice.py:cpu.",
)
flags.FLAGS["config"].parser = _ConfigParser("config")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run folder. If it holds a run, that run resumes from its latest checkpoint."
)
MLFLOW = flags.DEFINE_string(
    "mlflow",
    "",
    "A folder, or the address of an MLflow server, that also receives the metrics. Needs the extra mlflow.",
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for a run with several processes.")
PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes.")
PROCESS = flags.DEFINE_integer("process", None, "Index of this process, from 0.")
SCHEDULED = flags.DEFINE_bool(
    "scheduled",
    False,
    "Instead of --coordinator, --processes and --process: join the processes that srun, mpirun or Kubernetes started.",
)


def main(_: list[str]) -> None:
    """Joins the other processes, if there are any, then trains.

    Until the training handles SIGTERM itself, SIGTERM raises KeyboardInterrupt, so no incomplete file remains.
    """
    if not WORKDIR.value:
        raise InputError("--workdir is empty: give the run folder")
    _join_processes()
    keep_compiled(CONFIG.value.compilation_cache)
    with cli.sigterm_interrupts():
        train(CONFIG.value, user_path(cli.given(WORKDIR), "--workdir"), mlflow=MLFLOW.value)


def _join_processes() -> None:
    """Joins the other processes of a run, if the flags ask for it."""
    values = coordinator, processes, process = COORDINATOR.value, PROCESSES.value, PROCESS.value
    if SCHEDULED.value:
        if any(value is not None for value in values):
            raise InputError(
                "--scheduled with --coordinator, --processes or --process: give either --scheduled or these"
            )
        try:
            jax.distributed.initialize()
        except ValueError as error:  # JAX knows no scheduler of this environment
            raise InputError(
                "--scheduled: no scheduler that JAX supports started this process; use srun (slurm/train.slurm), "
                "or give --coordinator, --processes and --process"
            ) from error
    elif any(value is not None for value in values):
        if coordinator is None or processes is None or process is None or not 0 <= process < processes:
            raise InputError(
                f"--coordinator={coordinator} --processes={processes} --process={process}: a run with several "
                "processes needs all three, and --process from 0 to --processes minus 1"
            )
        jax.distributed.initialize(coordinator, processes, process)
    sharding.connect()


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
