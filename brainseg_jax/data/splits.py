"""Who is trained on, who chooses the model, who tests it: whole persons, stratified by institution, from a seed.

Neighboring slices of one person look alike, so a split by slice scores memory, not skill. Everything here deals whole
persons: cases `TCGA_<institution>_<number>_<date>` that share all but the date always stay together.

The order comes from SHA-256, not from a random generator, so a seed means the same split on every machine and with
every version of numpy.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from absl import logging

from brainseg_jax.errors import InputError
from brainseg_jax.files import write_whole

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Patient ids of the three parts; no patient is in two of them."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


def split_by_fractions(
    patients: Sequence[str], institutions: Sequence[str], *, val: float, test: float, seed: int
) -> Split:
    """Deals `round(n * fraction)` of the n persons to validation and to test, and the others to training.

    Args:
      patients: Case ids.
      institutions: Institution of each patient; every part takes its share of each, give or take one person.
      val: Fraction for validation, above 0.
      test: Fraction for test, above 0; together with `val` below 1.
      seed: Another seed gives another split.

    Raises:
      InputError: A fraction is out of range, or a part would be empty.
    """
    line = _line_of_persons(patients, institutions, seed)
    if not (val > 0 and test > 0 and val + test < 1):
        raise InputError(f"split fractions val={val}, test={test}: give two numbers above 0 whose sum is below 1")
    sizes = {"test": round(len(line) * test), "val": round(len(line) * val)}
    sizes["train"] = len(line) - sizes["test"] - sizes["val"]
    empty = [part for part in PARTS if sizes[part] < 1]
    if empty:
        raise InputError(
            f"split fractions val={val}, test={test} of {len(line)} patients leave nobody for {', '.join(empty)}: "
            "give larger fractions or more patients"
        )
    tested = _evenly_spaced(line, sizes["test"])
    validated = _evenly_spaced([person for person in line if person not in tested], sizes["val"])
    return _split(patients, val=validated, test=tested)


def split_by_folds(patients: Sequence[str], institutions: Sequence[str], *, folds: int, fold: int, seed: int) -> Split:
    """Fold `fold` of a cross-validation: it is the test part and the next fold is the validation part.

    Over all folds each patient is tested exactly once. Fold sizes differ by at most one person.

    Args:
      patients: Case ids.
      institutions: Institution of each patient; every fold takes its share of each, give or take one person.
      folds: Number of folds, at least 3 and at most the number of persons.
      fold: 0 to `folds` - 1.
      seed: Another seed gives other folds.

    Raises:
      InputError: `folds` or `fold` is out of range.
    """
    line = _line_of_persons(patients, institutions, seed)
    if not 3 <= folds <= len(line):
        raise InputError(f"split folds={folds}: give 3 to {len(line)}, the number of patients")
    if not 0 <= fold < folds:
        raise InputError(f"split fold={fold}: give 0 to {folds - 1}")
    return _split(patients, val=set(line[(fold + 1) % folds :: folds]), test=set(line[fold::folds]))


def write_split(path: Path, split: Split) -> None:
    """Writes the split as JSON `{"train": [...], "val": [...], "test": [...]}`, whole or not at all."""
    content = json.dumps(asdict(split), indent=1) + "\n"
    write_whole(Path(path), lambda part: part.write_text(content))


def read_split(path: Path, patients: Sequence[str]) -> Split:
    """Reads a split that `write_split` or a user wrote.

    Patients of the cohort that the file leaves out take no part in the run; a warning in the log names them.

    Args:
      path: JSON file with a list of patient ids under each of train, val and test.
      patients: Case ids of the cohort.

    Raises:
      InputError: The file cannot be read, or lists every fault found in it: a part that is missing, misspelt, empty or
        no list of ids, a patient named twice or unknown, a person with cases in two parts.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a JSON split file: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not an object with keys {', '.join(PARTS)}")
    faults = _faults(content, patients)
    if faults:
        raise InputError(f"{path}: not a usable split; correct the file:\n  " + "\n  ".join(faults))
    split = Split(*(tuple(content[part]) for part in PARTS))
    left_out = sorted(set(patients).difference(split.train, split.val, split.test))
    if left_out:
        logging.warning("%s leaves out %d patients of the data: %s", path, len(left_out), ", ".join(left_out))
    return split


def _faults(content: dict, patients: Sequence[str]) -> list[str]:
    faults = [f"unknown part {key!r}: the parts are {', '.join(PARTS)}" for key in content if key not in PARTS]
    known, case_part, person_part = set(patients), {}, {}
    for part in PARTS:
        cases = content.get(part)
        if not (isinstance(cases, list) and cases and all(isinstance(case, str) for case in cases)):
            faults.append(f"part {part!r} is {'missing' if cases is None else 'not a list of at least one patient id'}")
            continue
        for case in cases:
            if case not in known:
                faults.append(f"{case} ({part}) is not a patient of the data")
            if case in case_part:
                faults.append(f"{case} stands in {case_part[case]} and again in {part}")
            elif person_part.setdefault(_person(case), part) != part:
                faults.append(f"{case} ({part}) is a person who also has a case in {person_part[_person(case)]}")
            case_part.setdefault(case, part)
    return faults


def _person(patient: str) -> str:
    return "_".join(patient.split("_")[:3])


def _line_of_persons(patients: Sequence[str], institutions: Sequence[str], seed: int) -> list[str]:
    """Persons, institution after institution, shuffled inside each; any even comb through it is stratified."""
    institution = {_person(patient): name for patient, name in zip(patients, institutions, strict=True)}
    shuffled = {person: hashlib.sha256(f"{seed}:{person}".encode()).hexdigest() for person in institution}
    return sorted(institution, key=lambda person: (institution[person], shuffled[person]))


def _evenly_spaced(line: list[str], size: int) -> set[str]:
    return {line[(2 * index + 1) * len(line) // (2 * size)] for index in range(size)}


def _split(patients: Sequence[str], *, val: set[str], test: set[str]) -> Split:
    return Split(
        train=tuple(sorted(patient for patient in patients if _person(patient) not in val | test)),
        val=tuple(sorted(patient for patient in patients if _person(patient) in val)),
        test=tuple(sorted(patient for patient in patients if _person(patient) in test)),
    )
