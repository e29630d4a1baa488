"""Who is trained on, who chooses the model, who tests it: whole patients, stratified by group, from a seed.

Neighboring slices of one patient look alike, and so do two scans of one patient: a split by slice or by scan scores
memory, not skill. A split lists cases, and all cases of a patient are in the same part.

The order comes from SHA-256, not from a random generator, so a seed means the same split on every machine and with
every version of numpy.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from absl import logging

from brainseg_jax.errors import InputError
from brainseg_jax.files import write_whole

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Names of the cases of the three parts; no patient has cases in two of them."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


def split_by_fractions(
    cases: Sequence[str], patients: Sequence[str], groups: Sequence[str], *, val: float, test: float, seed: int
) -> Split:
    """Deals `round(n * fraction)` of the n patients to validation and to test, and the others to training.

    Args:
      cases: names.
      patients: of each case, whose it is.
      groups: of each case, such as its institution; every part takes its share of each, give or take one patient.
      val: Fraction for validation, above 0.
      test: Fraction for test, above 0; together with `val` below 1.
      seed: Another seed gives another split.

    Raises:
      InputError: A fraction is out of range, or a part would be empty.
    """
    line = _line_of_patients(patients, groups, seed)
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
    validated = _evenly_spaced([patient for patient in line if patient not in tested], sizes["val"])
    return _split(cases, patients, val=validated, test=tested)


def split_by_folds(
    cases: Sequence[str], patients: Sequence[str], groups: Sequence[str], *, folds: int, fold: int, seed: int
) -> Split:
    """Fold `fold` of a cross-validation: it is the test part and the next fold is the validation part.

    Over all folds each patient is tested exactly once. Fold sizes differ by at most one patient.

    Args:
      cases: names.
      patients: of each case, whose it is.
      groups: of each case; every fold takes its share of each, give or take one patient.
      folds: Number of folds, at least 3 and at most the number of patients.
      fold: 0 to `folds` - 1.
      seed: Another seed gives other folds.

    Raises:
      InputError: `folds` or `fold` is out of range.
    """
    line = _line_of_patients(patients, groups, seed)
    if not 3 <= folds <= len(line):
        raise InputError(f"split folds={folds}: give 3 to {len(line)}, the number of patients")
    if not 0 <= fold < folds:
        raise InputError(f"split fold={fold}: give 0 to {folds - 1}")
    return _split(cases, patients, val=set(line[(fold + 1) % folds :: folds]), test=set(line[fold::folds]))


def write_split(path: Path, split: Split) -> None:
    """Writes the split as JSON `{"train": [...], "val": [...], "test": [...]}`, whole or not at all."""
    content = json.dumps(asdict(split), indent=1) + "\n"
    write_whole(Path(path), lambda part: part.write_text(content))


def read_split(path: Path, cases: Sequence[str], patients: Sequence[str], *, fold: int = 0) -> Split:
    """Reads a split that `write_split`, a user or nnU-Net wrote.

    nnU-Net's `splits_final.json` lists folds of a training and a validation part, and knows no test part. So it is
    read as `split_by_folds` deals: the validation part of fold `fold` is tested, that of the next fold chooses the
    model, and the other cases of the fold's training part are trained on.

    Cases that the file leaves out take no part in the run; a warning in the log names them.

    Args:
      path: JSON file with a list of names of cases under each of train, val and test; or nnU-Net's.
      cases: of the cohort.
      patients: of each case, whose it is.
      fold: of nnU-Net's file, from 0.

    Raises:
      InputError: The file cannot be read, or lists every fault found in it: a part that is missing, misspelt, empty or
        no list of names, a case named twice or unknown, a patient with cases in two parts; a fold that is not there.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a JSON split file: {error}") from error
    if isinstance(content, list):
        content = _fold_of_nnunet(path, content, fold)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not an object with keys {', '.join(PARTS)}")
    faults = _faults(content, dict(zip(cases, patients, strict=True)))
    if faults:
        raise InputError(f"{path}: not a usable split; correct the file:\n  " + "\n  ".join(faults))
    split = Split(*(tuple(content[part]) for part in PARTS))
    left_out = sorted(set(cases).difference(split.train, split.val, split.test))
    if left_out:
        logging.warning("%s leaves out %d cases of the data: %s", path, len(left_out), ", ".join(left_out))
    return split


def cases_of_known(cases: Sequence[str], patients: Sequence[str], known: Collection[str]) -> set[str]:
    """Those of the cases whose patient has a case among others, in any scan.

    A patient is known where one of its cases is, or where a known case is named as one of it: `sub-01_ses-2` of
    `sub-01`, `TCGA_DU_5849_19950405` of `TCGA_DU_5849`.

    Args:
      cases: names.
      patients: of each case, whose it is.
      known: names of cases, or of patients, of the same or another cohort.
    """
    of_known = {patient for case, patient in zip(cases, patients, strict=True) if case in known}
    for patient in set(patients) - of_known:
        if any(name == patient or name.startswith((f"{patient}_", f"{patient}-")) for name in known):
            of_known.add(patient)
    return {case for case, patient in zip(cases, patients, strict=True) if patient in of_known}


def _fold_of_nnunet(path: Path, folds: list, fold: int) -> dict:
    whole = all(
        isinstance(one, dict) and all(isinstance(one.get(part), list) for part in ("train", "val")) for one in folds
    )
    if not whole or len(folds) < 2:
        raise InputError(
            f"{path}: a list, but not of two or more folds with a list of cases under each of train and val, as "
            "nnU-Net writes it; correct the file"
        )
    if not 0 <= fold < len(folds):
        raise InputError(f"{path} has {len(folds)} folds, and split.fold={fold}; give 0 to {len(folds) - 1}")
    tested, validated = folds[fold]["val"], folds[(fold + 1) % len(folds)]["val"]
    return {
        "train": [case for case in folds[fold]["train"] if case not in validated],
        "val": [case for case in validated if case not in tested],
        "test": tested,
    }


def _faults(content: dict, patients: Mapping[str, str]) -> list[str]:
    faults = [f"unknown part {key!r}: the parts are {', '.join(PARTS)}" for key in content if key not in PARTS]
    case_part: dict[str, str] = {}
    patient_part: dict[str, str] = {}
    for part in PARTS:
        cases = content.get(part)
        if not (isinstance(cases, list) and cases and all(isinstance(case, str) for case in cases)):
            faults.append(f"part {part!r} is {'missing' if cases is None else 'not a list of at least one case'}")
            continue
        for case in cases:
            patient = patients.get(case)
            if case in case_part:
                faults.append(f"{case} stands in {case_part[case]} and again in {part}")
            elif patient is None:
                faults.append(f"{case} ({part}) is not a case of the data")
            elif patient_part.setdefault(patient, part) != part:
                faults.append(
                    f"{case} ({part}) is of patient {patient}, who also has a case in {patient_part[patient]}"
                )
            case_part.setdefault(case, part)
    return faults


def _line_of_patients(patients: Sequence[str], groups: Sequence[str], seed: int) -> list[str]:
    """Patients, group after group, shuffled inside each; any even comb through it is stratified."""
    group = dict(zip(patients, groups, strict=True))
    shuffled = {patient: hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest() for patient in group}
    return sorted(group, key=lambda patient: (group[patient], shuffled[patient]))


def _evenly_spaced(line: list[str], size: int) -> set[str]:
    return {line[(2 * index + 1) * len(line) // (2 * size)] for index in range(size)}


def _split(cases: Sequence[str], patients: Sequence[str], *, val: set[str], test: set[str]) -> Split:
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for case, patient in sorted(zip(cases, patients, strict=True)):
        parts["val" if patient in val else "test" if patient in test else "train"].append(case)
    return Split(**{part: tuple(names) for part, names in parts.items()})
