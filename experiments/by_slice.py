"""A split by slice, as many published notebooks use it: slices of one patient are in training, validation and test.

Only the study `leakage` uses it, to measure how much such a split inflates a score. Each case becomes three cases: its
training, validation and test slices. Everything else is the usual training of the package.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from brainseg_jax.data.cohort import Cohort
from brainseg_jax.data.normalization import Normalization
from brainseg_jax.data.splits import PARTS, Split
from brainseg_jax.errors import InputError
from experiments.studies import FEW, FIVE_FOLDS


def third_name(case: str, part: str) -> str:
    """Returns the name of one third of a case. Each third is a separate person, since splits keep persons whole."""
    person, date = case.rsplit("_", 1)
    return f"{person}-{part}_{date}"


def original_case(name: str) -> str:
    """Returns the case of a third; the inverse of `third_name`."""
    person, date = name.rsplit("_", 1)
    return f"{person.rsplit('-', 1)[0]}_{date}"


def assign_slices(case: str, numbers: np.ndarray, *, fold: int) -> np.ndarray:
    """Assigns each slice of a case to training, validation or test; random, but the same in every call.

    Args:
      case: its id.
      numbers: [n], numbers of its slices.
      fold: of `FIVE_FOLDS`. Over all folds each slice is in the test set once.

    Returns:
      [n] int, indices into `PARTS`.

    Raises:
      InputError: the case has fewer slices than folds.
    """
    if len(numbers) < FIVE_FOLDS:
        raise InputError(f"{case} has {len(numbers)} slices, too few for {FIVE_FOLDS} folds; remove the case")
    order = np.argsort([hashlib.sha256(f"{case}:{number}".encode()).hexdigest() for number in numbers])
    parts = np.full(len(numbers), PARTS.index("train"))
    is_test = np.arange(len(numbers)) % FIVE_FOLDS == fold
    parts[order[is_test]] = PARTS.index("test")
    parts[order[~is_test][::FEW]] = PARTS.index("val")
    return parts


def split_by_slice(cases: tuple[str, ...]) -> Split:
    """Returns the split of the thirds of all cases."""
    return Split(*(tuple(third_name(case, part) for case in cases) for part in PARTS))


def split_cases(cohort: Cohort, *, fold: int) -> Cohort:
    """Returns the cohort with each case divided into thirds. Slices and normalization constants do not change."""
    thirds, parts = len(PARTS), []
    for case, numbers in zip(cohort.cases, cohort.numbers, strict=True):
        parts += [assign_slices(case, np.array(numbers), fold=fold)]
    case_index = (thirds * cohort.case_index + np.concatenate(parts)).astype(np.int32)
    order = np.argsort(case_index, kind="stable")  # the slices of a third become consecutive

    def divided(values: Sequence[Sequence]) -> tuple[np.ndarray, ...]:
        """Divides per-slice values of each case into its thirds."""
        pairs = zip(values, parts, strict=True)
        return tuple(np.asarray(case_values)[part == third] for case_values, part in pairs for third in range(thirds))

    names = tuple(third_name(case, part) for case in cohort.cases for part in PARTS)
    return replace(
        cohort,
        slices=cohort.slices.reordered(order),
        target_area=cohort.target_area[order],
        target_fractions=cohort.target_fractions[order],
        case_index=case_index[order],
        cases=names,
        patients=names,
        groups=tuple(np.repeat(cohort.groups, thirds).tolist()),
        grades=tuple(np.repeat(cohort.grades, thirds).tolist()),
        labels=None if cohort.labels is None else divided(cohort.labels),
        shapes=tuple(
            (int((part == third).sum()), *shape[1:])
            for part, shape in zip(parts, cohort.shapes, strict=True)
            for third in range(thirds)
        ),
        numbers=tuple(tuple(numbers.tolist()) for numbers in divided(cohort.numbers)),
        records=divided(cohort.records),
        spacings=tuple(spacing for spacing in cohort.spacings for _ in PARTS),
        canvases=tuple(canvas for canvas in cohort.canvases for _ in PARTS),
        normalization=Normalization(*(np.repeat(values, thirds, axis=0) for values in cohort.normalization)),
    )
