"""The progress bar for reading and writing data."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class SliceProgress:
    """One bar for consecutive stages of the work."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None)

    def start(self, stage: str, total: int) -> None:
        """Starts a stage, such as `checking`, of `total` slices or cases."""
        self._bar.reset(self._task, description=stage, total=total)

    def advance(self) -> None:
        """Counts one slice or case."""
        self._bar.advance(self._task)


@contextmanager
def slice_progress(*, shown: bool, unit: str = "slices") -> Iterator[SliceProgress]:
    """Shows finished units, units per second, and the remaining time on stderr."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        yield SliceProgress(bar)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.0f}/s" if speed else "")
