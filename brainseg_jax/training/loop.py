"""The loop of a training: build or resume, train an epoch, validate, save; at the end score the test patients."""

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from brainseg_jax.config import idle_keys
from brainseg_jax.data.cohort import Cohort
from brainseg_jax.data.load_cohort import load_cohort
from brainseg_jax.errors import TrainingDiverged, TrainingStopped
from brainseg_jax.files import check_folder
from brainseg_jax.runs.checkpoint import Checkpoints, saved_steps
from brainseg_jax.runs.metrics_log import MetricsLog, cut_rows, epoch_line, introduction
from brainseg_jax.runs.processes import on_first_process
from brainseg_jax.runs.run_folder import claim_run_folder, lock_run_folder
from brainseg_jax.runs.training_scans import write_training_scans
from brainseg_jax.training.experiment import Experiment, build_experiment
from brainseg_jax.training.loop_state import LoopState, add_time, advance, is_over, lower_on_plateau, warn_of_collapse
from brainseg_jax.training.state import TrainState
from brainseg_jax.training.step import StepReport
from brainseg_jax.training.stopping import StopSignal


def train(config: ConfigDict, workdir: Path, *, load: Callable[..., Cohort] = load_cohort, mlflow: str = "") -> dict:
    """Trains a network or resumes a training, then scores its best or last checkpoint on the test patients.

    Args:
      config: From `default_config`, with overrides.
      workdir: The run folder. If it holds a run with a compatible config, that run resumes; a finished one is only
        scored again.
      load: Reads the prepared data, see `build_experiment`.
      mlflow: A folder, or the address of an MLflow server, that also receives the metrics; empty: off.

    Returns:
      The content of `results.json`.

    Raises:
      InputError: The config, the data or the run folder cannot be used. An existing run in the folder is not changed.
      TrainingDiverged: Loss or gradient is not finite more often than `train.skip_nonfinite` allows, or the validation
        loss is not finite.
      StorageError: The run folder cannot be written to, or all checkpoints in it are damaged.
      TrainingStopped: SIGTERM or SIGINT came. The training state is saved, and the same command continues.
    """
    check_folder(workdir, "--workdir")
    experiment = build_experiment(config, load=load, run=workdir)
    config = experiment.config
    if jax.process_index() == 0 and (idle := idle_keys(config)):
        logging.warning("with the other settings, these have no effect: %s", "; ".join(idle))
    has_checkpoints = bool(saved_steps(workdir / "checkpoints"))
    # `first_state` can raise InputError, so it runs before the first write. With checkpoints, only shapes are needed.
    state = experiment.initial_state if has_checkpoints else experiment.first_state()
    loop = LoopState()
    with ExitStack() as stack, StopSignal() as stop:
        stack.callback(experiment.feed.close)
        on_first_process("lock the run folder", lambda: stack.enter_context(lock_run_folder(workdir)))
        claim_run_folder(workdir, config, experiment.cohort, experiment.evaluation.split)
        checkpoints = Checkpoints(workdir / "checkpoints")
        if (restored := checkpoints.recover(like=state, keep=config.train.keep)) is not None:
            state, loop = restored
            logging.info("resuming from step %d, in epoch %d", int(state.step), loop.epoch + 1)
        elif has_checkpoints:  # none of them is complete
            state = experiment.first_state()
        on_first_process("cut the metrics log", lambda: cut_rows(workdir / "metrics.jsonl", loop.epoch), quiet=True)
        metrics_log = stack.enter_context(
            MetricsLog(
                workdir,
                epochs=config.train.epochs,
                steps_per_epoch=experiment.steps_per_epoch,
                resumed_epoch=loop.epoch,
                enabled=jax.process_index() == 0,
                minutes=config.train.max_minutes,
                spent_seconds=loop.seconds,
                mlflow=mlflow,
                config=config.to_dict(),
            )
        )
        metrics_log.print(introduction(experiment, state, workdir))
        run = _Run(config, workdir, experiment, checkpoints, metrics_log, stop)
        finished = partial(is_over, epochs=config.train.epochs, early_stop_patience=config.train.early_stop_patience)
        if jax.process_index() == 0 and not finished(loop):
            (workdir / "results.json").unlink(missing_ok=True)  # from an earlier call with fewer epochs
        while not finished(loop):
            started, first_step = time.monotonic(), int(state.step)
            state, loop = _train_epoch(state, loop, run)
            seconds, steps = time.monotonic() - started, int(state.step) - first_step
            validating = time.monotonic()
            row = {
                "epoch": loop.epoch + 1,
                "train_loss": float(np.mean(loop.losses)),
                **_validate(state, experiment),
                "learning_rate": float(experiment.schedule(int(state.step)) * state.learning_rate_scale),
            }
            if not math.isfinite(row["val_loss"]):
                raise _diverged(f"the validation loss is not a finite number after step {int(state.step)}", run)
            state, loop = _spend_time(state, loop, time.monotonic() - validating, run, validated=True)
            speed = steps * config.train.batch_size / seconds
            loop = advance(loop, row["val_dice_mean"])
            warn_of_collapse(loop)
            state, loop = _lower_rate(state, loop, run)
            # The row comes before the checkpoint: a resumed run removes a row without a checkpoint, but it never
            # rewrites a missing row.
            write = partial(metrics_log.end_epoch, row, images_per_second=speed)
            on_first_process("write the metrics log", write, quiet=True)
            keeps_last = config.train.keep == "last"
            checkpoints.save(state, loop, score=loop.epoch if keeps_last else row["val_dice_mean"])
            progress = metrics_log.progress(loop.epoch, loop.seconds)
            metrics_log.print(epoch_line(row, progress, speed, is_best=loop.best_epoch == loop.epoch))
            if stop.came_to_any():
                raise _stopped(run, state)
        checkpoints.wait()
        results = _score(state, loop, run)
        metrics_log.end_run(results, workdir)
        checkpoints.close()
    return results


def _score(state: TrainState, loop: LoopState, run: "_Run") -> dict:
    """Scores the checkpoint of `train.keep` on the test patients. A signal stops it between two batches."""
    from brainseg_jax.runs.results import write_results  # imports plots, which is slow: only at the end

    kept_state, kept_loop = run.checkpoints.restore(run.checkpoints.best_step(), like=state)
    run.stop.announcement = "the training is finished; stopping before the next batch is scored"

    def stop_on_signal() -> None:
        if run.stop.came_to_any():
            run.checkpoints.close()
            raise TrainingStopped(
                f"stopped by {run.stop.name or 'a signal to another process'} while scoring; the training "
                f"is finished and saved in {run.checkpoints.folder}; the same command scores it"
            )

    evaluation = run.experiment.evaluation
    evaluation.assessor.runner.before_batch = stop_on_signal
    try:
        run.metrics_log.print(
            write_training_scans(run.workdir, evaluation.cohort, evaluation.split, before_case=stop_on_signal)
        )
        return write_results(run.workdir, evaluation, kept_state, epoch=kept_loop.epoch, epochs=loop.epoch)
    finally:
        evaluation.assessor.runner.before_batch = lambda: None


@dataclasses.dataclass(frozen=True)
class _Run:
    """The objects that do not change during a run."""

    config: ConfigDict
    workdir: Path
    experiment: Experiment
    checkpoints: Checkpoints
    metrics_log: MetricsLog
    stop: StopSignal


def _train_epoch(state: TrainState, loop: LoopState, run: _Run) -> tuple[TrainState, LoopState]:
    """Runs the remaining steps of an epoch, up to the time limit, and adds their losses to the loop state.

    Every `log_every` steps it checks the reports of the steps (which waits for the device), failed writes, and
    whether any process received a signal.
    """
    experiment = run.experiment
    end_step = (loop.epoch + 1) * experiment.steps_per_epoch
    unchecked: list[StepReport] = []  # reports that the host has not read yet
    checked_at = time.monotonic()
    for step in range(int(state.step), end_step):
        state, report = experiment.train_step(state, experiment.feed(step))
        unchecked.append(report)
        epoch_ends = step + 1 == end_step
        if len(unchecked) < run.config.train.log_every and not epoch_ends and not run.stop.may_stop_now():
            continue
        loop = _check_reports(unchecked, step + 1 - len(unchecked), loop, run)
        run.checkpoints.check()
        now = time.monotonic()
        seconds = now - checked_at
        run.metrics_log.advance(
            step=step + 1,
            epoch=loop.epoch + 1,
            loss=loop.losses[-1] if loop.losses else math.nan,
            images_per_second=len(unchecked) * experiment.sampler.batch_size / seconds,
            spent_seconds=loop.seconds + seconds,
        )
        unchecked, checked_at = [], now
        state, loop = _spend_time(state, loop, seconds, run)
        if loop.out_of_time:
            break
        if not epoch_ends and run.stop.came_to_any():  # after the last step of an epoch, validation comes first
            run.checkpoints.save(state, loop, score=None)
            raise _stopped(run, state)
    if not loop.losses:
        raise _diverged("loss or gradient was not a finite number in any step of this epoch", run)
    return state, loop


def _check_reports(reports: list[StepReport], first: int, loop: LoopState, run: _Run) -> LoopState:
    """Adds the finite losses of the steps from `first` on, and counts the skipped steps.

    Raises TrainingDiverged if there are more than `train.skip_nonfinite`.
    """
    reports = jax.device_get(reports)
    for step, report in enumerate(reports, start=first):
        if report.finite:
            continue
        loop = dataclasses.replace(loop, skipped_steps=loop.skipped_steps + 1)
        cohort = run.experiment.cohort
        names = sorted({cohort.cases[i] for i in cohort.case_index[run.experiment.sampler(step)]})
        message = f"loss or gradient is not a finite number (loss {float(report.loss)}) at step {step + 1}, cases "
        message += ", ".join(names)
        if loop.skipped_steps > run.config.train.skip_nonfinite:
            raise _diverged(message, run)
        logging.warning(
            "%s; step skipped, %d of at most %d", message, loop.skipped_steps, run.config.train.skip_nonfinite
        )
    losses = tuple(float(report.loss) for report in reports if report.finite)
    return dataclasses.replace(loop, losses=loop.losses + losses)


def _spend_time(
    state: TrainState, loop: LoopState, seconds: float, run: _Run, *, validated: bool = False
) -> tuple[TrainState, LoopState]:
    """Adds seconds to those of the time limit; a cosine learning rate falls with them. The end of the time stays."""
    limit = 60.0 * run.config.train.max_minutes
    if not limit:
        return state, loop
    if validated:
        loop = dataclasses.replace(loop, validation_seconds=seconds)
    cosine, was_over = run.config.optimizer.schedule == "cosine", loop.out_of_time
    state, loop = add_time(state, loop, seconds, limit=limit, cosine=cosine, mesh=run.experiment.mesh)
    return state, dataclasses.replace(loop, out_of_time=loop.out_of_time or was_over)


def _validate(state: TrainState, experiment: Experiment) -> dict[str, float]:
    evaluation = experiment.evaluation
    network = evaluation.with_variables(state.variables)
    scores = evaluation.assessor.quick(network, evaluation.split.val, evaluation.posts)
    return {f"val_{name}": value for name, value in scores.items()}


def _lower_rate(state: TrainState, loop: LoopState, run: _Run) -> tuple[TrainState, LoopState]:
    opt = run.config.optimizer
    if opt.schedule != "plateau":
        return state, loop
    return lower_on_plateau(
        state,
        loop,
        patience=opt.plateau_patience,
        factor=opt.plateau_factor,
        minimum=opt.plateau_min / opt.learning_rate,
        mesh=run.experiment.mesh,
    )


def _stopped(run: _Run, state: TrainState) -> TrainingStopped:
    run.checkpoints.close()
    return TrainingStopped(
        f"stopped by {run.stop.name or 'a signal to another process'}; step {int(state.step)} is saved in "
        f"{run.checkpoints.folder}; the same command resumes from there"
    )


def _diverged(message: str, run: _Run) -> TrainingDiverged:
    run.checkpoints.wait()
    steps = run.checkpoints.steps()
    saved = f"the last good checkpoint is {run.checkpoints.folder / str(steps[-1])}" if steps else "no checkpoint yet"
    return TrainingDiverged(
        f"{message}; {saved}. Try a lower optimizer.learning_rate, optimizer.clip_norm=1.0, optimizer.warmup_epochs=1, "
        "or skip such steps: train.skip_nonfinite=10"
    )
