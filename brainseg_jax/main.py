"""Trains and scores: `python -m brainseg_jax.main --config=configs/attn_dice.py --workdir=runs/attn_dice`."""

from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from brainseg_jax import cli
from brainseg_jax.compilation import keep_compiled, use_plain_numbers
from brainseg_jax.errors import InputError
from brainseg_jax.training.loop import train

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, or one, a colon and a scale.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run folder; a run that lies there goes on from its latest epoch.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for a run of several processes.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.")


def main(_: list[str]) -> None:
    """Joins the other processes where there are any, then trains."""
    if not WORKDIR.value:
        raise InputError("--workdir is empty: give the run folder")
    together = (COORDINATOR.value, PROCESSES.value, PROCESS.value)
    if any(value is not None for value in together):
        if any(value is None for value in together) or not 0 <= PROCESS.value < PROCESSES.value:
            raise InputError(
                f"--coordinator={COORDINATOR.value} --processes={PROCESSES.value} --process={PROCESS.value}: a run of "
                "several processes needs all three, and --process from 0 to --processes less one"
            )
        jax.distributed.initialize(*together)
    use_plain_numbers()
    keep_compiled(CONFIG.value.compilation_cache)
    train(CONFIG.value, Path(WORKDIR.value).expanduser())


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
