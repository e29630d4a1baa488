"""BIDS: `sub-*/[ses-*/]anat/*_{T1w,T2w,FLAIR}.nii.gz`, and masks in `derivatives/`.

https://bids-specification.readthedocs.io, "Magnetic Resonance Imaging" and "Imaging data derivatives".
"""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from brainseg_jax.data.formats.listing import CaseFiles, Draft, few
from brainseg_jax.data.formats.names import ending, is_volume, ordered, stem
from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import Target
from brainseg_jax.scans.untrusted import read_bounded
from brainseg_jax.scans.walk import PassedOver

_SUBJECT = re.compile(r"sub-(?P<subject>[A-Za-z0-9]+)(?:_ses-(?P<session>[A-Za-z0-9]+))?_(?P<rest>.+)")
_SUFFIXES = ("T1w", "T2w", "FLAIR")
_LABEL_SUFFIXES = ("dseg", "mask")
_TABLE = "dseg.tsv"


def is_bids(root: Path) -> bool:
    """Whether the folder contains a folder `sub-*` with a subfolder `anat`."""
    return any(folder.is_dir() and _has_anat(folder) for folder in root.glob("sub-*"))


def list_bids(root: Path, files: Iterable[Path], passed_over: PassedOver, labels: str = "") -> Draft:
    """Lists one case per subject and session; the patient is the subject.

    A T1w with a contrast agent (the entity `ce`) is the channel `T1w-ce`.

    Args:
      root: folder of the cohort.
      files: all files in it.
      passed_over: receives files that are neither anatomical images nor masks.
      labels: pattern of the masks to use, relative to the folder, with `*` and `{case}`; "" for all in `derivatives`.
    """
    draft = Draft(
        "BIDS",
        root,
        patients_known=True,
        passed_over=passed_over,
        label_pattern=labels or "a *_dseg.nii.gz in derivatives",
    )
    images: dict[str, dict[str, Path]] = defaultdict(dict)
    masks: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))  # by kind and case
    patients: dict[str, str] = {}
    tables: list[Path] = []
    for path in files:
        parts = path.relative_to(root).parts
        match = _SUBJECT.fullmatch(stem(path)) if is_volume(path) and path.parent.name == "anat" else None
        if path.name.endswith(_TABLE):
            tables.append(path)
        if match is None:
            draft.passed_over["not an image in a folder anat"].append(path)
            continue
        case = f"sub-{match['subject']}" + (f"_ses-{match['session']}" if match["session"] else "")
        *entities, suffix = match["rest"].split("_")
        named = channel_of(stem(path))
        if parts[0] == "derivatives":
            if _is_label(entities, suffix, draft.short(path), labels.replace("{case}", case)):
                pipeline = "/".join(part for part in parts[:-2] if not part.startswith(("sub-", "ses-")))
                kind = labels or f"{pipeline}/*/{{case}}_{match['rest']}{ending(path)}"
                masks[kind][case].append(path)
                patients[case] = f"sub-{match['subject']}"
            else:
                draft.passed_over["not a label map, or not the selected one"].append(path)
        elif parts[0].startswith("sub-") and named:
            _, channel = named
            patients[case] = f"sub-{match['subject']}"
            if (first := images[case].setdefault(channel, path)) != path:
                draft.faults.append(
                    f"{draft.short(path)}: a second {channel} of {case}, beside {first.name}; keep one, or select one "
                    f'in cohort.toml, as in [channels] {channel} = "*/anat/{{case}}_run-1_{suffix}.nii.gz"'
                )
        else:
            draft.passed_over["a suffix other than T1w, T2w and FLAIR"].append(path)
    draft.channels = ordered({channel for files_of_case in images.values() for channel in files_of_case})
    label_of = _one_kind(draft, masks)
    for case in images.keys() | label_of.keys():
        draft.cases.append(CaseFiles(case, patients[case], "", images.get(case, {}), label_of.get(case)))
    _read_tables(draft, tables)
    return draft


def channel_of(name: str) -> tuple[str, str] | None:
    """Case and channel from the stem of an anatomical image; None for any other name."""
    match = _SUBJECT.fullmatch(name)
    if match is None:
        return None
    *entities, suffix = match["rest"].split("_")
    if suffix not in _SUFFIXES:
        return None
    case = f"sub-{match['subject']}" + (f"_ses-{match['session']}" if match["session"] else "")
    return case, f"{suffix}-ce" if any(entity.startswith("ce-") for entity in entities) else suffix


def _has_anat(folder: Path) -> bool:
    return (folder / "anat").is_dir() or any(anat.is_dir() for anat in folder.glob("ses-*/anat"))


def _is_label(entities: list[str], suffix: str, short: str, pattern: str) -> bool:
    if pattern:
        return fnmatchcase(short, pattern)
    return suffix in _LABEL_SUFFIXES and "desc-brain" not in entities


def _one_kind(draft: Draft, masks: dict[str, dict[str, list[Path]]]) -> dict[str, Path]:
    """The label map of each case; adds a fault if there are several kinds of masks, since the choice is ambiguous."""
    if len(masks) > 1:
        kinds = few(f"{kind} ({len(paths)} cases)" for kind, paths in sorted(masks.items()))
        draft.faults.append(
            f'{len(masks)} kinds of masks: {kinds}; choose one in cohort.toml, as in labels = "{min(masks)}"'
        )
    label_of: dict[str, Path] = {}
    for kind in sorted(masks):
        for case, (path, *others) in masks[kind].items():
            label_of.setdefault(case, path)
            draft.faults += [
                f"{draft.short(other)}: a second mask of {case}, beside {draft.short(path)}; keep one"
                for other in others
            ]
    return label_of


def _read_tables(draft: Draft, tables: list[Path]) -> None:
    """Reads the targets from tables of label names; adds a fault if tables differ."""
    path_of: dict[tuple[Target, ...], Path] = {}
    for path in tables:
        try:
            path_of.setdefault(_read_table(path), path)
        except InputError as error:
            draft.faults.append(f"{draft.short(path)}: {error}")
    if len(path_of) > 1:
        first, second, *_ = (draft.short(path) for path in path_of.values())
        draft.faults.append(
            f"{second}: labels differ from those in {first}; give the same table for all, or remove one"
        )
    elif path_of:
        ((draft.targets, path),) = path_of.items()
        draft.notes.append(f"labels by {draft.short(path)}: {few(f'{t.labels[0]} {t.name}' for t in draft.targets)}")


def _read_table(path: Path) -> tuple[Target, ...]:
    """One target per row, except the background."""
    try:
        text = read_bounded(path).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"not readable as a table ({error}); correct it") from error
    targets = []
    for number, row in enumerate(rows, start=2):
        index, name = (row.get("index") or "").strip(), (row.get("name") or "").strip()
        if not (index.isascii() and index.isdecimal()) or not name:
            raise InputError(
                f"line {number}: index {index!r}, name {name!r}; give a whole number and a name, separated by tabs"
            )
        if int(index):
            targets.append(Target(name, (int(index),)))
    if not targets:
        raise InputError("no label in it; give the columns index and name, separated by tabs, and one row per label")
    return tuple(targets)
