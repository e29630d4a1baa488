"""Reads `cohort.toml`, in which a user describes a cohort that names do not describe.

It can override what a format gives:

    channels = ["t1ce", "flair"]        # a selection of the channels of the format
    stand_in = "flair"                  # replaces a missing channel
    ignore = 255                        # label value that counts in no loss and no score
    slices = false                      # pairs: each 2-D image is a separate case
    patient = "(P[0-9]+)_.*"            # pattern for case names, with the patient in parentheses
    group = "P[0-9]+_([A-Z]+)"          # the same for the institution
    # patient_column = "subject"        # instead of the patterns: other column names in patients.csv
    # group_column = "site"
    [targets]                           # label values; masks are painted in this order, each with its first value
    "whole tumor" = [2, 1, 3]
    "tumor core" = [1, 3]

Patterns, relative to the folder, describe files of any names: `{case}` is the name of the case, `{slice}` the number of
a 2-D image, and `*` any text within a name. In BIDS, `labels` alone selects among several kinds of masks.

    labels = "{case}/roi.nii.gz"
    [channels]
    T1 = "{case}/anat_T1_*.nii.gz"
    FLAIR = "{case}/anat_FLAIR_*.nii.gz"
"""

import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from brainseg_jax.data.formats.listing import CaseFiles, Draft, Files, few
from brainseg_jax.data.formats.names import is_flat, is_image
from brainseg_jax.data.formats.pairs import PAIRS
from brainseg_jax.data.formats.patients import apply_pattern, apply_table
from brainseg_jax.data.formats.sequence_files import BRATS_NOTE
from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import Target
from brainseg_jax.scans.untrusted import read_bounded
from brainseg_jax.scans.walk import PassedOver

NAME = "cohort.toml"
_TYPES: dict[str, type | tuple[type, ...]] = {
    "channels": (list, dict),
    "labels": str,
    "stand_in": str,
    "ignore": int,
    "slices": bool,
    "patient": str,
    "group": str,
    "patient_column": str,
    "group_column": str,
    "targets": dict,
}


@dataclass(frozen=True)
class CohortToml:
    """The content of `cohort.toml`; missing keys have their defaults.

    Attributes:
      channels: names of the channels to use; empty for all of the format.
      patterns: of the files by channel; empty if the format gives the files.
      labels: pattern of the label maps; "" if the format gives the files.
      stand_in: see `Description`.
      ignore: see `Description`.
      slices: whether numbered 2-D images of pairs are slices of one case.
      patterns_of: patterns for the names of the cases, by "patient" and "group".
      patient_column: of `patients.csv`.
      group_column: of `patients.csv`.
      targets: None if the format gives them.
    """

    channels: tuple[str, ...] = ()
    patterns: dict[str, str] = field(default_factory=dict)
    labels: str = ""
    stand_in: str = ""
    ignore: int | None = None
    slices: bool = True
    patterns_of: dict[str, re.Pattern] = field(default_factory=dict)
    patient_column: str = "patient"
    group_column: str = "group"
    targets: tuple[Target, ...] | None = None


def read_cohort_toml(root: Path) -> CohortToml:
    """Reads `cohort.toml`, if it exists.

    Raises:
      InputError: the file is unreadable, or lists all faults: unknown keys, wrong types and invalid patterns.
    """
    path = root / NAME
    if not path.is_file():
        return CohortToml()
    try:
        content = tomllib.loads(read_bounded(path).decode("utf-8-sig"))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as TOML ({error}); correct it") from error
    faults = [f"unknown key {key!r}; the keys are {', '.join(_TYPES)}" for key in content if key not in _TYPES]
    faults += [
        f"{key} is {content[key]!r}; see docs/how-to/own-cohort.md for valid values"
        for key, types in _TYPES.items()
        if key in content and (not isinstance(content[key], types) or (types is int and isinstance(content[key], bool)))
    ]
    if not faults:
        faults, settings = _parse(content)
    if faults:
        raise InputError(f"{path}: correct it:\n  " + "\n  ".join(faults))
    return settings


def _parse(content: dict) -> tuple[list[str], CohortToml]:
    """Faults, and the parsed content."""
    faults, channels = [], content.get("channels", [])
    names = list(channels) if isinstance(channels, list) else list(channels.values())
    if not all(isinstance(name, str) and name for name in names) or ("channels" in content and not names):
        faults.append(
            'channels: give names, as in ["T1", "FLAIR"], or a pattern for each, as in T1 = "{case}_T1.nii.gz"'
        )
        names = channels = []
    patterns = channels if isinstance(channels, dict) else {}
    if patterns and "labels" not in content:
        faults.append('labels is missing, but channels have patterns; add one, as in labels = "{case}_seg.nii.gz"')
    for key, pattern in [*patterns.items(), ("labels", content.get("labels", "{case}"))]:
        if patterns and "{case}" not in pattern:
            faults.append(f"{key}: the pattern {pattern!r} has no {{case}}, the name of the case; add it")
    if "ignore" in content and not 1 <= content["ignore"] <= 255:
        faults.append(f"ignore = {content['ignore']}; give a label value from 1 to 255")
    targets = {
        name: values if isinstance(values, list) else [values] for name, values in content.get("targets", {}).items()
    }
    if "ignore" in targets:
        faults.append(
            f"targets: ignore = {targets.pop('ignore')}; an ignored label is not a target: write `ignore = LABEL` "
            "above [targets]"
        )
    for name, values in targets.items():
        if not values or not all(type(value) is int and 1 <= value <= 255 for value in values):
            faults.append(f"targets: {name} = {values}; give label values from 1 to 255, as in [1, 2]")
    patterns_of = {}
    for key in [key for key in ("patient", "group") if key in content]:
        try:
            patterns_of[key] = re.compile(content[key])
            if not patterns_of[key].groups:
                faults.append(f"{key}: the pattern {content[key]!r} has no parentheses; put them around the {key}")
        except re.error as error:
            faults.append(f"{key}: {content[key]!r} is not a valid regular expression ({error}); correct it")
        if f"{key}_column" in content:
            faults.append(f"{key} and {key}_column: keep one")
    return faults, CohortToml(
        tuple(channels) if isinstance(channels, list) else (),
        patterns,
        content.get("labels", ""),
        content.get("stand_in", ""),
        content.get("ignore"),
        content.get("slices", True),
        patterns_of,
        content.get("patient_column", "patient"),
        content.get("group_column", "group"),
        tuple(Target(name, tuple(dict.fromkeys(values))) for name, values in targets.items()) or None,
    )


def list_by_patterns(
    root: Path, files: Iterable[Path], passed_over: PassedOver, settings: CohortToml, *, labelled: bool = True
) -> Draft:
    """Lists a cohort by the patterns of `[channels]` and `labels`.

    Args:
      root: folder of the cohort.
      files: all files in it.
      passed_over: receives files that fit no pattern.
      settings: the content of `cohort.toml`, with patterns.
      labelled: whether to look for label maps.
    """
    draft = Draft(f"described by {NAME}", root, channels=tuple(settings.patterns), passed_over=passed_over)
    draft.label_pattern = settings.labels
    patterns = {**settings.patterns, **({"": settings.labels} if labelled else {})}  # the key of the labels is ""
    files_of: dict[str, dict[str, dict[int, Path]]] = defaultdict(lambda: defaultdict(dict))
    used: set[str] = set()
    for path in files:
        fits = [(name, match) for name, pattern in patterns.items() if (match := _match(pattern, draft.short(path)))]
        if not fits or not is_image(path):
            draft.passed_over[f"fits no pattern of {NAME}"].append(path)
        for name, match in fits:
            used.add(name)
            groups = match.groupdict()
            by_number = files_of[groups["case"]][name]
            number = int(groups.get("slice") or 1)
            if (first := by_number.setdefault(number, path)) != path:
                draft.faults.append(
                    f"{draft.short(path)}: a second {name or 'label'} of {groups['case']}, beside "
                    f"{draft.short(first)}; give a longer pattern in {NAME}"
                )
    draft.faults += [
        f"{NAME}: {name or 'labels'} = {pattern!r} fits no file; correct it"
        for name, pattern in patterns.items()
        if name not in used
    ]
    for case, by_name in files_of.items():
        images: dict[str, Files] = {name: _files(paths) for name, paths in by_name.items() if name}
        draft.cases.append(CaseFiles(case, case, "", images, _files(by_name[""]) if "" in by_name else None))
    return draft


def apply(settings: CohortToml, draft: Draft) -> None:
    """Overrides a draft by `cohort.toml` and `patients.csv`; adds faults to the draft."""
    if settings.channels:
        if unknown := [name for name in settings.channels if name not in draft.channels]:
            draft.faults.append(
                f"{NAME}: no channel {few(unknown)} in the folder (present: {few(draft.channels, 8)}); correct channels"
            )
        elif any("" in case.images for case in draft.cases):
            draft.faults.append(f"{NAME}: channels cannot be selected if one file has all of them; remove the key")
        else:
            _select_channels(settings.channels, draft)
    if settings.labels and not settings.patterns and draft.kind != "BIDS":
        draft.faults.append(f"{NAME}: labels has an effect only in BIDS and with patterns for channels; remove it")
    if not settings.slices and draft.kind != PAIRS:
        draft.faults.append(f"{NAME}: slices has an effect only on pairs of image and mask; remove it")
    if settings.stand_in:
        draft.stand_in = settings.stand_in
    if settings.targets:
        draft.targets, draft.painted = settings.targets, ()
        draft.notes = [note for note in draft.notes if not note.startswith(BRATS_NOTE)]
    if settings.ignore is not None:
        draft.ignore = settings.ignore
    for key, pattern in settings.patterns_of.items():
        apply_pattern(draft, pattern, key)
    apply_table(draft, settings.patient_column, settings.group_column)


def _select_channels(channels: tuple[str, ...], draft: Draft) -> None:
    for index, case in enumerate(draft.cases):
        images = {name: files for name, files in case.images.items() if name in channels}
        draft.cases[index] = CaseFiles(case.name, case.patient, case.group, images, case.labels)
    draft.notes.append(f"channels by {NAME}: {', '.join(channels)}, of {', '.join(draft.channels)}")
    draft.channels = channels


def _files(paths: dict[int, Path]) -> Files:
    path = next(iter(paths.values()))
    return tuple(sorted(paths.items())) if is_flat(path) or len(paths) > 1 else path


def _match(pattern: str, path: str) -> re.Match | None:
    """Matches a pattern with `{case}`, `{slice}` and `*`; a repeated `{case}` must match the same text."""
    regex, seen = "", set()
    for part in re.split(r"(\{case\}|\{slice\}|\*)", pattern.removeprefix("./")):
        if part == "*":
            regex += "[^/]*"
        elif part in ("{case}", "{slice}"):
            name = part[1:-1]
            regex += f"(?P={name})" if name in seen else f"(?P<{name}>{'[^/]+' if name == 'case' else '[0-9]{1,9}'})"
            seen.add(name)
        else:
            regex += re.escape(part)
    return re.fullmatch(regex, path)
