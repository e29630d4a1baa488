"""What the training scans of a run look like, written into its folder at the end of the training."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from brainseg_jax.data.cohort import Cohort
from brainseg_jax.data.splits import Split
from brainseg_jax.errors import StorageError
from brainseg_jax.inference.training_scans import FEWEST, FILE, TrainingScans
from brainseg_jax.runs.processes import on_first_process
from brainseg_jax.scans.volume import Volume

_MOST = 100  # training scans are measured, evenly spaced in the split: each takes about half a second


def write_training_scans(
    workdir: Path, cohort: Cohort, split: Split, *, before_case: Callable[[], None] = lambda: None
) -> str:
    """Measures the scans that the network was trained on, and writes `training_scans.json`.

    Args:
      workdir: the run folder.
      cohort: of the run.
      split: of its cases.
      before_case: called before each case that is read.

    Returns:
      one line: what was written, and how many of the validation and test scans are flagged; or why nothing was.

    Raises:
      StorageError: the file cannot be written.
    """
    train = [split.train[index] for index in _evenly(len(split.train), _MOST)]

    def volumes(cases: Sequence[str]) -> Iterator[Volume]:
        for case, index in zip(cases, cohort.indices(cases), strict=True):
            before_case()
            yield Volume(cohort.read_voxels(case), cohort.spacings[index], cohort.numbers[index])

    patients = [cohort.patients[index] for index in cohort.indices(train)]
    if (count := len(set(patients))) < FEWEST:
        return f"no {FILE}, so predict will not flag scans: {count} training patients, and {FEWEST} are needed"
    found = TrainingScans.of(volumes(train), patients, cohort.description)
    if found is None:
        return (
            f"no {FILE}, so predict will not flag scans: fewer than {FEWEST} of {count} training patients show a head"
        )
    others = (*split.val, *split.test)
    flagged = sum(bool(found.flags(volume, cohort.description.shown)) for volume in volumes(others))

    def write() -> None:
        try:
            found.write(workdir / FILE)
        except OSError as error:
            raise StorageError(
                f"{workdir / FILE} cannot be written ({error}); make room or writable, then the same command writes it"
            ) from error

    on_first_process("write what the training scans look like", write)
    return (
        f"{FILE}, by which predict flags scans unlike the {found.scans} training scans: it flags {flagged} of the "
        f"{len(others)} validation and test scans"
    )


def _evenly(count: int, most: int) -> list[int]:
    """At most so many indices of `count`, evenly spaced."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist() if count else []
