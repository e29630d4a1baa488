"""What a run tells while it trains, by process 0: console, progress bar, `metrics.jsonl`, TensorBoard, MLflow."""

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
from brainseg_jax.inference.quality import LEAST_PATIENTS
from brainseg_jax.runs.mlflow_log import MlflowLog
from brainseg_jax.training.experiment import Experiment
from brainseg_jax.training.state import TrainState

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class Journal:
    """Rows by epoch in `metrics.jsonl`, TensorBoard and, if wanted, MLflow; lines on the console, one bar for the run.

    Use as a context manager.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        epochs: int,
        steps_per_epoch: int,
        resumed_epoch: int,
        speaks: bool,
        minutes: float = 0.0,
        spent_seconds: float = 0.0,
        mlflow: str = "",
        config: dict | None = None,
    ):
        """Opens nothing yet.

        Args:
          workdir: the run folder.
          epochs: of the whole run.
          steps_per_epoch: updates an epoch.
          resumed_epoch: epochs already finished; 0 in a new run.
          speaks: False on all processes but one: then nothing is written.
          minutes: > 0: the limit of training and validation, which the bar shows in place of the steps.
          spent_seconds: of it, before this start.
          mlflow: where MLflow gets the same figures, a folder or an address; empty: nowhere.
          config: of the run, for MLflow.

        Raises:
          InputError: MLflow is not installed, or cannot use what is given.
        """
        self.progress = Progressed(epochs=epochs, minutes=minutes)
        self._speaks, self._resumed_epoch = speaks, resumed_epoch
        self.path = workdir / "metrics.jsonl"
        self._console = Console(quiet=not speaks, highlight=False)
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.fields[done]}"),
            TextColumn("{task.fields[rate]} images/s  loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            speed_estimate_period=600.0,  # seconds; the bar moves only when the loss is looked at
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
        if mlflow and speaks:
            rows = read_rows(self.path)
            self._mlflow = MlflowLog(mlflow, workdir, config=config or {}, rows=rows)

    def __enter__(self) -> "Journal":
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
        """Of TensorBoard; first asked for when an epoch is over, as its package loads torch where there is one."""
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(self.path.with_name("tensorboard")), purge_step=self._resumed_epoch + 1)

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, markup=False, soft_wrap=True)

    def advance(
        self, *, step: int, epoch: int, loss: float, images_per_second: float, spent_seconds: float = 0.0
    ) -> None:
        """Moves the bar to `step` updates made; to the time spent where that is limited."""
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
        """Writes the figures of one epoch; the speed goes to TensorBoard alone, so that a run can be compared by bytes.

        Args:
          row: "epoch" and numbers.
          images_per_second: of the training.

        Raises:
          StorageError: they cannot be written.
        """
        if not self._speaks:
            return
        try:
            board = self._board
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise StorageError(
                f"{self.path} cannot be written ({error}); make room or writable, then the same command goes on from "
                "the latest checkpoint"
            ) from error
        for key, value in {**row, "images_per_second": images_per_second}.items():
            if key != "epoch":
                board.add_scalar(key, value, row["epoch"])
        board.flush()
        if self._mlflow:
            self._mlflow.add([row])

    def end_run(self, results: dict, workdir: Path) -> None:
        """Prints what a run ends with; `results` as in `results.json`."""
        self._scores = results["test"].get("mean", results["test"])
        self.say(conclusion(results, workdir))


@dataclasses.dataclass(frozen=True)
class Progressed:
    """How far a run is, in words: of its epochs or, where its time is limited (`minutes` > 0), of that."""

    epochs: int
    minutes: float

    def clock(self, seconds: float) -> str:
        """The time spent, in training and validation, of the time that there is."""
        return f"{seconds / 60:.1f} of {self.minutes:g} min"

    def __call__(self, epoch: int, seconds: float) -> str:
        """An epoch of all; or an epoch, and the time spent of the limit."""
        return f"epoch {epoch}, {self.clock(seconds)}" if self.minutes else f"epoch {epoch}/{self.epochs}"


def cut_rows(path: Path, last_epoch: int) -> None:
    """Takes the rows after `last_epoch`, of epochs that are trained again, out of a `metrics.jsonl`, or makes one.

    Raises:
      InputError: the file is damaged.
      StorageError: it cannot be written.
    """
    kept = "".join(json.dumps(row) + "\n" for row in read_rows(path) if row["epoch"] <= last_epoch)
    try:
        write_whole(path, lambda part: part.write_text(kept))
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error}); make room or writable, and start again") from error


def read_rows(path: Path) -> list[dict]:
    """The whole lines of a `metrics.jsonl`; a last line cut off by a kill is left out. Empty where there is no file."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    try:
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); correct the line, or give a new --workdir") from error


def introduction(experiment: Experiment, state: TrainState, workdir: Path) -> str:
    """The first lines of a run: its data, network, patients and folder."""
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
    """The line of an epoch; `row` as in `metrics.jsonl`, `progress` of `Progressed`."""
    return (
        f"{progress}  loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
        f"val Dice {row['val_dice_mean']:.3f} mean, {row['val_dice_median']:.3f} median  "
        f"{images_per_second:.1f} images/s{'  (best)' if is_best else ''}"
    )


def conclusion(results: dict, workdir: Path) -> str:
    """The last lines of a run; `results` as in `results.json`."""
    test = results["test"].get("mean", results["test"])
    return "".join(f"{line}\n" for line in _of_quality(results["expected_dice"])) + (
        f"test, {test['patients']} patients, {results['kept']} epoch, {results['epoch']}: 3-D Dice "
        f"{test['dice_mean']:.3f} mean, {test['dice_median']:.3f} median; IoU {test['iou_mean']:.3f} mean. Scores and "
        f"pictures: {workdir}"
    )


def _of_quality(found: dict) -> list[str]:
    """A line a target on the expected Dice of validation and test cases; `found` as in `results.json`."""
    lines = []
    for name, block in {"": found}.items() if "cases" in found else found.items():
        words = f"expected Dice{f' of {name}' if name else ''}: "
        if "covered" in block:
            words += (
                f"of {block['masks']} validation and test cases {block['covered']} lie in their 90 % interval "
                f"(leave-one-out), mean width {block['width']:.2f}, mean error {block['error']:.3f}"
            )
        else:
            words += f"none, as there are masks of fewer than {LEAST_PATIENTS} validation and test patients"
        lines.append(words)
    return lines
