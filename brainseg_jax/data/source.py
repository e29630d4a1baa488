"""Finds the cases of the LGG set in `kaggle_3m/`, a folder that contains it, or Kaggle's zip.

`pathlib.Path` for folders and `zipfile.Path` for zips have the same methods. One code path reads both, and nothing is
extracted. Faults are collected as messages, so that the user sees all of them at once.
"""

import contextlib
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Set
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from absl import logging

from brainseg_jax.data.clinical import UNKNOWN, Clinical, read_clinical
from brainseg_jax.errors import InputError
from brainseg_jax.scans.untrusted import open_zip
from brainseg_jax.scans.walk import IGNORED_NAMES

TreePath = Path | zipfile.Path

CASE_NAME = re.compile(r"(?P<patient>TCGA_[A-Z0-9]{2}_[A-Z0-9]{4})_[0-9]{8}")
SLICE_NAME = re.compile(r"(?P<case>.+)_(?P<number>[1-9][0-9]{0,18})(?P<mask>_mask)?\.tif")
# Possible locations below the given path. Kaggle's zip contains the folder twice; the first match is used.
TREE_FOLDERS = ("kaggle_3m", "lgg-mri-segmentation/kaggle_3m")
_KNOWN_NAMES = ("data.csv", "README.md")  # files next to the case folders in Kaggle's set


@dataclass(frozen=True)
class KaggleSlice:
    """One slice of a case: its number (from 1) and its two files."""

    number: int
    image: TreePath
    mask: TreePath


@dataclass(frozen=True)
class KaggleCase:
    """One scan of a patient: slices in the order of their numbers, which run from 1 without gaps."""

    name: str
    slices: tuple[KaggleSlice, ...]
    clinical: Clinical

    @property
    def institution(self) -> str:
        """The two-letter code of the institution: `DU` in `TCGA_DU_5849_19950405`."""
        return self.name.split("_")[1]


def list_cases(path: str | Path) -> tuple[list[KaggleCase], list[str]]:
    """Lists the cases in `path`, sorted by name, without opening an image.

    Args:
      path: `kaggle_3m/`, a folder that contains it, or Kaggle's zip.

    Returns:
      The cases, and one message for each fault. A warning lists other files next to the case folders. The faults are:
      - a folder that is not a case, or a file that is not a slice
      - a mask without an image, or an image without a mask
      - a gap in the numbering
      - two scans of one patient
      - a fault in `data.csv`
      - a file or a broken link named like a case

    Raises:
      InputError: `path` does not exist, is neither folder nor zip, or contains no case.
    """
    tree = _find_tree(Path(path))
    table, faults = read_clinical(tree / "data.csv")
    cases, scans, passed_over = [], defaultdict(list), []
    for entry in _visible(tree):
        where = f"{tree.name}/{entry.name}"
        if not entry.is_dir():
            if entry.name.lower().endswith((".tif", ".tiff")):
                faults.append(f"{where}: a slice outside of a case folder; move it into its case folder, or remove it")
            elif CASE_NAME.fullmatch(entry.name):
                kind = "a file" if entry.exists() else "a broken link"
                faults.append(f"{where}: {kind} with the name of a case; a case is a folder")
            elif entry.name not in _KNOWN_NAMES:
                passed_over.append(entry.name)
        elif match := CASE_NAME.fullmatch(entry.name):
            slices, case_faults = _list_slices(entry)
            faults += case_faults
            cases.append(KaggleCase(entry.name, tuple(slices), table.get(match["patient"], UNKNOWN)))
            scans[match["patient"]].append(entry.name)
        else:
            faults.append(f"{where}: a folder that is not a case; a case is named like TCGA_DU_5849_19950405")
    if passed_over:
        more = ", ..." if len(passed_over) > 3 else ""
        listed = ", ".join(passed_over[:3]) + more
        logging.warning(
            "%s: passed over %d files that are not named like a case: %s", tree.name, len(passed_over), listed
        )
    faults += [
        f"{tree.name}/{names[-1]}: a second scan of patient {patient} (the first is {names[0]}); "
        "scores and splits are by patient, so keep one"
        for patient, names in scans.items()
        if len(names) > 1
    ]
    return cases, faults


def is_kaggle(path: Path) -> bool:
    """Whether a folder is the LGG data: it contains `kaggle_3m`, or is it, and a case folder there has a slice."""
    with contextlib.suppress(OSError):
        for tree in (path, *(path / folder for folder in TREE_FOLDERS)):
            if tree.is_dir():
                cases = (entry for entry in tree.iterdir() if CASE_NAME.fullmatch(entry.name) and entry.is_dir())
                if any(SLICE_NAME.fullmatch(file.name) for case in cases for file in case.iterdir()):
                    return True
    return False


def _find_tree(path: Path) -> TreePath:
    """The folder that contains the case folders."""
    root = _open(path)
    for tree in (root, *(root / folder for folder in TREE_FOLDERS)):
        if tree.is_dir() and any(CASE_NAME.fullmatch(entry.name) and entry.is_dir() for entry in tree.iterdir()):
            return tree
    found = ", ".join(entry.name for entry in list(_visible(root))[:5]) or "nothing"
    raise InputError(
        f"{path}: no case in it (found: {found}). Give kaggle_3m/, a folder that contains it, or Kaggle's "
        "zip; a case is a folder named like TCGA_DU_5849_19950405. For a zip of another cohort, unpack it and give the "
        "folder."
    )


def _open(path: Path) -> TreePath:
    if path.is_dir():
        return path
    if not path.exists():
        raise InputError(
            f"{path}: no such file or folder. Give kaggle_3m/, a folder that contains it, or Kaggle's zip."
        )
    return open_zip(path)


def _visible(folder: TreePath) -> Iterator[TreePath]:
    """The entries of a folder, sorted by name, without system files."""
    entries = (
        entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name not in IGNORED_NAMES
    )
    return iter(sorted(entries, key=lambda entry: entry.name))


def _list_slices(folder: TreePath) -> tuple[list[KaggleSlice], list[str]]:
    """The slices of one case in the order of their numbers, and the faults of its files."""
    images: dict[int, TreePath] = {}
    masks: dict[int, TreePath] = {}
    faults = []
    for entry in _visible(folder):
        match = SLICE_NAME.fullmatch(entry.name)
        if match is None or match["case"] != folder.name or entry.is_dir():
            expected = f"{folder.name}_<number>.tif or {folder.name}_<number>_mask.tif"
            faults.append(f"{folder.name}/{entry.name}: unexpected in a case folder; expected {expected}")
        else:
            (masks if match["mask"] else images)[int(match["number"])] = entry
    numbers = images.keys() | masks.keys()
    if not numbers:
        faults.append(f"{folder.name}: a case without a slice")
    elif max(numbers) > len(numbers):
        missing = ", ".join(str(number) for number in islice(_gaps(numbers), 10))
        more = ", ..." if max(numbers) - len(numbers) > 10 else ""
        faults.append(
            f"{folder.name}: a gap in the numbering, which must run from 1 to {max(numbers)}: no {missing}{more}"
        )
    faults += [f"{folder.name}/{images[n].name}: an image without a mask" for n in sorted(images.keys() - masks.keys())]
    faults += [f"{folder.name}/{masks[n].name}: a mask without an image" for n in sorted(masks.keys() - images.keys())]
    paired = sorted(images.keys() & masks.keys())
    return [KaggleSlice(number, images[number], masks[number]) for number in paired], faults


def _gaps(numbers: Set[int]) -> Iterator[int]:
    """An endless iterator over missing numbers from 1. A file name can contain an arbitrarily large number."""
    return (number for number in count(1) if number not in numbers)
