"""`cohort.toml`, by which a user describes a cohort where names do not tell.

It can change what a format tells:

    channels = ["t1ce", "flair"]        # of those that the format has
    stand_in = "flair"                  # replaces a missing channel
    ignore = 255                        # label value that counts in no loss and no score
    slices = false                      # pairs: each 2-D image is a case of its own
    patient = "(P[0-9]+)_.*"            # pattern for the names of the cases, the patient in parentheses
    group = "P[0-9]+_([A-Z]+)"          # the same for the institution
    # patient_column = "subject"        # instead of the patterns: columns of patients.csv, where they have other names
    # group_column = "site"
    [targets]                           # label values; masks are painted with the first value of each, in this order
    "whole tumor" = [2, 1, 3]
    "tumor core" = [1, 3]

Files of any names are described by patterns relative to the folder. There `{case}` is the name of the case, `{slice}`
the number of a 2-D image, and `*` any text within a name. In BIDS, `labels` alone chooses among several kinds of masks.

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
_TYPES = {
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
class Described:
    """The content of `cohort.toml`; what it leaves out has its default.

    Attributes:
      channels: names of the channels to use, of those that the format has; empty for all.
      patterns: of the files by channel; empty where the format tells.
      labels: pattern of the label maps; "" where the format tells.
      stand_in: see `Description`.
      ignore: see `Description`.
      slices: whether numbered 2-D images of pairs are slices of one case.
      patterns_of: by "patient" and "group", the pattern for the names of the cases.
      patient_column: of `patients.csv`.
      group_column: of `patients.csv`.
      targets: None where the format tells.
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


def read_described(root: Path) -> Described:
    """Reads `cohort.toml`, if it is there.

    Raises:
      InputError: it cannot be read, or lists all faults: unknown keys, values of another type, patterns that cannot be.
    """
    path = root / NAME
    if not path.is_file():
        return Described()
    try:
        content = tomllib.loads(read_bounded(path).decode("utf-8-sig"))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as TOML ({error}); correct it") from error
    faults = [f"unknown key {key!r}; the keys are {', '.join(_TYPES)}" for key in content if key not in _TYPES]
    faults += [
        f"{key} is {content[key]!r}; see docs/how-to/own-cohort.md for what it takes"
        for key, types in _TYPES.items()
        if key in content and (not isinstance(content[key], types) or (types is int and isinstance(content[key], bool)))
    ]
    if not faults:
        faults, described = _understand(content)
    if faults:
        raise InputError(f"{path}: correct it:\n  " + "\n  ".join(faults))
    return described


def _understand(content: dict) -> tuple[list[str], Described]:
    """Faults, and what the file says."""
    faults, channels = [], content.get("channels", [])
    names = list(channels) if isinstance(channels, list) else list(channels.values())
    if not all(isinstance(name, str) and name for name in names) or ("channels" in content and not names):
        faults.append(
            'channels: give names, as in ["T1", "FLAIR"], or a pattern for each, as in T1 = "{case}_T1.nii.gz"'
        )
        names = channels = []
    patterns = channels if isinstance(channels, dict) else {}
    if patterns and "labels" not in content:
        faults.append('labels is missing beside patterns for channels; add one, as in labels = "{case}_seg.nii.gz"')
    for key, pattern in [*patterns.items(), ("labels", content.get("labels", "{case}"))]:
        if patterns and "{case}" not in pattern:
            faults.append(
                f"{key}: the pattern {pattern!r} has no {{case}}, which stands for the name of the case; add it"
            )
    if "ignore" in content and not 1 <= content["ignore"] <= 255:
        faults.append(f"ignore = {content['ignore']}; give a label value from 1 to 255")
    targets = {
        name: values if isinstance(values, list) else [values] for name, values in content.get("targets", {}).items()
    }
    if "ignore" in targets:
        faults.append(
            f"targets: ignore = {targets.pop('ignore')}; a label whose voxels do not count is no target: write "
            "`ignore = LABEL` above [targets]"
        )
    for name, values in targets.items():
        if not values or not all(type(value) is int and 1 <= value <= 255 for value in values):
            faults.append(f"targets: {name} = {values}; give label values from 1 to 255, as in [1, 2]")
    patterns_of = {}
    for key in [key for key in ("patient", "group") if key in content]:
        try:
            patterns_of[key] = re.compile(content[key])
            if not patterns_of[key].groups:
                faults.append(f"{key}: the pattern {content[key]!r} has no part in parentheses, which is the {key}")
        except re.error as error:
            faults.append(f"{key}: {content[key]!r} is no regular expression ({error})")
        if f"{key}_column" in content:
            faults.append(f"{key} and {key}_column: keep one")
    return faults, Described(
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


def list_described(
    root: Path, files: Iterable[Path], passed_over: PassedOver, described: Described, *, labelled: bool = True
) -> Draft:
    """Lists a cohort by the patterns of `[channels]` and `labels`.

    Args:
      root: folder of the cohort.
      files: all below it.
      passed_over: takes what fits no pattern.
      described: with patterns.
      labelled: whether label maps are looked for.
    """
    draft = Draft(f"described by {NAME}", root, channels=tuple(described.patterns), passed_over=passed_over)
    draft.label_place = described.labels
    wanted = {**described.patterns, **({"": described.labels} if labelled else {})}  # the labels stand at ""
    found: dict[str, dict[str, dict[int, Path]]] = defaultdict(lambda: defaultdict(dict))
    used: set[str] = set()
    for path in files:
        fits = [(name, match) for name, pattern in wanted.items() if (match := _match(pattern, draft.short(path)))]
        if not fits or not is_image(path):
            draft.passed_over[f"fits no pattern of {NAME}"].append(path)
        for name, match in fits:
            used.add(name)
            groups = match.groupdict()
            slots = found[groups["case"]][name]
            number = int(groups.get("slice") or 1)
            if (first := slots.setdefault(number, path)) != path:
                draft.faults.append(
                    f"{draft.short(path)}: a second {name or 'label'} of {groups['case']}, beside "
                    f"{draft.short(first)}; give a longer pattern in {NAME}"
                )
    draft.faults += [
        f"{NAME}: {name or 'labels'} = {pattern!r} fits no file; correct it"
        for name, pattern in wanted.items()
        if name not in used
    ]
    for case, slots in found.items():
        images: dict[str, Files] = {name: _files(paths) for name, paths in slots.items() if name}
        draft.cases.append(CaseFiles(case, case, "", images, _files(slots[""]) if "" in slots else None))
    return draft


def apply(described: Described, draft: Draft) -> None:
    """Lets `cohort.toml` and `patients.csv` change what the format tells; faults go to the draft."""
    if described.channels:
        if unknown := [name for name in described.channels if name not in draft.channels]:
            draft.faults.append(
                f"{NAME}: no channel {few(unknown)} in the folder (there is: {few(draft.channels, 8)}); correct "
                "channels"
            )
        elif any("" in case.images for case in draft.cases):
            draft.faults.append(f"{NAME}: channels cannot be chosen where one file holds all; leave the key out")
        else:
            _choose(described.channels, draft)
    if described.labels and not described.patterns and draft.kind != "BIDS":
        draft.faults.append(f"{NAME}: labels has an effect in BIDS and beside patterns for channels only; remove it")
    if not described.slices and draft.kind != PAIRS:
        draft.faults.append(f"{NAME}: slices has an effect on pairs of image and mask only; remove it")
    if described.stand_in:
        draft.stand_in = described.stand_in
    if described.targets:
        draft.targets, draft.painted = described.targets, ()
        draft.notes = [note for note in draft.notes if not note.startswith(BRATS_NOTE)]
    if described.ignore is not None:
        draft.ignore = described.ignore
    for key, pattern in described.patterns_of.items():
        apply_pattern(draft, pattern, key)
    apply_table(draft, described.patient_column, described.group_column)


def _choose(channels: tuple[str, ...], draft: Draft) -> None:
    for index, case in enumerate(draft.cases):
        kept = {name: files for name, files in case.images.items() if name in channels}
        draft.cases[index] = CaseFiles(case.name, case.patient, case.group, kept, case.labels)
    draft.notes.append(f"channels by {NAME}: {', '.join(channels)}, of {', '.join(draft.channels)}")
    draft.channels = channels


def _files(paths: dict[int, Path]) -> Files:
    path = next(iter(paths.values()))
    return tuple(sorted(paths.items())) if is_flat(path) or len(paths) > 1 else path


def _match(pattern: str, path: str) -> re.Match | None:
    """Matches a pattern with `{case}`, `{slice}` and `*`; `{case}` is the same wherever it is repeated."""
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
