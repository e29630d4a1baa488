"""Predicts scan after scan, while threads read the next scan and write the previous one."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from brainseg_jax.data.canvas import Canvas
from brainseg_jax.data.progress import SliceProgress, slice_progress
from brainseg_jax.errors import InputError
from brainseg_jax.files import describe_unforeseen, explain, is_full
from brainseg_jax.inference.ensemble import Ensemble, Member, combine
from brainseg_jax.inference.network import Inputs
from brainseg_jax.inference.quality import ExpectedDice, rate
from brainseg_jax.prediction.results import Wanted, Written, write_results
from brainseg_jax.scans.scan import Scan, Source

Prepared = list[list[tuple[Inputs, Canvas]]]  # result of `Ensemble.prepare`


@dataclass
class Outcome:
    """Results of all scans.

    Attributes:
      scans: rows of `predictions.csv`, one per scan and target.
      slices: rows of `areas.csv`, one per slice and target.
      notes: names of the cases by note.
      faults: of scans that could not be read, predicted or written, each with its file or case.
      seconds: from reading the first file to writing the last one.
      model_seconds: the share of `seconds` spent in the networks.
      record: called with the name and the results of each case.
    """

    scans: list[dict] = field(default_factory=list)
    slices: list[dict] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    model_seconds: float = 0.0
    record: Callable[[str, Written], None] | None = None

    def add(self, case: str, written: Written) -> None:
        """Adds the results of a case."""
        self.scans += written.scans
        self.slices += written.slices
        for note in written.notes:
            self.notes.setdefault(note, []).append(case)
        if self.record:
            self.record(case, written)

    @property
    def scans_done(self) -> int:
        """Number of written scans."""
        return len({row["case"] for row in self.scans})

    @property
    def slices_done(self) -> int:
        """Number of slices of these scans."""
        return len({(row["case"], row["slice"]) for row in self.slices})


def predict_scans(
    sources: list[Source],
    ensemble: Ensemble,
    output: Path,
    wanted: Wanted,
    outcome: Outcome,
    expected: ExpectedDice | None = None,
) -> None:
    """Predicts all scans and writes their files.

    An exception while a scan is read, predicted or written becomes a fault of that scan. The other scans continue.

    Args:
      sources: one or more, with different names.
      ensemble: compiled.
      output: folder for results.
      wanted: the files to write.
      outcome: receives the results of each scan after they are written, so it is valid after an exception too.
      expected: model of the expected Dice of the ensemble's masks; None if it is unknown.

    Raises:
      InputError: the disk is full.
      KeyboardInterrupt: of the user, or of SIGTERM (`cli.sigterm_interrupts`); the message counts the finished scans.
    """
    start, seconds_before = time.perf_counter(), ensemble.seconds
    try:
        _predict_all(sources, ensemble, output, wanted, outcome, expected)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; {outcome.scans_done} of {len(sources)} scans are done and listed in the tables of {output}"
        ) from None
    finally:
        outcome.seconds, outcome.model_seconds = time.perf_counter() - start, ensemble.seconds - seconds_before


def _predict_all(
    sources: list[Source],
    ensemble: Ensemble,
    output: Path,
    wanted: Wanted,
    outcome: Outcome,
    expected: ExpectedDice | None,
) -> None:
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer, slice_progress(shown=True) as bar:
        writing: _Writing | None = None
        try:
            for number, (source, load) in enumerate(_read_ahead(reader, sources, ensemble), start=1):
                try:
                    scan, prepared = load()
                    bar.start(f"{source.name} ({number} of {len(sources)})", len(scan.voxels))
                    members = ensemble.predict(prepared, partial(_advance, bar))
                except Exception as error:  # any type becomes a fault of this scan
                    outcome.faults.append(_fault(source, error))
                    continue
                previous, writing = writing, None
                _collect(previous, outcome, output)  # at most one scan waits to be written
                writing = source, writer.submit(_finish, source, scan, members, ensemble, output, wanted, expected)
                del load, scan, prepared, members  # frees memory before the next scan is predicted
        finally:
            _collect(writing, outcome, output)


def _read_ahead(
    reader: ThreadPoolExecutor, sources: list[Source], ensemble: Ensemble
) -> Iterator[tuple[Source, Callable[[], tuple[Scan, Prepared]]]]:
    """Yields each source with a function that waits for its scan. The next scan is read meanwhile.

    The scans keep only the shown channel.
    """

    def load(source: Source) -> tuple[Scan, Prepared]:
        scan = source.read()
        prepared = ensemble.prepare(scan)
        return replace(scan, voxels=scan.voxels[..., [ensemble.description.shown]]), prepared

    pending = deque(reader.submit(load, source) for source in sources[:1])
    for next_index, source in enumerate(sources, start=1):
        if next_index < len(sources):
            pending.append(reader.submit(load, sources[next_index]))
        yield source, pending.popleft().result


def _finish(
    source: Source,
    scan: Scan,
    members: list[Member],
    ensemble: Ensemble,
    output: Path,
    wanted: Wanted,
    expected: ExpectedDice | None,
) -> Written:
    maps = combine(members, uncertainty=wanted.uncertainty)
    masks = ensemble.masks(maps.probability, members[0].canvas)
    posts = [post.on_grid(members[0].canvas.padded) for post in ensemble.posts]
    qualities = rate(maps.probability, masks, posts, ensemble.description.names, expected)
    return write_results(source, scan, maps, masks, qualities, ensemble.description, output, wanted)


def _advance(bar: SliceProgress, count: int) -> None:
    for _ in range(count):
        bar.advance()


_Writing = tuple[Source, Future]


def _collect(writing: _Writing | None, outcome: Outcome, output: Path) -> None:
    """Waits until a scan is written. Raises InputError if the disk is full, since that affects all scans."""
    if writing is None:
        return
    source, result = writing
    try:
        written: Written = result.result()
    except OSError as error:
        if is_full(error):
            raise InputError(f"--output={output} cannot be written to ({explain(error)})") from error
        outcome.faults.append(f"{source.name}: cannot be written to {output} ({explain(error)})")
    except Exception as error:  # any type becomes a fault of this scan
        outcome.faults.append(_fault(source, error))
    else:
        outcome.add(source.name, written)


def _fault(source: Source, error: Exception) -> str:
    """The message of an InputError, which names the file; for any other exception one line with the case."""
    return str(error) if isinstance(error, InputError) else f"{source.name}: {describe_unforeseen(error)}"
