"""Reads the checkpoint that a run is scored with: the best one, or the last one with `train.keep=last`."""

from pathlib import Path

from ml_collections import ConfigDict

from brainseg_jax import sharding
from brainseg_jax.runs.build import build_network
from brainseg_jax.runs.checkpoint import Checkpoints
from brainseg_jax.scans.description import Description
from brainseg_jax.training.optimizer import build_optimizer, build_schedule
from brainseg_jax.training.state import TrainState, shapes_of_state


def read_kept(folder: Path, config: ConfigDict, description: Description) -> TrainState:
    """The checkpoint that a run is scored with, see `Checkpoints.restore_best`. Changes nothing in the folder.

    Args:
      folder: run folder.
      config: config of the run, for the shapes of its arrays.
      description: description of its data.
    """
    opt, size = config.optimizer, config.data.image_size
    # Any schedule gives the optimizer state its shapes.
    schedule = build_schedule("constant", learning_rate=opt.learning_rate, total_steps=1, warmup_steps=0)
    abstract_state = shapes_of_state(
        build_network(config, description, {}).model,
        build_optimizer(opt.name, schedule, b2=opt.b2, weight_decay=opt.weight_decay, clip_norm=opt.clip_norm),
        image_shape=(size, size, (2 * config.data.context + 1) * len(description.channels)),
        ema=opt.ema_decay > 0.0,
        mesh=sharding.data_mesh(),
    )
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    state = checkpoints.restore_best(abstract_state)
    checkpoints.close()
    return state
