"""What many published notebooks do and this package does not: a split that deals slices, so patients meet themselves.

It stands here alone, for the study `leakage`, which measures what such a split makes believe. Each case is taken for
three, one of the slices that train, one that validate and one that test; everything else is the package's own training.
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


def part_of(case: str, part: str) -> str:
    """The name of a third of a case: a person of its own to the package, which keeps persons together."""
    person, date = case.rsplit("_", 1)
    return f"{person}-{part}_{date}"


def case_of(name: str) -> str:
    """The inverse of `part_of`."""
    person, date = name.rsplit("_", 1)
    return f"{person.rsplit('-', 1)[0]}_{date}"


def deal(case: str, numbers: np.ndarray, *, fold: int) -> np.ndarray:
    """Which part, a place in `PARTS`, each slice of a case is dealt to, at random and the same each time.

    Args:
      case: its id.
      numbers: [n] of its slices.
      fold: of `FIVE_FOLDS`; over all of them each slice is tested once.

    Returns:
      [n] int.

    Raises:
      InputError: there are too few slices for all parts.
    """
    if len(numbers) < FIVE_FOLDS:
        raise InputError(f"{case} has {len(numbers)} slices, too few to deal them to {len(PARTS)} parts; leave it out")
    places = np.argsort([hashlib.sha256(f"{case}:{number}".encode()).hexdigest() for number in numbers])
    parts = np.full(len(numbers), PARTS.index("train"))
    tested = np.arange(len(numbers)) % FIVE_FOLDS == fold
    parts[places[tested]] = PARTS.index("test")
    parts[places[~tested][::FEW]] = PARTS.index("val")
    return parts


def split_by_slice(cases: tuple[str, ...]) -> Split:
    """The split of the thirds of all cases."""
    return Split(*(tuple(part_of(case, part) for case in cases) for part in PARTS))


def torn(cohort: Cohort, *, fold: int) -> Cohort:
    """The cohort with each case taken for three; the slices stay as they are, and so do the constants of a case."""
    thirds, parts = len(PARTS), []
    for case, numbers in zip(cohort.cases, cohort.numbers, strict=True):
        parts += [deal(case, np.array(numbers), fold=fold)]
    case_index = (thirds * cohort.case_index + np.concatenate(parts)).astype(np.int32)
    order = np.argsort(case_index, kind="stable")  # the slices of each third follow one another

    def divided(of_cases: Sequence[Sequence]) -> tuple[np.ndarray, ...]:
        """What each slice of a case has, by third."""
        pairs = zip(of_cases, parts, strict=True)
        return tuple(np.asarray(of_case)[part == third] for of_case, part in pairs for third in range(thirds))

    names = tuple(part_of(case, part) for case in cohort.cases for part in PARTS)
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
