"""The story of a run: build, resume, train an epoch, score, save, and at the end score the test patients."""

import dataclasses
import math
import time
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from brainseg_jax import sharding
from brainseg_jax.errors import TrainingDiverged
from brainseg_jax.evaluation.scores import patient_table, summarize
from brainseg_jax.training.checkpoint import Checkpoints, LoopState
from brainseg_jax.training.experiment import Experiment, build_experiment
from brainseg_jax.training.journal import Journal
from brainseg_jax.training.results import write_results
from brainseg_jax.training.run_folder import check_run_folder, claim_run_folder
from brainseg_jax.training.scoring import evaluate
from brainseg_jax.training.state import TrainState


def train(config: ConfigDict, workdir: Path) -> dict:
    """Trains what the config says, or goes on with it, and scores the best checkpoint on the test patients.

    Args:
      config: of `default_config`, with overrides.
      workdir: the run folder; where it holds an unfinished run of this config, that run goes on.

    Returns:
      what `results.json` holds.

    Raises:
      InputError: where config, data or run folder cannot be used; nothing is in the run folder then.
      TrainingDiverged: where the loss is not finite.
    """
    check_run_folder(workdir)
    experiment = build_experiment(config)
    claim_run_folder(workdir, config, experiment)
    checkpoints = Checkpoints(workdir / "checkpoints")
    state, loop = experiment.initial_state, LoopState()
    if (step := checkpoints.latest_step()) is not None:
        state, loop = checkpoints.restore(step, like=state)
        logging.info("going on from epoch %d, step %d in %s", loop.epoch, step, checkpoints.folder)

    with Journal(
        workdir,
        epochs=config.train.epochs,
        steps_per_epoch=experiment.steps_per_epoch,
        resumed_epoch=loop.epoch,
        speaks=jax.process_index() == 0,
    ) as journal:
        journal.say(_introduction(experiment, state, workdir))
        if jax.process_index() == 0 and not _is_over(loop, config.train):
            (workdir / "results.json").unlink(missing_ok=True)  # of fewer epochs
        while not _is_over(loop, config.train):
            epoch = loop.epoch + 1
            started = time.monotonic()
            state, train_loss = _train_epoch(state, experiment, journal, checkpoints, epoch, config.train.log_every)
            seconds = time.monotonic() - started
            row = {
                "epoch": epoch,
                "train_loss": train_loss,
                **_validate(state, experiment),
                "learning_rate": float(experiment.schedule(int(state.step)) * state.learning_rate_scale),
                "images_per_second": experiment.steps_per_epoch * config.train.batch_size / seconds,
            }
            if not math.isfinite(row["val_loss"]):
                raise _diverged(int(state.step), checkpoints)
            loop = _advance(loop, row["val_dice_mean"])
            state, loop = _lower_on_plateau(state, loop, config.optimizer, experiment)
            # Before the save: a row without its checkpoint is taken out again, a checkpoint's missing row is lost.
            journal.end_epoch(row)
            checkpoints.save(state, loop, dice=row["val_dice_mean"])
            journal.say(_epoch_line(row, config.train.epochs, is_best=loop.best_epoch == epoch))
        checkpoints.wait()

        best, best_loop = checkpoints.restore(checkpoints.best_step(), like=state)
        results = write_results(workdir, experiment, best, best_epoch=best_loop.epoch, epochs=loop.epoch)
        journal.say(_conclusion(results, workdir))
    checkpoints.close()
    return results


def _train_epoch(
    state: TrainState, experiment: Experiment, journal: Journal, checkpoints: Checkpoints, epoch: int, log_every: int
) -> tuple[TrainState, float]:
    """Makes `steps_per_epoch` updates; returns the state and the mean loss."""
    first = int(state.step)
    last = first + experiment.steps_per_epoch
    losses: list[float] = []
    waiting: list[jax.Array] = []  # losses of steps that the host has not looked at: looking waits for the device
    looked = time.monotonic()
    for step in range(first, last):
        indices = experiment.put_batch(experiment.sampler(step))
        state, loss = experiment.train_step(state, experiment.on_devices, indices)
        waiting.append(loss)
        if len(waiting) >= log_every or step + 1 == last:
            values = [float(value) for value in waiting]
            bad = [not math.isfinite(value) for value in values]
            if any(bad):
                raise _diverged(first + len(losses) + bad.index(True), checkpoints)
            now = time.monotonic()
            rate = len(waiting) * experiment.sampler.batch_size / (now - looked)
            journal.advance(step=step + 1, epoch=epoch, loss=values[-1], images_per_second=rate)
            losses += values
            waiting, looked = [], now
    return state, float(np.mean(losses))


def _validate(state: TrainState, experiment: Experiment) -> dict[str, float]:
    totals, _ = evaluate(experiment, state.variables, experiment.split.val)
    scores = summarize(patient_table(experiment.cohort, totals.sums, experiment.split.val))
    return {
        "val_loss": float(totals.loss / totals.sums.slices.sum()),
        "val_dice_mean": scores["dice_mean"],
        "val_dice_median": scores["dice_median"],
        "val_iou_mean": scores["iou_mean"],
    }


def _advance(loop: LoopState, dice: float) -> LoopState:
    """The loop's memory after an epoch that scored `dice` on the validation patients."""
    epoch = loop.epoch + 1
    if dice > loop.best_dice:
        return LoopState(epoch=epoch, best_dice=dice, best_epoch=epoch, plateau_wait=0)
    return dataclasses.replace(loop, epoch=epoch, plateau_wait=loop.plateau_wait + 1)


def _lower_on_plateau(
    state: TrainState, loop: LoopState, optimizer: ConfigDict, experiment: Experiment
) -> tuple[TrainState, LoopState]:
    if optimizer.schedule != "plateau" or loop.plateau_wait < optimizer.plateau_patience:
        return state, loop
    floor = optimizer.plateau_min / optimizer.learning_rate
    scale = np.float32(max(float(state.learning_rate_scale) * optimizer.plateau_factor, floor))
    state = state.replace(learning_rate_scale=sharding.put(np.asarray(scale), sharding.replicated(experiment.mesh)))
    return state, dataclasses.replace(loop, plateau_wait=0)


def _is_over(loop: LoopState, train: ConfigDict) -> bool:
    stops_early = 0 < train.early_stop_patience <= loop.epoch - loop.best_epoch
    return loop.epoch >= train.epochs or stops_early


def _diverged(step: int, checkpoints: Checkpoints) -> TrainingDiverged:
    checkpoints.wait()
    good = checkpoints.latest_step()
    kept = f"the last good checkpoint is {checkpoints.folder / str(good)}" if good else "no checkpoint was saved yet"
    return TrainingDiverged(
        f"the loss is not a finite number at step {step}; {kept}. Try a lower optimizer.learning_rate, "
        "optimizer.clip_norm=1.0, or optimizer.warmup_epochs=1"
    )


def _introduction(experiment: Experiment, state: TrainState, workdir: Path) -> str:
    split, count = experiment.split, sum(p.size for p in jax.tree.leaves(state.params))
    return (
        f"data {experiment.dataset_folder}\n"
        f"{type(experiment.model).__name__}, {count:,} parameters; {len(split.train)} / {len(split.val)} / "
        f"{len(split.test)} patients to train / validate / test, {len(experiment.sampler.slices)} training slices; "
        f"{experiment.mesh.size} device(s); run folder {workdir}"
    )


def _epoch_line(row: dict, epochs: int, *, is_best: bool) -> str:
    return (
        f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
        f"val Dice {row['val_dice_mean']:.3f} mean, {row['val_dice_median']:.3f} median  "
        f"{row['images_per_second']:.1f} images/s{'  (best)' if is_best else ''}"
    )


def _conclusion(results: dict, workdir: Path) -> str:
    test = results["test"]
    return (
        f"test, {test['patients']} patients, epoch {results['best_epoch']}: 3-D Dice {test['dice_mean']:.3f} mean, "
        f"{test['dice_median']:.3f} median; IoU {test['iou_mean']:.3f} mean. Scores and pictures: {workdir}"
    )
