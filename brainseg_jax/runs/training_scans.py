"""Writes statistics of the training scans into the run folder at the end of the training."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from brainseg_jax.data.cohort import Cohort
from brainseg_jax.data.splits import Split
from brainseg_jax.errors import StorageError
from brainseg_jax.inference.training_scans import FILE, MIN_PATIENTS, TrainingScans
from brainseg_jax.runs.processes import on_first_process
from brainseg_jax.scans.volume import Volume

_MAX_SCANS = 100  # measured training scans, evenly spaced in the split; each takes about half a second


def write_training_scans(
    workdir: Path, cohort: Cohort, split: Split, *, before_case: Callable[[], None] = lambda: None
) -> str:
    """Measures the training scans of the network and writes `training_scans.json`.

    Args:
      workdir: run folder.
      cohort: cohort of the run.
      split: split of its cases.
      before_case: called before each case is read.

    Returns:
      One line: what was written, and how many validation and test scans it flags; or why nothing was written.

    Raises:
      StorageError: the file cannot be written.
    """
    train = [split.train[index] for index in _evenly(len(split.train), _MAX_SCANS)]

    def volumes(cases: Sequence[str]) -> Iterator[Volume]:
        for case, index in zip(cases, cohort.indices(cases), strict=True):
            before_case()
            yield Volume(cohort.read_voxels(case), cohort.spacings[index], cohort.numbers[index])

    patients = [cohort.patients[index] for index in cohort.indices(train)]
    if (count := len(set(patients))) < MIN_PATIENTS:
        return f"no {FILE}, so predict will not flag scans: {count} training patients, {MIN_PATIENTS} are needed"
    training_scans = TrainingScans.of(volumes(train), patients, cohort.description)
    if training_scans is None:
        return (
            f"no {FILE}, so predict will not flag scans: fewer than {MIN_PATIENTS} of {count} training patients show "
            "a head"
        )
    others = (*split.val, *split.test)
    flagged = sum(bool(training_scans.flags(volume, cohort.description.shown)) for volume in volumes(others))

    def write() -> None:
        try:
            training_scans.write(workdir / FILE)
        except OSError as error:
            raise StorageError(
                f"{workdir / FILE} cannot be written ({error}); make room or make it writable, then the same "
                "command writes it"
            ) from error

    on_first_process("write what the training scans look like", write)
    return (
        f"{FILE}, with which predict flags scans unlike the {training_scans.scans} training scans: it flags {flagged} "
        f"of the {len(others)} validation and test scans"
    )


def _evenly(count: int, maximum: int) -> list[int]:
    """At most `most` indices below `count`, evenly spaced."""
    return np.linspace(0, count - 1, min(count, maximum)).round().astype(int).tolist() if count else []
