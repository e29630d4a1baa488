"""What the loop remembers beside the arrays, and its decisions: what is best, when the rate falls, when to stop."""

import dataclasses
import math

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from brainseg_jax import sharding
from brainseg_jax.training.state import TrainState

COLLAPSED = 3  # epochs in a row without a single right pixel, after which a warning is due


@dataclasses.dataclass(frozen=True)
class LoopState:
    """Saved with each checkpoint, so that a run that goes on decides as it would have.

    Attributes:
      epoch: epochs finished.
      best_dice: highest mean 3-D Dice on the validation patients; -1 before the first evaluation.
      best_epoch: when that was.
      plateau_wait: epochs since the last better one or the last lowering of the learning rate.
      zero_epochs: epochs in a row that scored 0.
      skipped_steps: updates left out so far because loss or gradient was not finite.
      losses: of the steps made in the epoch under way; empty between epochs.
      seconds: spent in training and validation; kept where `train.max_minutes` limits them, else 0.
      validation_seconds: of the last validation, kept likewise.
      out_of_time: whether the limit has ended the training.
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
        """The inverse of `dataclasses.asdict` after a way through JSON."""
        return cls(**{**content, "losses": tuple(content["losses"])})


def advance(loop: LoopState, dice: float) -> LoopState:
    """The loop's memory after an epoch that scored `dice` on the validation patients."""
    epoch = loop.epoch + 1
    loop = dataclasses.replace(loop, epoch=epoch, losses=(), zero_epochs=loop.zero_epochs + 1 if dice == 0.0 else 0)
    if dice > loop.best_dice:
        return dataclasses.replace(loop, best_dice=dice, best_epoch=epoch, plateau_wait=0)
    return dataclasses.replace(loop, plateau_wait=loop.plateau_wait + 1)


def lower_on_plateau(
    state: TrainState, loop: LoopState, *, patience: int, factor: float, least: float, mesh: Mesh
) -> tuple[TrainState, LoopState]:
    """Lowers what is left of the learning rate where the validation Dice has not risen for long enough.

    Args:
      state: of the training; `learning_rate_scale` is changed.
      loop: the loop's memory.
      patience: epochs without a better score.
      factor: times the scale, below 1.
      least: the scale is not lowered further than to this; one that is below it already stays as it is.
      mesh: where the state lies.

    Returns:
      both, changed or as they were.
    """
    if loop.plateau_wait < patience:
        return state, loop
    before = float(state.learning_rate_scale)
    scale = np.float32(min(before, max(before * factor, least)))
    state = state.replace(learning_rate_scale=sharding.put(np.asarray(scale), sharding.replicated(mesh)))
    return state, dataclasses.replace(loop, plateau_wait=0)


def spend(state: TrainState, loop: LoopState, seconds: float, *, limit: float, cosine: bool, mesh: Mesh) -> tuple:
    """Counts time against a limit, and lets a cosine learning rate fall by the time that is gone.

    Args:
      state: of the training; `learning_rate_scale` is changed where `cosine`.
      loop: the loop's memory.
      seconds: spent since the last call; those of process 0 count for all.
      limit: of training and validation, seconds.
      cosine: whether the rate is to fall, to 0 at the limit.
      mesh: where the state lies.

    Returns:
      both; `out_of_time` where no more than a validation as long as the last one fits into the limit.
    """
    if jax.process_count() > 1:
        seconds = float(multihost_utils.broadcast_one_to_all(np.float32(seconds)))
    spent = loop.seconds + seconds
    out_of_time = spent + loop.validation_seconds >= limit
    if cosine:
        scale = np.float32(0.5 + 0.5 * math.cos(math.pi * min(1.0, spent / (limit - loop.validation_seconds))))
        state = state.replace(learning_rate_scale=sharding.put(scale, sharding.replicated(mesh)))
    return state, dataclasses.replace(loop, seconds=spent, out_of_time=out_of_time)


def is_over(loop: LoopState, *, epochs: int, early_stop_patience: int) -> bool:
    """Whether all epochs are made, time is up, or the last `early_stop_patience`, where not 0, were no better."""
    stops_early = 0 < early_stop_patience <= loop.epoch - loop.best_epoch
    return loop.epoch >= epochs or stops_early or loop.out_of_time


def warn_of_collapse(loop: LoopState) -> None:
    """Says so, once in a while, where the network has stopped to predict any tumor in its place."""
    if loop.zero_epochs and loop.zero_epochs % COLLAPSED == 0:
        logging.warning(
            "the validation Dice was 0 in each of the last %d epochs: the network predicts no tumor, or none in its "
            "place, and may never again. Start anew with a lower optimizer.learning_rate, a longer "
            "optimizer.warmup_epochs, or data.tumor_sampling=0.5",
            loop.zero_epochs,
        )
