"""Scan after scan through the networks: the next one is read, and the last one written, while one is predicted."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from brainseg_jax.data.progress import slice_progress
from brainseg_jax.errors import InputError
from brainseg_jax.prediction.canvas import Canvas
from brainseg_jax.prediction.ensemble import Ensemble, Inputs, combine
from brainseg_jax.prediction.results import Wanted, write_results
from brainseg_jax.scans.scan import Scan, Source


@dataclass
class Outcome:
    """What came of the scans.

    Attributes:
      scans: rows of `predictions.csv`.
      slices: rows of `areas.csv`.
      notes: names of the cases by what must be known of them.
      faults: of scans that could not be read, each with its file.
      seconds: from the first file read to the last one written.
      model_seconds: of these, in the networks.
    """

    scans: list[dict] = field(default_factory=list)
    slices: list[dict] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    model_seconds: float = 0.0


def predict_scans(sources: list[Source], ensemble: Ensemble, output: Path, wanted: Wanted) -> Outcome:
    """Predicts all scans and writes their files.

    Args:
      sources: of `find_scans`.
      ensemble: compiled.
      output: folder for results.
      wanted: which files.

    Returns:
      what came of them; a scan that cannot be read is a fault there, and stops none of the others.

    Raises:
      InputError: a result cannot be written.
    """
    outcome, start = Outcome(), time.perf_counter()
    before = ensemble.seconds
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer, slice_progress(shown=True) as bar:
        writing: Future | None = None
        for place, (source, load) in enumerate(_read_ahead(reader, sources, ensemble), start=1):
            try:
                scan, inputs = load()
            except InputError as error:
                outcome.faults.append(str(error))
                continue
            bar.start(f"{source.name} ({place} of {len(sources)})", len(scan.voxels))
            members = ensemble.predict(inputs, bar.advance)
            _collect(writing, outcome)  # so that no more than one scan waits to be written
            writing = writer.submit(_finish, source, scan, members, ensemble, output, wanted)
            for note in scan.notes:
                outcome.notes.setdefault(note, []).append(source.name)
        _collect(writing, outcome)
    outcome.seconds, outcome.model_seconds = time.perf_counter() - start, ensemble.seconds - before
    return outcome


def _read_ahead(
    reader: ThreadPoolExecutor, sources: list[Source], ensemble: Ensemble
) -> Iterator[tuple[Source, Callable[[], tuple[Scan, list[Inputs]]]]]:
    """Each source with a call that waits for its scan; the one after it is being read by then."""

    def load(source: Source) -> tuple[Scan, list[Inputs]]:
        scan = source.read()
        return scan, ensemble.prepare(scan)

    ahead = reader.submit(load, sources[0])
    for place, source in enumerate(sources, start=1):
        current = ahead
        if place < len(sources):
            ahead = reader.submit(load, sources[place])
        yield source, current.result


def _finish(
    source: Source, scan: Scan, members: list[np.ndarray], ensemble: Ensemble, output: Path, wanted: Wanted
) -> tuple[dict, list[dict]]:
    canvas = Canvas.around(scan.voxels.shape[1:3], scan.spacing)
    maps = combine(members, canvas)
    mask = ensemble.postprocess.on_grid(canvas.padded)(maps.probability)
    return write_results(source, scan, maps, mask, output, wanted)


def _collect(writing: Future | None, outcome: Outcome) -> None:
    if writing is not None:
        row, areas = writing.result()
        outcome.scans.append(row)
        outcome.slices += areas
