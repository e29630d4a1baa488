"""The state of the loop beside the arrays, and its decisions: best epoch, learning rate on a plateau, when to stop."""

import dataclasses
import math

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from brainseg_jax import sharding
from brainseg_jax.training.state import TrainState

COLLAPSE_EPOCHS = 3  # a warning is logged each time that many epochs in a row have a validation Dice of 0


@dataclasses.dataclass(frozen=True)
class LoopState:
    """The state of the loop. Each checkpoint stores it, so that a resumed run makes the same decisions.

    Attributes:
      epoch: Number of finished epochs.
      best_dice: Highest mean 3-D Dice on the validation patients; -1 before the first validation.
      best_epoch: The epoch of `best_dice`, from 1.
      plateau_wait: Epochs since the last improvement or the last reduction of the learning rate.
      zero_epochs: Latest epochs in a row with a validation Dice of 0.
      skipped_steps: Updates skipped so far because loss or gradient was not finite.
      losses: Losses of the steps of the current epoch so far; empty between epochs.
      seconds: Time spent in training and validation; counted only with `train.max_minutes`, else 0.
      validation_seconds: Duration of the last validation; counted only with `train.max_minutes`, else 0.
      out_of_time: Whether the time limit has ended the training.
    """

    epoch: int = 0
    best_dice: float = -1.0
    best_epoch: int = 0
    plateau_wait: int = 0
    zero_epochs: int = 0
    skipped_steps: int = 0
    losses: tuple[float, ...] = ()
    seconds: float = 0.0
    validation_seconds: float = 0.0
    out_of_time: bool = False

    @classmethod
    def from_json(cls, content: dict) -> "LoopState":
        """Restores a state from the JSON form of `dataclasses.asdict`."""
        return cls(**{**content, "losses": tuple(content["losses"])})


def advance(loop: LoopState, dice: float) -> LoopState:
    """The loop state after an epoch with a mean Dice of `dice` on the validation patients."""
    epoch = loop.epoch + 1
    loop = dataclasses.replace(loop, epoch=epoch, losses=(), zero_epochs=loop.zero_epochs + 1 if dice == 0.0 else 0)
    if dice > loop.best_dice:
        return dataclasses.replace(loop, best_dice=dice, best_epoch=epoch, plateau_wait=0)
    return dataclasses.replace(loop, plateau_wait=loop.plateau_wait + 1)


def lower_on_plateau(
    state: TrainState, loop: LoopState, *, patience: int, factor: float, minimum: float, mesh: Mesh
) -> tuple[TrainState, LoopState]:
    """Reduces the learning rate if the validation Dice has not improved for `patience` epochs.

    Args:
      state: The training state; its `learning_rate_scale` is reduced.
      loop: The loop state.
      patience: Number of epochs without improvement.
      factor: Factor of each reduction, below 1.
      minimum: Lower limit of the reduction. A scale that is already below it does not change.
      mesh: The mesh of the state.

    Returns:
      The training state and the loop state.
    """
    if loop.plateau_wait < patience:
        return state, loop
    before = float(state.learning_rate_scale)
    scale = np.float32(min(before, max(before * factor, minimum)))
    state = dataclasses.replace(state, learning_rate_scale=sharding.put(np.asarray(scale), sharding.replicated(mesh)))
    return state, dataclasses.replace(loop, plateau_wait=0)


def add_time(state: TrainState, loop: LoopState, seconds: float, *, limit: float, cosine: bool, mesh: Mesh) -> tuple:
    """Adds time to the loop state, and sets a cosine learning rate by the share of the limit that is spent.

    Args:
      state: The training state; its `learning_rate_scale` changes if `cosine`.
      loop: The loop state.
      seconds: Time since the last call. All processes use the value of process 0.
      limit: Limit of training and validation together, in seconds.
      cosine: Whether the learning rate follows a cosine, which ends at 0 when only the last validation fits.
      mesh: The mesh of the state.

    Returns:
      The training state and the loop state. `out_of_time` is True if the remaining time only suffices for a
      validation as long as the last one.
    """
    if jax.process_count() > 1:
        seconds = float(multihost_utils.broadcast_one_to_all(np.float32(seconds)))
    spent = loop.seconds + seconds
    out_of_time = spent + loop.validation_seconds >= limit
    if cosine:
        share = min(1.0, spent / (limit - loop.validation_seconds))
        scale = np.asarray(0.5 + 0.5 * math.cos(math.pi * share), np.float32)
        state = dataclasses.replace(state, learning_rate_scale=sharding.put(scale, sharding.replicated(mesh)))
    return state, dataclasses.replace(loop, seconds=spent, out_of_time=out_of_time)


def is_over(loop: LoopState, *, epochs: int, early_stop_patience: int) -> bool:
    """Whether all epochs are done, time is up, or no epoch of the last `early_stop_patience` (0: off) was better."""
    stops_early = 0 < early_stop_patience <= loop.epoch - loop.best_epoch
    return loop.epoch >= epochs or stops_early or loop.out_of_time


def warn_of_collapse(loop: LoopState) -> None:
    """Logs a warning each time `COLLAPSE_EPOCHS` more epochs in a row have a validation Dice of 0."""
    if loop.zero_epochs and loop.zero_epochs % COLLAPSE_EPOCHS == 0:
        logging.warning(
            "the validation Dice was 0 in each of the last %d epochs: the network predicts no tumor, or none where "
            "the reference has one, and may not recover. Start a new run with a lower optimizer.learning_rate, a "
            "longer optimizer.warmup_epochs, or data.tumor_sampling=0.5",
            loop.zero_epochs,
        )
