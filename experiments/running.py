"""Runs the jobs of a study one after another, each in a separate process, so that a crash affects one job only."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import jax
from absl import logging

from brainseg_jax.config import default_config
from brainseg_jax.errors import TrainingStopped
from brainseg_jax.evaluation.scores import write_json
from brainseg_jax.runs.metrics_log import read_rows
from brainseg_jax.runs.run_folder import MAY_CHANGE, flatten
from brainseg_jax.runs.trained import read_json
from brainseg_jax.shards import Shard
from experiments.splits import split_path
from experiments.studies import Budget, Job, Study, config_of, settings_of

ROOT = Path(__file__).parents[1]
PENDING, RUNNING, DONE, FAILED, ELSEWHERE = "pending", "running", "done", "failed", "running elsewhere"
IN_USE = "is in use by"  # in the message of `run_folder.lock_run_folder`


@dataclass
class StudyGrid:
    """The jobs of a study and their states.

    Attributes:
      study: cells and folds of the study.
      budget: training length of each cell.
      output: folder of the study.
      source: the data; None: those of the config.
      jobs: the jobs of this process, in order.
      states: state of each job, by name.
      reasons: the last line of a failed job's output, by name.
    """

    study: Study
    budget: Budget
    output: Path
    source: str | None
    jobs: list[Job]
    states: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        """Finds the finished jobs."""
        self.states = {job.name: DONE if self.is_done(job) else PENDING for job in self.jobs}

    def run_of(self, job: Job) -> Path:
        """Returns the job's run folder."""
        return self.output / "runs" / job.name

    def log_of(self, job: Job) -> Path:
        """Returns the file for the output of the job's process."""
        return self.output / "logs" / f"{job.name.replace('/', '_')}.log"

    def base_of(self, job: Job) -> Job:
        """Returns the training of the checkpoint that the job scores; for a training, the job itself."""
        return job._replace(cell=self.study.baseline) if job.cell.rescores else job

    def is_done(self, job: Job) -> bool:
        """Reports whether the run folder has results of this config.

        The keys of `MAY_CHANGE` are not compared, except for the number of epochs. A key that is missing in the
        finished run was added later; the run had its default value.
        """
        run = self.run_of(job)
        if not (run / "results.json").exists():
            return False
        expected = flatten(config_of(job, self.budget, source=self.source).to_dict())
        actual = flatten(default_config(self.budget.scale).to_dict()) | flatten(read_json(run / "config.json"))
        may_change = MAY_CHANGE - {"train.epochs"}
        return all(actual[key] == expected[key] for key in expected.keys() - may_change)

    def progress(self, job: Job) -> str:
        """Describes the progress of a job."""
        state = self.states[job.name]
        if state == RUNNING and not job.cell.rescores:
            train = config_of(job, self.budget, source=self.source).train
            epoch = min(len(read_rows(self.run_of(job) / "metrics.jsonl")) + 1, train.epochs)
            return (
                f"epoch {epoch}, {train.max_minutes:g} min" if train.max_minutes else f"epoch {epoch} of {train.epochs}"
            )
        return state

    def command(self, job: Job) -> list[str]:
        """Returns the job as a command: `brainseg_jax.main`, except for the two kinds in `cell.py`."""
        module, special = "brainseg_jax.main", []
        if job.cell.rescores:
            module, special = "experiments.cell", [f"--rescores={self.run_of(self.base_of(job))}"]
        elif job.cell.by_slice:
            module, special = "experiments.cell", [f"--by_slice={job.fold}"]
        scale = f":{self.budget.scale}" if self.budget.scale else ""
        settings = settings_of(job, self.budget, source=self.source) | {"split.file": split_path(job, self.output)}
        return [
            *(sys.executable, "-m", module, f"--config={ROOT / 'configs' / 'unet_dice.py'}{scale}"),
            *(f"--config.{key}={value}" for key, value in settings.items()),
            *special,
            f"--workdir={self.run_of(job)}",
        ]


def jobs_of_shard(jobs: list[Job], base_of: Callable[[Job], Job], shard: Shard) -> list[Job]:
    """Returns the jobs of a shard. A job that scores a checkpoint belongs to the shard of its training."""
    bases = set(shard.of(list(dict.fromkeys(base_of(job) for job in jobs))))
    return [job for job in jobs if base_of(job) in bases]


def run_all(grid: StudyGrid, show: Callable[[], None]) -> None:
    """Runs all unfinished jobs. A job that fails, or that another process runs, does not stop the others.

    Jobs of other processes are tried again, until all that remain are still running there.

    Args:
      grid: the study; the function updates its states.
      show: called after each change, and every second.

    Raises:
      TrainingStopped: a signal arrived; the running job has saved a checkpoint.
    """
    unfinished = [job for job in grid.jobs if grid.states[job.name] != DONE]
    with _stopping() as stop:
        while unfinished:
            elsewhere = []
            for job in unfinished:
                if grid.is_done(job):  # another process finished it meanwhile
                    grid.states[job.name] = DONE
                else:
                    _run(grid, job, stop, show)
                if grid.states[job.name] == ELSEWHERE:
                    elsewhere.append(job)
                show()
            if len(elsewhere) == len(unfinished):
                return
            unfinished = elsewhere


def _run(grid: StudyGrid, job: Job, stop: list[str], show: Callable[[], None]) -> None:
    base = grid.base_of(job)
    if base != job and not grid.is_done(base):
        grid.states[job.name] = ELSEWHERE if grid.states.get(base.name) == ELSEWHERE else FAILED
        grid.reasons[job.name] = f"{base.name} is not finished; this cell scores its checkpoint"
        return
    grid.states[job.name] = RUNNING
    log, run = grid.log_of(job), grid.run_of(job)
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            grid.command(job),
            cwd=ROOT,
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only this process, which forwards one signal
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        signal_sent = False
        while True:
            show()
            try:
                status = process.wait(timeout=1.0)
                break
            except subprocess.TimeoutExpired:
                if stop and not signal_sent:
                    process.send_signal(signal.SIGTERM)
                    signal_sent = True
    output = log.read_text(errors="replace").strip()
    in_use = status == 2 and IN_USE in output
    if run.exists() and not in_use:
        _add_seconds(run / "time.json", time.monotonic() - started)
    if stop and status != 0:
        grid.states[job.name] = PENDING
    else:
        grid.states[job.name] = DONE if status == 0 else ELSEWHERE if in_use else FAILED
        lines = output.splitlines()
        errors = [line for line in lines if line.startswith("error: ")] or lines or ["no output"]
        grid.reasons[job.name] = f"exit status {status}: {errors[-1]} ({log})"
    if stop:
        raise TrainingStopped(f"stopped by {stop[0]}; the same command continues after the finished cells")


@contextmanager
def _stopping() -> Iterator[list[str]]:
    """Yields a list that is empty until SIGTERM or SIGINT arrives, and then contains its name."""
    received: list[str] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = [signal.signal(number, lambda n, _: received.append(signal.Signals(n).name)) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def _end_with_parent() -> None:
    """Asks Linux to kill this process when its parent is killed, so that a restarted study finds the run folder free.

    The run loses its steps since the last checkpoint. SIGTERM would save them, but only after any running compilation.
    """
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _add_seconds(path: Path, seconds: float) -> None:
    """Adds up the wall time of all attempts that ended; attempts killed with their parent are missing."""
    try:
        previous = json.loads(path.read_text())["seconds"]
    except (OSError, ValueError, KeyError):
        previous = 0.0
    write_json(path, {"seconds": previous + seconds})


def report_failures(grid: StudyGrid) -> int:
    """Logs every failed job and returns their number."""
    failed = [job.name for job in grid.jobs if grid.states[job.name] == FAILED]
    for name in failed:
        logging.error("%s failed: %s", name, grid.reasons[name])
    return len(failed)
