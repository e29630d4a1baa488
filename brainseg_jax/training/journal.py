"""What a run tells while it trains: console and progress bar, `metrics.jsonl`, TensorBoard. Process 0 alone speaks."""

import json
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from brainseg_jax.errors import InputError


class Journal:
    """Rows by epoch in `metrics.jsonl` and TensorBoard, lines on the console, one bar for the whole run.

    Use as a context manager.
    """

    def __init__(self, workdir: Path, *, epochs: int, steps_per_epoch: int, resumed_epoch: int, speaks: bool):
        """Opens the files; rows after `resumed_epoch`, of epochs that are trained again, are taken out.

        Args:
          workdir: the run folder.
          epochs: of the whole run.
          steps_per_epoch: updates an epoch.
          resumed_epoch: epochs already finished; 0 in a new run.
          speaks: False on all processes but one: then nothing is written.
        """
        self._speaks = speaks
        self.path = workdir / "metrics.jsonl"
        self._console = Console(quiet=not speaks, highlight=False)
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
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
            total=epochs * steps_per_epoch,
            completed=resumed_epoch * steps_per_epoch,
            epoch=resumed_epoch + 1,
            rate="-",
            loss="-",
        )
        if speaks:
            kept = [row for row in read_rows(self.path) if row["epoch"] <= resumed_epoch]
            partial = self.path.with_suffix(".part")
            partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
            partial.replace(self.path)
            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=resumed_epoch + 1)

    def __enter__(self) -> "Journal":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self._speaks:
            self._board.close()

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, markup=False, soft_wrap=True)

    def advance(self, *, step: int, epoch: int, loss: float, images_per_second: float) -> None:
        """Moves the bar to `step` updates made."""
        rate = f"{images_per_second:.1f}"
        self._bar.update(self._task, completed=step, epoch=epoch, loss=f"{loss:.4f}", rate=rate)

    def end_epoch(self, row: dict) -> None:
        """Writes the figures of one epoch; `row` has "epoch" and numbers."""
        if not self._speaks:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for key, value in row.items():
            if key != "epoch":
                self._board.add_scalar(key, value, row["epoch"])
        self._board.flush()


def read_rows(path: Path) -> list[dict]:
    """The whole lines of a `metrics.jsonl`; a last line cut off by a kill is left out. Empty where there is no file."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    try:
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); correct the line, or give a new --workdir") from error
