"""Runs all cells of a study and writes its tables.

    python -m experiments.ablation --study=reproduce:cpu --output=runs/reproduce

`studies.py` defines the studies. The same command resumes an unfinished study. `--cell=i/n` runs one of n shards, for
job arrays (`ablation.slurm`). `--tables` runs nothing: it writes the tables again, from finished runs or, without run
folders, from `scores.csv` and `runs.csv`.
"""

import socket
from pathlib import Path

import jax
from absl import flags, logging
from rich.console import Console
from rich.live import Live
from rich.table import Table

from brainseg_jax import cli
from brainseg_jax.data import prepare_source
from brainseg_jax.data.load_cohort import NO_SLICES, load_cohort
from brainseg_jax.errors import InputError
from brainseg_jax.files import check_folder
from brainseg_jax.shards import parse_shard
from experiments.panel import draw_study_panel
from experiments.running import (
    DONE,
    ELSEWHERE,
    FAILED,
    PENDING,
    RUNNING,
    StudyGrid,
    jobs_of_shard,
    report_failures,
    run_all,
)
from experiments.splits import write_splits
from experiments.studies import Budget, Job, Study, config_of, jobs, parse_study
from experiments.tables import SCORES, collect, write_tables

STUDY = flags.DEFINE_string("study", None, "NAME or NAME:SCALE; studies.py lists both.")
OUTPUT = flags.DEFINE_string("output", None, "Folder of the study.")
SOURCE = flags.DEFINE_string("source", None, "The data, as in --config.data.source. Default: that of the budget.")
CELL = flags.DEFINE_string("cell", "0/1", "i/n: run shard i of n shards of the trainings; i counts from 0.")
TABLES = flags.DEFINE_bool("tables", False, "Run nothing; write the tables of the finished runs.")


def main(_: list[str]) -> None:
    """Runs the study that the flags name and writes its tables."""
    study, budget = parse_study(STUDY.value)
    output = Path(OUTPUT.value).expanduser().absolute()
    check_folder(output, "--output")
    if not jax.config.jax_compilation_cache_dir:  # per host: hosts may differ in CPU instructions
        jax.config.update("jax_compilation_cache_dir", str(output / "compiled" / socket.gethostname()))
    shard = parse_shard(CELL.value, "--cell")
    source = SOURCE.value
    if source and Path(source).expanduser().exists():
        source = str(Path(source).expanduser().absolute())
    name = STUDY.value.partition(":")[0]
    all_jobs = list(jobs(study, budget))
    if not TABLES.value:
        all_jobs = prepare(all_jobs, study, budget, output, source)
    grid = StudyGrid(study, budget, output, source, all_jobs)
    failed = 0
    if not TABLES.value:
        grid.jobs = jobs_of_shard(all_jobs, grid.base_of, shard)
        with View(grid) as view:
            run_all(grid, view.show)
        failed = report_failures(grid)
        grid.jobs = all_jobs
    if (output / "runs").exists():
        collect(name, grid)
        draw_study_panel(grid)
    elif not (output / SCORES).exists():
        raise InputError(f"--output={output}: no study here, neither runs nor {SCORES}; run it without --tables")
    write_tables(study, output)
    if failed:
        raise SystemExit(1)


def prepare(all_jobs: list[Job], study: Study, budget: Budget, output: Path, source: str | None) -> list[Job]:
    """Prepares the data and writes the splits. Returns the jobs without those that would repeat the baseline.

    Raises:
      InputError: the study has runs of other data; nothing is written then.
    """
    config = config_of(all_jobs[0], budget, source=source)
    folder = prepare_source.prepare(config.data.source, config.data.dir or None)
    cohort = load_cohort(folder, image_size=16, normalization="rescale", slices=NO_SLICES)
    remaining = write_splits(all_jobs, study, cohort, output, seed=config.split.seed)
    for job in all_jobs:
        if job not in remaining:
            logging.warning("%s is skipped: the training set has no more patients than this cell uses", job.name)
    return remaining


class View:
    """Shows the progress of a study: a table on a terminal, else one line whenever a job starts or ends."""

    def __init__(self, grid: StudyGrid):
        """Prepares the display; prints nothing yet."""
        self._grid, self._console, self._shown_states = grid, Console(highlight=False), dict(grid.states)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> "View":
        if self._live:
            self._live.start()
        self.show()
        return self

    def __exit__(self, *_: object) -> None:
        self.show()
        if self._live:
            self._live.stop()
        self._console.print(self._counts())

    def show(self) -> None:
        """Updates the display."""
        if self._live:
            self._live.update(self._table(), refresh=True)
            return
        for name, state in self._grid.states.items():
            if state != self._shown_states[name]:
                self._shown_states[name] = state
                self._console.print(f"{self._counts()}: {name} {state}", soft_wrap=True)

    def _counts(self) -> str:
        states = list(self._grid.states[job.name] for job in self._grid.jobs)
        return ", ".join(f"{states.count(s)} {s}" for s in (DONE, RUNNING, PENDING, ELSEWHERE, FAILED) if s in states)

    def _table(self) -> Table:
        table = Table("cell", "done", "now", PENDING, FAILED, title=self._counts())
        for cell in self._grid.study.cells:
            cell_jobs = [job for job in self._grid.jobs if job.cell == cell]
            if not cell_jobs:
                continue
            states = [self._grid.states[job.name] for job in cell_jobs]
            running = [
                f"fold {job.fold}, seed {job.seed}: {self._grid.progress(job)}"
                for job, state in zip(cell_jobs, states, strict=True)
                if state in (RUNNING, ELSEWHERE)
            ]
            counts = (
                f"{states.count(DONE)} of {len(cell_jobs)}",
                "\n".join(running),
                states.count(PENDING),
                states.count(FAILED),
            )
            table.add_row(cell.label, *(str(value or "") for value in counts))
        return table


if __name__ == "__main__":
    flags.mark_flags_as_required(["study", "output"])
    cli.run(main)
