"""Runs the jobs of a study one after the other, each in a process of its own, so that a crash stays its own."""

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
from experiments.splits import path_of
from experiments.studies import Budget, Job, Study, config_of, settings_of

ROOT = Path(__file__).parents[1]
LEFT, RUNNING, DONE, FAILED, ELSEWHERE = "left", "running", "done", "failed", "running elsewhere"
IN_USE = "is in use by"  # of `run_folder.lock_run_folder`


@dataclass
class Grid:
    """The jobs of a study and how far each is.

    Attributes:
      study: what is asked.
      budget: of the study.
      output: folder of the study.
      source: of the data, or None for the config's.
      jobs: those of this process, in order.
      states: of each job, by name.
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
        """Finds what is finished."""
        self.states = {job.name: DONE if self.is_done(job) else LEFT for job in self.jobs}

    def run_of(self, job: Job) -> Path:
        """The job's run folder."""
        return self.output / "runs" / job.name

    def log_of(self, job: Job) -> Path:
        """The output of the job's process."""
        return self.output / "logs" / f"{job.name.replace('/', '_')}.log"

    def base_of(self, job: Job) -> Job:
        """The training whose checkpoint the job scores; itself where it trains."""
        return job._replace(cell=self.study.baseline) if job.cell.rescores else job

    def is_done(self, job: Job) -> bool:
        """Whether the run folder holds results, and of this very config.

        A key that the finished run does not know came later, and had its default then.
        """
        run = self.run_of(job)
        if not (run / "results.json").exists():
            return False
        expected = flatten(config_of(job, self.budget, source=self.source).to_dict())
        found = flatten(default_config(self.budget.scale).to_dict()) | flatten(read_json(run / "config.json"))
        may_change = MAY_CHANGE - {"train.epochs"}
        return all(found[key] == expected[key] for key in expected.keys() - may_change)

    def progress(self, job: Job) -> str:
        """How far a job is, in words."""
        state = self.states[job.name]
        if state == RUNNING and not job.cell.rescores:
            train = config_of(job, self.budget, source=self.source).train
            epoch = min(len(read_rows(self.run_of(job) / "metrics.jsonl")) + 1, train.epochs)
            return (
                f"epoch {epoch}, {train.max_minutes:g} min" if train.max_minutes else f"epoch {epoch} of {train.epochs}"
            )
        return state

    def command(self, job: Job) -> list[str]:
        """The job as a command: that of any training, but for the two kinds in `cell.py`."""
        module, special = "brainseg_jax.main", []
        if job.cell.rescores:
            module, special = "experiments.cell", [f"--rescores={self.run_of(self.base_of(job))}"]
        elif job.cell.by_slice:
            module, special = "experiments.cell", [f"--by_slice={job.fold}"]
        scale = f":{self.budget.scale}" if self.budget.scale else ""
        settings = settings_of(job, self.budget, source=self.source) | {"split.file": path_of(job, self.output)}
        return [
            *(sys.executable, "-m", module, f"--config={ROOT / 'configs' / 'unet_dice.py'}{scale}"),
            *(f"--config.{key}={value}" for key, value in settings.items()),
            *special,
            f"--workdir={self.run_of(job)}",
        ]


def jobs_of_shard(jobs: list[Job], base_of: Callable[[Job], Job], shard: Shard) -> list[Job]:
    """The jobs of a shard of the trainings; what scores a checkpoint goes with the training that makes it."""
    bases = set(shard.of(list(dict.fromkeys(base_of(job) for job in jobs))))
    return [job for job in jobs if base_of(job) in bases]


def run_all(grid: Grid, show: Callable[[], None]) -> None:
    """Runs what is not finished; a job that fails, or that another process has, does not stop the others.

    Jobs that ran elsewhere are looked at again at the end: their process may have ended without finishing them.

    Args:
      grid: whose states are kept up to date.
      show: called whenever something has changed, and each second.

    Raises:
      TrainingStopped: a signal came; the job under way has saved where it is.
    """
    waiting = [job for job in grid.jobs if grid.states[job.name] != DONE]
    with _stopping() as stop:
        while waiting:
            again = []
            for job in waiting:
                if grid.is_done(job):  # by another process, meanwhile
                    grid.states[job.name] = DONE
                else:
                    _run(grid, job, stop, show)
                if grid.states[job.name] == ELSEWHERE:
                    again.append(job)
                show()
            if len(again) == len(waiting):
                return
            waiting = again


def _run(grid: Grid, job: Job, stop: list[str], show: Callable[[], None]) -> None:
    base = grid.base_of(job)
    if base != job and not grid.is_done(base):
        grid.states[job.name] = ELSEWHERE if grid.states.get(base.name) == ELSEWHERE else FAILED
        grid.reasons[job.name] = f"{base.name}, whose checkpoint it scores, is not finished"
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
            start_new_session=True,  # a Ctrl-C comes to this process, which passes on one signal
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        signalled = False
        while True:
            show()
            try:
                status = process.wait(timeout=1.0)
                break
            except subprocess.TimeoutExpired:
                if stop and not signalled:
                    process.send_signal(signal.SIGTERM)
                    signalled = True
    words = log.read_text(errors="replace").strip()
    in_use = status == 2 and IN_USE in words
    if run.exists() and not in_use:
        _add_seconds(run / "time.json", time.monotonic() - started)
    if stop and status != 0:
        grid.states[job.name] = LEFT
    else:
        grid.states[job.name] = DONE if status == 0 else ELSEWHERE if in_use else FAILED
        lines = words.splitlines()
        errors = [line for line in lines if line.startswith("error: ")] or lines or ["no output"]
        grid.reasons[job.name] = f"exit status {status}: {errors[-1]} ({log})"
    if stop:
        raise TrainingStopped(f"stopped by {stop[0]}; the same command goes on from what is finished")


@contextmanager
def _stopping() -> Iterator[list[str]]:
    """A list that is empty until SIGTERM or SIGINT comes, and holds its name then."""
    came: list[str] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda n, _: came.append(signal.Signals(n).name)) for number in numbers]
    try:
        yield came
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _end_with_parent() -> None:
    """Asks Linux to kill this process when its parent is killed, so that a study started again finds the folder free.

    It loses what it made since its last checkpoint. SIGTERM would save that, but only after a compilation under way.
    """
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _add_seconds(path: Path, seconds: float) -> None:
    """Wall time of all attempts that ended; those that were killed with their parent are not in it."""
    try:
        before = json.loads(path.read_text())["seconds"]
    except (OSError, ValueError, KeyError):
        before = 0.0
    write_json(path, {"seconds": before + seconds})


def report_failures(grid: Grid) -> int:
    """Logs every job that failed; returns how many."""
    failed = [job.name for job in grid.jobs if grid.states[job.name] == FAILED]
    for name in failed:
        logging.error("%s failed: %s", name, grid.reasons[name])
    return len(failed)
