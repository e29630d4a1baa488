"""From run folders and a path to masks: what is checked before, and what is told at the end."""

import time
from pathlib import Path

from brainseg_jax.errors import InputError, PartlyDone
from brainseg_jax.prediction.ensemble import Ensemble
from brainseg_jax.prediction.results import Wanted, check_free, write_tables
from brainseg_jax.prediction.stream import Outcome, predict_scans
from brainseg_jax.scans.find import find_scans
from brainseg_jax.training.comparison import names_of
from brainseg_jax.training.run_folder import check_folder
from brainseg_jax.training.trained import load_trained


def predict(
    runs: list[Path], scans: Path, output: Path, *, wanted: Wanted, mirror: bool | None, overwrite: bool
) -> Outcome:
    """Predicts scans, and writes masks and tables.

    Args:
      runs: folders, one or more.
      scans: see `find_scans`.
      output: folder for results.
      wanted: what is written beside the masks.
      mirror: see `Ensemble`.
      overwrite: whether results that are there are replaced.

    Raises:
      InputError: something given cannot be used, found before anything is written; or no scan could be read.
      PartlyDone: some scans could not be read; the results of the others are written.
      StorageError: a checkpoint is damaged.
    """
    check_folder(output, "--output")
    sources = find_scans(scans)
    if not overwrite:
        check_free(sources, output, wanted)
    start = time.perf_counter()
    names_of(runs)  # raises where one is given twice
    ensemble = Ensemble([load_trained(folder) for folder in runs], mirror=mirror)
    if wanted.uncertainty and ensemble.members == 1:
        raise InputError("--uncertainty is the spread of several predictions: add --tta, or give several runs")
    ensemble.compile()
    ready = time.perf_counter() - start
    outcome = Outcome()
    try:
        predict_scans(sources, ensemble, output, wanted, outcome)
    finally:  # what is done stands in the tables, whatever ends the rest
        write_tables(outcome.scans, outcome.slices, output)
    _tell(outcome, output, ready)
    return outcome


def _tell(outcome: Outcome, output: Path, ready: float) -> None:
    for note, cases in outcome.notes.items():
        more = f" and {len(cases) - 3} more" if len(cases) > 3 else ""
        print(f"note: {', '.join(cases[:3])}{more}: {note}")
    faults, done, slices = "\n".join(outcome.faults), len(outcome.scans), len(outcome.slices)
    if not done:
        raise InputError(f"no scan could be read, so nothing was written:\n{faults}")
    print(
        f"{done} scan{'s' * (done > 1)}, {slices} slice{'s' * (slices > 1)} in {outcome.seconds:.1f} s: "
        f"{slices / outcome.seconds:.1f} slices/s, {outcome.model_seconds / outcome.seconds:.0%} of the time in the "
        f"network ({ready:.1f} s to load and compile before)"
    )
    print(f"Masks and tables: {output}")
    if outcome.faults:
        failed = len(outcome.faults)
        raise PartlyDone(f"{failed} of {failed + done} scans could not be read, the others are done:\n{faults}")
