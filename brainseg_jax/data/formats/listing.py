"""The common result of all formats, a list of cases with their files, and the checks common to all formats."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import MOST_TARGETS, Description, Target
from brainseg_jax.scans.walk import PassedOver, new

ALL = ""  # key of a file with all channels
Slices = tuple[tuple[int, Path], ...]  # number and file of each 2-D image of a case, sorted by number
Files = Path | Slices  # of one channel of one case: a NIfTI file, or 2-D images

_TIME_POINT = re.compile(r"[_-](?:[a-z]{0,4}[0-9]{1,3}|baseline|followup|pre|post)$", re.IGNORECASE)
_REMEDY = "describe them in cohort.toml, as in [targets] tumor = [1, 2]"


@dataclasses.dataclass(frozen=True)
class CaseFiles:
    """The files of one scan.

    Attributes:
      name: of the case.
      patient: name of the patient; several cases can belong to one patient.
      group: institution or site of the patient; "" if unknown.
      images: files by the name of the channel. A file with all channels (along a fourth axis, or the colors of a 2-D
        image) is the single entry at `ALL`. A missing channel has no entry. PNG and TIFF files are `Slices`.
      labels: of the reference label map, as `images`; None if there is none.
    """

    name: str
    patient: str
    group: str
    images: Mapping[str, Files]
    labels: Files | None


@dataclasses.dataclass(frozen=True)
class Listing:
    """A cohort, as its names and tables describe it.

    Attributes:
      kind: the name of the format, for example "nnU-Net raw".
      root: its folder.
      description: channels and targets.
      cases: one or more, sorted by name.
      notes: assumptions and unusual findings; users must see them before they use the cohort.
      passed_over: unused files by reason.
      targets_known: whether names or tables give the targets. If not, `description` has one provisional target, and the
        reader replaces it by `targets_from_values` of all label values.
    """

    kind: str
    root: Path
    description: Description
    cases: tuple[CaseFiles, ...]
    notes: tuple[str, ...]
    passed_over: PassedOver
    targets_known: bool = True


@dataclasses.dataclass
class Draft:
    """A cohort under construction: a format fills it, and `finish` checks it.

    Attributes:
      kind: see `Listing`.
      root: see `Listing`.
      channels: see `Description`.
      targets: see `Description`; None if only the label values define them.
      cases: a case without labels has `labels` None; labels without images have empty `images`.
      label_pattern: the expected file of the labels of a case, with `{case}` for its name; for messages.
      stand_in: see `Description`.
      ignore: see `Description`.
      painted: see `Description`.
      patients_known: whether the patients are known, even if each has one case.
      notes: see `Listing`.
      faults: one sentence each, with file, value and remedy.
      passed_over: see `Listing`.
    """

    kind: str
    root: Path
    channels: tuple[str, ...] = ()
    targets: tuple[Target, ...] | None = None
    cases: list[CaseFiles] = dataclasses.field(default_factory=list)
    label_pattern: str = "a label file"
    stand_in: str = ""
    ignore: int | None = None
    painted: tuple[int, ...] = ()
    patients_known: bool = False
    notes: list[str] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)
    passed_over: PassedOver = dataclasses.field(default_factory=new)

    def short(self, path: Path) -> str:
        """The path relative to the folder of the cohort, if it is in it."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def listed(self, files: Files) -> str:
        """The first file, and the number of others."""
        paths = paths_of(files)
        return self.short(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def paths_of(files: Files | None) -> list[Path]:
    """All files of one channel."""
    if files is None:
        return []
    return [files] if isinstance(files, Path) else [path for _, path in files]


def finish(draft: Draft, *, labelled: bool = True) -> Listing:
    """Checks a draft by the rules common to all formats.

    Args:
      draft: its cases may be in any order.
      labelled: whether every case must have labels.

    Raises:
      InputError: lists all faults: those of the draft, labels without image and the reverse, missing channels, repeated
        cases or files, and contradictory channels and targets.
    """
    draft.cases.sort(key=lambda case: case.name)
    faults = list(draft.faults)
    if not draft.cases and not faults:
        faults.append("no case in it; give a folder with images")
    faults += [fault for case in draft.cases for fault in _faults_of_files(draft, case, labelled)]
    missing = _missing_channels(draft, faults, labelled)
    faults += _repeated_cases(draft.cases)
    faults += _patients_in_two_spellings(draft.cases)
    faults += _files_used_twice(draft)
    if draft.channels or not faults:  # missing channels are already a fault
        try:
            targets = draft.targets or (Target("foreground", (2 if draft.ignore == 1 else 1,)),)
            description = Description(draft.channels, targets, draft.stand_in, draft.ignore, draft.painted)
        except InputError as error:
            faults.append(f"channels and targets: {error}")
    if faults:
        raise InputError(list_faults(draft.root, draft.kind, faults))
    notes = [
        f"{count} of {len(draft.cases)} cases have no {channel}: {draft.stand_in} replaces it"
        for channel, count in missing.items()
    ]
    if labelled:
        notes += _note_patients(draft)
    if draft.targets is not None and (hidden := description.painted_over):
        order = zip(description.names, description.painted, strict=True)
        notes.append(
            f"label maps of predict cannot represent {', '.join(hidden)}: targets are painted one after the other "
            f"({', '.join(f'{name} as {value}' for name, value in order)}). List larger targets before those inside "
            "them, and in each target first a label that no later target has"
        )
    if draft.targets is None and labelled:
        notes.append("the names do not define the targets: the label values do; cohort.toml can define [targets]")
    return Listing(
        draft.kind,
        draft.root,
        description,
        tuple(draft.cases),
        tuple(draft.notes + notes),
        {reason: paths for reason, paths in draft.passed_over.items() if paths},
        draft.targets is not None,
    )


def targets_from_values(values: Iterable[int], ignore: int | None = None) -> tuple[Target, ...]:
    """Defines the targets by the label values of a cohort, if names and tables give none.

    A single value becomes the target `foreground`; 255 of a binary mask counts as 1. Several values become one target
    each: `label 1`, `label 2`.

    Args:
      values: all values in the label maps of the cohort; 0 is background.
      ignore: the value that counts in no loss and no score.

    Raises:
      InputError: there is no label, there are too many, a value is not from 0 to 255, or an ambiguous 255 is among
        other labels. The message does not name a file.
    """
    labels = sorted({int(value) for value in values} - {0, ignore})
    if not labels:
        raise InputError("every label map is empty: only 0; give reference masks with at least one object")
    if labels[0] < 0 or labels[-1] > 255:
        raise InputError(f"label values {few(labels, 8)}; give whole numbers from 0 to 255")
    if labels == [255]:
        return (Target("foreground", (1,)),)
    if labels[-1] == 255:
        raise InputError(
            f"label values {few(labels, 8)}: 255 among others is ambiguous: a label, a binary mask, or an ignored "
            f"region; {_REMEDY}, with ignore = 255 for an ignored region"
        )
    if len(labels) == 1:
        return (Target("foreground", (labels[0],)),)
    if len(labels) > MOST_TARGETS:
        raise InputError(
            f"{len(labels)} label values ({few(labels, 8)}), but at most {MOST_TARGETS} targets are possible; {_REMEDY}"
        )
    return tuple(Target(f"label {label}", (label,)) for label in labels)


def list_faults(root: Path, kind: str, faults: Iterable[str]) -> str:
    """The message that lists all faults of a cohort."""
    faults = list(dict.fromkeys(faults))
    count = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
    lines = [f"{root} ({kind}): {count}, so nothing was read or written. Fix or remove these files:"]
    return "\n".join(lines + [f"  {fault}" for fault in faults])


def few(words: Iterable[object], count: int = 5) -> str:
    """Joins the first `count` words, and adds how many more there are."""
    texts = [str(word) for word in words]
    return ", ".join(texts[:count]) + (f" and {len(texts) - count} more" if len(texts) > count else "")


def _faults_of_files(draft: Draft, case: CaseFiles, labelled: bool) -> list[str]:
    """Faults of images and labels, except missing channels."""
    if not case.images:
        where = draft.listed(case.labels) if case.labels else case.name
        return [f"{where}: a label without image; add the image of case {case.name}, or remove the label"]
    if not labelled:
        return []
    first = next(iter(case.images.values()))
    if case.labels is None:
        expected = draft.label_pattern.replace("{case}", case.name)
        return [f"{draft.listed(first)}: an image without label; add {expected}, or remove the image"]
    faults = []
    for files in case.images.values():
        if isinstance(files, Path) != isinstance(case.labels, Path):
            faults.append(
                f"{draft.listed(files)}, with the label {draft.listed(case.labels)}: a volume and 2-D images; give "
                "both in one format"
            )
        elif not isinstance(files, Path) and not isinstance(case.labels, Path):
            faults += _unpaired_slices(draft, dict(files), dict(case.labels))
    return faults


def _unpaired_slices(draft: Draft, images: dict[int, Path], labels: dict[int, Path]) -> list[str]:
    """Slices of a case that have an image but no label, or the reverse."""
    return [
        f"{draft.short(images[number])}: an image without label; add its label, or remove the image"
        for number in sorted(images.keys() - labels.keys())
    ] + [
        f"{draft.short(labels[number])}: a label without image; add its image, or remove the label"
        for number in sorted(labels.keys() - images.keys())
    ]


def _missing_channels(draft: Draft, faults: list[str], labelled: bool) -> dict[str, int]:
    """Counts the cases in which each channel is replaced; adds a fault for each missing channel without replacement."""
    replaced: dict[str, int] = defaultdict(int)
    cases = [case for case in draft.cases if case.images and ALL not in case.images]
    common = [channel for channel in draft.channels if all(channel in case.images for case in cases)]
    remedy = "add its file"
    if labelled and common:
        remedy += (
            f", or set in cohort.toml the channel that replaces it, as in stand_in = {common[0]!r}, or the channels to "
            f"use, as in channels = {common}"
        )
    for case in cases:
        present = few(f"{name} = {draft.listed(files)}" for name, files in case.images.items())
        for channel in draft.channels:
            if channel in case.images:
                continue
            if draft.stand_in in case.images:
                replaced[channel] += 1
            elif channel == draft.stand_in:
                faults.append(f"{case.name}: no {channel}, which replaces missing channels; add its file")
            else:
                faults.append(f"{case.name}: no {channel} (present: {present}); {remedy}")
    return replaced


def _note_patients(draft: Draft) -> list[str]:
    """A note if the patients are unknown, since cases of one patient could then be in two parts of a split."""
    if draft.patients_known or len(draft.cases) < 2 or any(case.patient != case.name for case in draft.cases):
        return []
    by_prefix: dict[str, list[str]] = defaultdict(list)
    for case in draft.cases:
        by_prefix[_TIME_POINT.sub("", case.name)].append(case.name)
    example = next((names[:2] for names in by_prefix.values() if len(names) > 1), []) if len(by_prefix) > 1 else []
    hint = f"; {' and '.join(example)}, for example, look like scans of one patient" if example else ""
    return [
        "each case counts as a separate patient; if a patient has several, add patients.csv with the columns case "
        f"and patient{hint}"
    ]


def _repeated_cases(cases: list[CaseFiles]) -> list[str]:
    names: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        names[case.name.casefold()].append(case.name)
    return [
        f"{spellings[0]}: {len(spellings)} cases of one name ({', '.join(spellings)}; letter case does not count); "
        "keep one, or rename the others"
        for spellings in names.values()
        if len(spellings) > 1
    ]


def _patients_in_two_spellings(cases: list[CaseFiles]) -> list[str]:
    """Faults for a patient in two spellings, whose cases could otherwise be in two parts of a split."""
    names: dict[str, dict[str, str]] = defaultdict(dict)
    for case in cases:
        names[case.patient.casefold()].setdefault(case.patient, case.name)
    return [
        f"patient in {len(spellings)} spellings, which differ in upper and lower case only: "
        f"{', '.join(f'{patient} (of {case})' for patient, case in spellings.items())}; use one"
        for spellings in names.values()
        if len(spellings) > 1 and any(patient != case for patient, case in spellings.items())
    ]


def _files_used_twice(draft: Draft) -> list[str]:
    owners: dict[Path, str] = {}
    faults = []
    for case in draft.cases:
        uses = [(channel or "all channels", files) for channel, files in case.images.items()]
        for use, files in [*uses, ("labels", case.labels)]:
            for path in paths_of(files):
                words = f"{use} of {case.name}"
                first = owners.setdefault(path.resolve(), words)
                if first != words:
                    faults.append(f"{draft.short(path)}: the same file is {first} and {words}; give two files")
    return faults
