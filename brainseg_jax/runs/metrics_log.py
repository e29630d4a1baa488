"""Output of a run during training, by process 0: console, progress bar, `metrics.jsonl`, TensorBoard and MLflow."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from brainseg_jax.data.splits import PARTS
from brainseg_jax.errors import InputError, StorageError
from brainseg_jax.files import write_whole
from brainseg_jax.inference.quality import MIN_PATIENTS
from brainseg_jax.runs.mlflow_log import MlflowLog
from brainseg_jax.training.experiment import Experiment
from brainseg_jax.training.state import TrainState

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class MetricsLog:
    """Writes a row per epoch to `metrics.jsonl`, TensorBoard and (optional) MLflow; prints lines and a progress bar.

    Use as a context manager.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        epochs: int,
        steps_per_epoch: int,
        resumed_epoch: int,
        enabled: bool,
        minutes: float = 0.0,
        spent_seconds: float = 0.0,
        mlflow: str = "",
        config: dict | None = None,
    ):
        """Starts the MLflow run if `mlflow` is given; other outputs are opened later.

        Args:
          workdir: run folder.
          epochs: epochs of the whole run.
          steps_per_epoch: updates per epoch.
          resumed_epoch: number of finished epochs; 0 in a new run.
          enabled: False on all processes except one. Disabled, it writes nothing.
          minutes: time limit of training and validation, which the bar shows in place of the steps; 0: no limit.
          spent_seconds: part of this time spent before this start.
          mlflow: folder or address of MLflow; empty: no MLflow.
          config: config of the run, for MLflow.

        Raises:
          InputError: MLflow is not installed, or cannot use `mlflow`.
        """
        self.progress = Progressed(epochs=epochs, minutes=minutes)
        self._enabled, self._resumed_epoch = enabled, resumed_epoch
        self.path = workdir / "metrics.jsonl"
        self._console = Console(quiet=not enabled, highlight=False)
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.fields[done]}"),
            TextColumn("{task.fields[rate]} images/s  loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("remaining"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            speed_estimate_period=600.0,  # seconds; the bar moves only when the loss is read
        )
        self._task = self._bar.add_task(
            "",
            total=60.0 * minutes if minutes else epochs * steps_per_epoch,
            completed=int(spent_seconds) if minutes else resumed_epoch * steps_per_epoch,
            done="",
            epoch=resumed_epoch + 1,
            rate="-",
            loss="-",
        )

        self._mlflow = None
        self._scores: dict = {}
        if mlflow and enabled:
            rows = read_rows(self.path)
            self._mlflow = MlflowLog(mlflow, workdir, config=config or {}, rows=rows)

    def __enter__(self) -> "MetricsLog":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.stop()
        if self._mlflow:
            self._mlflow.close(kind.__name__ if kind else None, self._scores)
        if "_board" in self.__dict__:
            self._board.close()

    @functools.cached_property
    def _board(self) -> "SummaryWriter":
        """The TensorBoard writer, created at the end of the first epoch: its package imports torch if installed."""
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(self.path.with_name("tensorboard")), purge_step=self._resumed_epoch + 1)

    def print(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, markup=False, soft_wrap=True)

    def advance(
        self, *, step: int, epoch: int, loss: float, images_per_second: float, spent_seconds: float = 0.0
    ) -> None:
        """Moves the bar to `step` finished updates, or with a time limit to `spent_seconds`."""
        clock = self.progress.minutes > 0.0
        self._bar.update(
            self._task,
            completed=spent_seconds if clock else step,
            done=self.progress.clock(spent_seconds) if clock else f"{step}/{self._bar.tasks[0].total}",
            epoch=epoch,
            loss=f"{loss:.4f}",
            rate=f"{images_per_second:.1f}",
        )

    def end_epoch(self, row: dict, *, images_per_second: float) -> None:
        """Writes the metrics of one epoch. The speed goes only to TensorBoard: equal runs have equal metrics files.

        Args:
          row: "epoch" and numbers.
          images_per_second: training speed.

        Raises:
          StorageError: the metrics cannot be written.
        """
        if not self._enabled:
            return
        try:
            board = self._board
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise StorageError(
                f"{self.path} cannot be written ({error}); make room or make it writable, then the same command "
                "resumes from the latest checkpoint"
            ) from error
        for key, value in {**row, "images_per_second": images_per_second}.items():
            if key != "epoch":
                board.add_scalar(key, value, row["epoch"])
        board.flush()
        if self._mlflow:
            self._mlflow.add([row])

    def end_run(self, results: dict, workdir: Path) -> None:
        """Prints the final lines of a run; `results`: content of `results.json`."""
        self._scores = results["test"].get("mean", results["test"])
        self.print(conclusion(results, workdir))


@dataclasses.dataclass(frozen=True)
class Progressed:
    """Formats the progress of a run: in epochs or, with a time limit (`minutes` > 0), in minutes too."""

    epochs: int
    minutes: float

    def clock(self, seconds: float) -> str:
        """The time spent on training and validation, and the limit."""
        return f"{seconds / 60:.1f} of {self.minutes:g} min"

    def __call__(self, epoch: int, seconds: float) -> str:
        """The epoch and the total number of epochs; or the epoch, the time spent and the limit."""
        return f"epoch {epoch}, {self.clock(seconds)}" if self.minutes else f"epoch {epoch}/{self.epochs}"


def cut_rows(path: Path, last_epoch: int) -> None:
    """Removes the rows after `last_epoch` from `metrics.jsonl`, for epochs to be trained again; creates a missing file.

    Raises:
      InputError: the file is damaged.
      StorageError: the file cannot be written.
    """
    remaining = "".join(json.dumps(row) + "\n" for row in read_rows(path) if row["epoch"] <= last_epoch)
    try:
        write_whole(path, lambda part: part.write_text(remaining))
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error}); make room or make it writable, and start again"
        ) from error


def read_rows(path: Path) -> list[dict]:
    """The complete lines of `metrics.jsonl`. A kill can truncate the last line; it is ignored. Empty without a file."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    try:
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); correct the line, or give a new --workdir") from error


def introduction(experiment: Experiment, state: TrainState, workdir: Path) -> str:
    """The first lines of a run: data, network, number of patients and folder."""
    cohort = experiment.cohort
    split, count = experiment.evaluation.split, sum(p.size for p in jax.tree.leaves(state.params))
    patients = " / ".join(str(len(cohort.patients_of(getattr(split, part)))) for part in PARTS)
    lines = [f"planned {key}={value}: {reason}" for key, value, reason in experiment.planned]
    return "\n".join(lines + [""] * bool(lines)) + (
        f"data {cohort.folder}; {experiment.residence}\n"
        f"{type(experiment.model).__name__}, {count:,} parameters; {patients} patients to train / validate / test, "
        f"{len(experiment.sampler.slices)} training slices; "
        f"{experiment.mesh.size} device(s); run folder {workdir}"
    )


def epoch_line(row: dict, progress: str, images_per_second: float, *, is_best: bool) -> str:
    """The console line of an epoch. `row`: line of `metrics.jsonl`; `progress`: text from `Progressed`."""
    return (
        f"{progress}  loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
        f"val Dice {row['val_dice_mean']:.3f} mean, {row['val_dice_median']:.3f} median  "
        f"{images_per_second:.1f} images/s{'  (best)' if is_best else ''}"
    )


def conclusion(results: dict, workdir: Path) -> str:
    """The last lines of a run; `results`: content of `results.json`."""
    test = results["test"].get("mean", results["test"])
    return "".join(f"{line}\n" for line in _quality_lines(results["expected_dice"])) + (
        f"test, {test['patients']} patients, {results['kept']} epoch, {results['epoch']}: 3-D Dice "
        f"{test['dice_mean']:.3f} mean, {test['dice_median']:.3f} median; IoU {test['iou_mean']:.3f} mean. Scores and "
        f"pictures: {workdir}"
    )


def _quality_lines(quality: dict) -> list[str]:
    """One line per target on the expected Dice of validation and test cases; `quality`: as in `results.json`."""
    lines = []
    for name, block in {"": quality}.items() if "cases" in quality else quality.items():
        line = f"expected Dice{f' of {name}' if name else ''}: "
        if "covered" in block:
            line += (
                f"{block['covered']} of {block['masks']} validation and test cases are in their 90 % interval "
                f"(leave-one-out), mean width {block['width']:.2f}, mean error {block['error']:.3f}"
            )
        else:
            line += f"none, since fewer than {MIN_PATIENTS} validation and test patients have masks"
        lines.append(line)
    return lines
