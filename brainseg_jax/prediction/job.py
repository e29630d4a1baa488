"""From run folders and a path to masks: what is checked before, and what is told at the end."""

import time
from pathlib import Path

from brainseg_jax.errors import InputError, PartlyDone
from brainseg_jax.prediction.ensemble import Ensemble
from brainseg_jax.prediction.results import Wanted, check_free, write_tables
from brainseg_jax.prediction.stream import Outcome, predict_scans
from brainseg_jax.scans.find import Found, find_scans
from brainseg_jax.scans.patterns import Patterns
from brainseg_jax.scans.scan import Refused
from brainseg_jax.scans.sequences import CHANNELS
from brainseg_jax.scans.walk import list_passed_over
from brainseg_jax.training.comparison import names_of
from brainseg_jax.training.run_folder import check_folder
from brainseg_jax.training.trained import load_trained

_MOST_ROWS = 20  # of the table of cases


def predict(
    runs: list[Path],
    scans: Path,
    output: Path,
    *,
    wanted: Wanted,
    mirror: bool | None,
    overwrite: bool,
    sequences: Patterns | None = None,
) -> Outcome:
    """Predicts scans, and writes masks and tables.

    Args:
      runs: folders, one or more.
      scans: see `find_scans`.
      output: folder for results.
      wanted: what is written beside the masks.
      mirror: see `Ensemble`.
      overwrite: whether results that are there are replaced.
      sequences: see `find_scans`.

    Raises:
      InputError: something given cannot be used, found before anything is written; or no scan could be read.
      PartlyDone: some scans could not be predicted; the results of the others are written.
      StorageError: a checkpoint is damaged.
    """
    check_folder(output, "--output")
    found = find_scans(scans, sequences)
    sources = found.sources
    print("\n".join(table(found, scans)), flush=True)
    refused = [source.fault for source in sources if isinstance(source, Refused)]
    if len(refused) == len(sources):
        raise InputError("no scan could be predicted, so nothing was written:\n" + "\n".join(refused))
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


def table(found: Found, scans: Path) -> list[str]:
    """What was found for which channel, and what is passed over, in lines for a user to see before anything runs."""
    shown = found.sources[:_MOST_ROWS]
    rows = [("case", *CHANNELS)]
    for source in shown:
        if isinstance(source, Refused):
            rows.append((source.name, "", "refused, see the end", ""))
        else:
            rows.append((source.name, *(source.channels.get(channel, "-") for channel in CHANNELS)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    more = len(found.sources) - len(shown)
    if more:
        lines.append(f"and {more} more case{'s' * (more > 1)}")
    legend = []
    if any("-" in row[1:] for row in rows):
        legend.append("-: FLAIR stands in for it")
    if any(row[2].endswith(" *") for row in rows):
        legend.append("*: FLAIR, or all three as colors or along a fourth axis")
    lines += [f"({'; '.join(legend)})"] if legend else []
    root = scans if scans.is_dir() else scans.parent
    if passed_over := list_passed_over(found.passed_over, root):
        lines += ["Passed over:", *(f"  {line}" for line in passed_over)]
    return lines


def _tell(outcome: Outcome, output: Path, ready: float) -> None:
    for note, cases in outcome.notes.items():
        more = f" and {len(cases) - 3} more" if len(cases) > 3 else ""
        print(f"note: {', '.join(cases[:3])}{more}: {note}")
    faults, done, slices = "\n".join(outcome.faults), len(outcome.scans), len(outcome.slices)
    if not done:
        raise InputError(f"no scan could be predicted, so nothing was written:\n{faults}")
    print(
        f"{done} scan{'s' * (done > 1)}, {slices} slice{'s' * (slices > 1)} in {outcome.seconds:.1f} s: "
        f"{slices / outcome.seconds:.1f} slices/s, {outcome.model_seconds / outcome.seconds:.0%} of the time in the "
        f"network ({ready:.1f} s to load and compile before)"
    )
    print(f"Masks and tables: {output}")
    if outcome.faults:
        failed = len(outcome.faults)
        raise PartlyDone(f"{failed} of {failed + done} scans could not be predicted, the others are done:\n{faults}")
