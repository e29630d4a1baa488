"""Cases with one file per sequence, `<case>_flair.nii.gz` beside `<case>_seg.nii.gz`, as in BraTS.

BraTS 2018 to 2021 has t1, t1ce, t2, flair and the labels 1, 2, 4; from 2023 on t1n, t1c, t2w, t2f and 1, 2, 3. Its
regions are those of Baid et al. 2021, arXiv 2107.02314: whole tumor, tumor core, enhancing tumor.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from brainseg_jax.data.formats.listing import CaseFiles, Draft, few
from brainseg_jax.data.formats.names import images_of_mask, is_volume, ordered, same_sequence, split_sequence, stem
from brainseg_jax.scans.description import Target
from brainseg_jax.scans.walk import PassedOver

BRATS_OLD, BRATS_NEW = ("t1", "t1ce", "t2", "flair"), ("t1n", "t1c", "t2w", "t2f")
_ENHANCING = {BRATS_OLD: 4, BRATS_NEW: 3}
_TIME_POINT = re.compile(r"(?P<patient>BraTS(?:-[A-Za-z]+)+-[0-9]+)-[0-9]+", re.IGNORECASE)
BRATS_NOTE = "regions of BraTS by the names"


def names_sequence(path: Path) -> bool:
    """Whether the name ends in a sequence."""
    return is_volume(path) and not images_of_mask(path) and split_sequence(stem(path))[0] is not None


def list_sequence_files(root: Path, files: Iterable[Path], passed_over: PassedOver) -> Draft:
    """Lists cases by the names of their files, in one folder or one folder per case.

    Args:
      root: folder of the cohort.
      files: all files in it.
      passed_over: receives files that are not NIfTI.
    """
    draft = Draft("cases with one file per sequence", root, passed_over=passed_over, label_pattern="{case}_seg.nii.gz")
    images: dict[str, dict[str, Path]] = defaultdict(dict)
    labels: dict[str, Path] = {}
    masks: list[Path] = []
    for path in files:
        if not is_volume(path):
            draft.passed_over["not a NIfTI file"].append(path)
            continue
        if images_of_mask(path):
            masks.append(path)
            continue
        case, sequence = split_sequence(stem(path))
        case = case or path.parent.absolute().name
        _add(draft, images[case], sequence, path, f"{sequence} of {case}")
    for path in masks:
        names = images_of_mask(path)
        if names[0].lower().endswith("brain") and names[0] not in images:
            draft.passed_over["masks of the brain"].append(path)
            continue
        without = [split_sequence(name)[0] for name in names]  # `P1` of P1_flair_seg
        likely = [name or path.parent.absolute().name for name in (*without, *names) if name is not None]
        case = next((name for name in likely if name in images), likely[0])
        _add(draft, labels, case, path, f"label of {case}")
    sequences = {sequence for case in images.values() for sequence in case}
    _check_spellings(draft, images, sequences)
    draft.channels = ordered(sequences)
    for case in images.keys() | labels.keys():
        match = _TIME_POINT.fullmatch(case)
        patient = match["patient"] if match else case
        draft.cases.append(CaseFiles(case, patient, "", images.get(case, {}), labels.get(case)))
    if len({case.patient for case in draft.cases}) < len(draft.cases):
        draft.notes.append("names like BraTS-GLI-00001-000 and -001 are used as time points of one patient")
    _set_brats_targets(draft)
    return draft


def _add(draft: Draft, paths: dict[str, Path], key: str, path: Path, label: str) -> None:
    if (first := paths.setdefault(key, path)) != path:
        draft.faults.append(f"{draft.short(path)}: a second {label}, beside {draft.short(first)}; keep one")


def _check_spellings(draft: Draft, images: dict[str, dict[str, Path]], sequences: set[str]) -> None:
    """Adds a fault for a sequence in two spellings, which may mix years of BraTS with different label values."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for sequence in sorted(sequences):
        spellings[same_sequence(sequence)].append(sequence)
    for names in spellings.values():
        if len(names) > 1:
            first = {name: next(paths[name] for paths in images.values() if name in paths) for name in names}
            draft.faults.append(
                f"{few(f'{name} ({draft.short(path)})' for name, path in first.items())}: spellings of one sequence; "
                "use one spelling for all files. BraTS until 2021 (t1ce, flair) has label 4 where later years (t1c, "
                "t2f) have 3: do not mix them without converting the labels"
            )


def _set_brats_targets(draft: Draft) -> None:
    if draft.channels not in _ENHANCING or not all(case.name.lower().startswith("brats") for case in draft.cases):
        return
    enhancing = _ENHANCING[draft.channels]
    draft.kind = f"BraTS {'until 2021' if draft.channels == BRATS_OLD else 'from 2023 on'}"
    draft.targets = (
        Target("whole tumor", (2, 1, enhancing)),
        Target("tumor core", (1, enhancing)),
        Target("enhancing tumor", (enhancing,)),
    )
    draft.notes.append(
        f"{BRATS_NOTE}: whole tumor = 1, 2, {enhancing}; tumor core = 1, {enhancing}; enhancing "
        f"tumor = {enhancing}; cohort.toml can define other regions"
    )
