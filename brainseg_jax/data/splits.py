"""Splits the cases into training, validation and test: whole patients, stratified by group, from a seed.

Neighboring slices of one patient look alike, and so do two scans of one patient. Scores after a split by slice or by
scan therefore reward memorization. A split lists cases, and all cases of a patient are in the same part.

The order comes from SHA-256 and not from a random generator. So a seed gives the same split on every machine and with
every numpy version.
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
    """Names of the cases in each part. The functions of this module keep each patient in one part."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


def split_by_fractions(
    cases: Sequence[str], patients: Sequence[str], groups: Sequence[str], *, val: float, test: float, seed: int
) -> Split:
    """Assigns `round(n * fraction)` of the n patients to validation and to test, and the others to training.

    Args:
      cases: names.
      patients: patient of each case.
      groups: group of each case, such as its institution. The test part gets
        its share of each group to within one patient, the other parts approximately.
      val: Fraction for validation, above 0.
      test: Fraction for test, above 0. The sum with `val` is below 1.
      seed: A different seed gives a different split.

    Raises:
      InputError: A fraction is out of range, or a part would be empty.
    """
    ordered = _ordered_patients(patients, groups, seed)
    if not (val > 0 and test > 0 and val + test < 1):
        raise InputError(f"split fractions val={val}, test={test}: give two numbers above 0 whose sum is below 1")
    sizes = {"test": round(len(ordered) * test), "val": round(len(ordered) * val)}
    sizes["train"] = len(ordered) - sizes["test"] - sizes["val"]
    empty = [part for part in PARTS if sizes[part] < 1]
    if empty:
        raise InputError(
            f"split fractions val={val}, test={test} of {len(ordered)} patients leave no patients for "
            f"{', '.join(empty)}: give larger fractions or more patients"
        )
    test_patients = _evenly_spaced(ordered, sizes["test"])
    val_patients = _evenly_spaced([patient for patient in ordered if patient not in test_patients], sizes["val"])
    return _split(cases, patients, val=val_patients, test=test_patients)


def split_by_folds(
    cases: Sequence[str], patients: Sequence[str], groups: Sequence[str], *, folds: int, fold: int, seed: int
) -> Split:
    """Returns one split of a cross-validation: fold `fold` is the test part, the next one the validation part.

    Over all folds each patient is tested exactly once. Fold sizes differ by at most one patient.

    Args:
      cases: names.
      patients: patient of each case.
      groups: group of each case. Each fold gets its share of each group, within one patient.
      folds: Number of folds, from 3 to the number of patients.
      fold: 0 to `folds` - 1.
      seed: A different seed gives different folds.

    Raises:
      InputError: `folds` or `fold` is out of range.
    """
    ordered = _ordered_patients(patients, groups, seed)
    if not 3 <= folds <= len(ordered):
        raise InputError(f"split folds={folds}: give 3 to {len(ordered)}, the number of patients")
    if not 0 <= fold < folds:
        raise InputError(f"split fold={fold}: give 0 to {folds - 1}")
    return _split(cases, patients, val=set(ordered[(fold + 1) % folds :: folds]), test=set(ordered[fold::folds]))


def write_split(path: Path, split: Split) -> None:
    """Writes the split as JSON `{"train": [...], "val": [...], "test": [...]}`, completely or not at all."""
    content = json.dumps(asdict(split), indent=1) + "\n"
    write_whole(Path(path), lambda part: part.write_text(content))


def read_split(path: Path, cases: Sequence[str], patients: Sequence[str], *, fold: int = 0) -> Split:
    """Reads a split file of `write_split`, a user or nnU-Net.

    nnU-Net's `splits_final.json` lists folds with a training and a validation part, but no test part. It is read like
    `split_by_folds`. The validation part of fold `fold` is the test part, and that of the next fold is the validation
    part. The other cases of the fold's training part are for training.

    Cases that the file does not list are not used. A warning lists them.

    Args:
      path: JSON file with a list of case names for each of train, val and test; or nnU-Net's.
      cases: of the cohort.
      patients: patient of each case.
      fold: of nnU-Net's file, from 0.

    Raises:
      InputError: The file cannot be read, the fold does not exist, or the split has faults; the message lists all of
        them. A fault is a missing, unknown or empty part, a part that is not a list of names, a case that is unknown or
        listed twice, or a patient with cases in two parts.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a JSON split file: {error}") from error
    if isinstance(content, list):
        content = _fold_of_nnunet(path, content, fold)
    if not isinstance(content, dict):
        raise InputError(f"{path}: contains a {type(content).__name__}, not an object with keys {', '.join(PARTS)}")
    faults = _faults(content, dict(zip(cases, patients, strict=True)))
    if faults:
        raise InputError(f"{path}: the split has faults; correct the file:\n  " + "\n  ".join(faults))
    split = Split(*(tuple(content[part]) for part in PARTS))
    unlisted = sorted(set(cases).difference(split.train, split.val, split.test))
    if unlisted:
        logging.warning("%s does not list %d cases of the data: %s", path, len(unlisted), ", ".join(unlisted))
    return split


def cases_sharing_patients(cases: Sequence[str], patients: Sequence[str], known: Collection[str]) -> set[str]:
    """Returns the cases whose patient also has a case in `known`, such as another network's training cases.

    A patient is known if one of the patient's cases is known, or if the name of a known case starts with the patient's
    name: `sub-01_ses-2` for `sub-01`, `TCGA_DU_5849_19950405` for `TCGA_DU_5849`.

    Args:
      cases: names.
      patients: patient of each case.
      known: names of cases or patients, of this or another cohort.

    Returns:
      The subset of `cases`.
    """
    known_patients = {patient for case, patient in zip(cases, patients, strict=True) if case in known}
    for patient in set(patients) - known_patients:
        if any(name == patient or name.startswith((f"{patient}_", f"{patient}-")) for name in known):
            known_patients.add(patient)
    return {case for case, patient in zip(cases, patients, strict=True) if patient in known_patients}


def _fold_of_nnunet(path: Path, folds: list, fold: int) -> dict:
    is_valid = all(
        isinstance(item, dict) and all(isinstance(item.get(part), list) for part in ("train", "val")) for item in folds
    )
    if not is_valid or len(folds) < 2:
        raise InputError(
            f"{path}: a list, but not of two or more folds that each list the cases of train and val, as in "
            "nnU-Net; correct the file"
        )
    if not 0 <= fold < len(folds):
        raise InputError(f"{path} has {len(folds)} folds, but split.fold={fold}; give 0 to {len(folds) - 1}")
    test, val = folds[fold]["val"], folds[(fold + 1) % len(folds)]["val"]
    return {
        "train": [case for case in folds[fold]["train"] if case not in val],
        "val": [case for case in val if case not in test],
        "test": test,
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
                faults.append(f"{case} is listed in {case_part[case]} and again in {part}")
            elif patient is None:
                faults.append(f"{case} ({part}) is not a case of the data")
            elif patient_part.setdefault(patient, part) != part:
                faults.append(
                    f"{case} ({part}) belongs to patient {patient}, who also has a case in {patient_part[patient]}"
                )
            case_part.setdefault(case, part)
    return faults


def _ordered_patients(patients: Sequence[str], groups: Sequence[str], seed: int) -> list[str]:
    """Patients sorted by group and shuffled within each group. Evenly spaced picks are therefore stratified."""
    group_of = dict(zip(patients, groups, strict=True))
    order = {patient: hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest() for patient in group_of}
    return sorted(group_of, key=lambda patient: (group_of[patient], order[patient]))


def _evenly_spaced(items: list[str], size: int) -> set[str]:
    return {items[(2 * index + 1) * len(items) // (2 * size)] for index in range(size)}


def _split(cases: Sequence[str], patients: Sequence[str], *, val: set[str], test: set[str]) -> Split:
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for case, patient in sorted(zip(cases, patients, strict=True)):
        parts["val" if patient in val else "test" if patient in test else "train"].append(case)
    return Split(**{part: tuple(names) for part, names in parts.items()})
