"""Reads every case of a cohort once, lists all faults in one error, and computes the summary of the cohort."""

import dataclasses
import hashlib
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from brainseg_jax.data.ahead import map_ahead
from brainseg_jax.data.formats.listing import CaseFiles, Listing, paths_of, targets_from_values
from brainseg_jax.data.labelled import Reading, open_case
from brainseg_jax.data.prepared import Contents, Summary, TargetCounts
from brainseg_jax.data.validation import list_faults
from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import Description, Target
from brainseg_jax.scans.volume import Volume

_GRAYS = 16  # an image with at most this many distinct values can equal another one by chance
_NUMBER = re.compile(r"(?<![\w.])(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")
_MAPPED = re.compile(r".*: values \S+ to \S+ mapped to 0 to 255")  # the table shows the ranges


@dataclasses.dataclass(frozen=True)
class CheckedCase:
    """A case that was read without a fault.

    Attributes:
      files: of the case.
      digest: of its content, see `digest_of`.
      size: of its records in bytes.
    """

    files: CaseFiles
    digest: str
    size: int


@dataclasses.dataclass(frozen=True)
class CheckedCohort:
    """The cases of a cohort without faults, in order, and the summary that `prepare` records."""

    cases: tuple[CheckedCase, ...]
    summary: Summary


@dataclasses.dataclass(frozen=True, eq=False)
class _Facts:
    """Facts of a case that are needed after its voxels are released."""

    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    digest: str = ""
    channel_digests: tuple[bytes, ...] = ()  # of channels that cannot be equal by chance
    slice_digests: tuple[bytes, ...] = ()
    shape: tuple[int, ...] = ()
    spacing: tuple[float, float, float] | None = None
    voxels: dict[int, int] = dataclasses.field(default_factory=dict)  # number of voxels by label value
    labelled_slices: int = 0  # with a label other than 0 and the ignored label
    ranges: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    replaced: tuple[str, ...] = ()
    white: bool = False


def digest_of(volume: Volume) -> str:
    """Hexadecimal SHA-256 of shape, spacing, voxels and labels of a labelled volume."""
    assert volume.labels is not None
    digest = hashlib.sha256(np.array(volume.voxels.shape, "<i8").data)
    digest.update(np.array(volume.spacing or (0, 0, 0), "<f4").data)
    digest.update(np.ascontiguousarray(volume.voxels).data)
    digest.update(np.ascontiguousarray(volume.labels).data)
    return digest.hexdigest()


def check_cohort(
    listing: Listing,
    source: str,
    *,
    read: Callable[[CaseFiles], Reading] | None = None,
    on_case: Callable[[], None] = lambda: None,
) -> CheckedCohort:
    """Reads and checks all cases, and writes nothing. Two threads read one case each at a time.

    The fingerprint is the hexadecimal SHA-256 of the cases in order: name, patient, group, spacing, voxels and label
    values. It identifies the content, whatever the format. Names of channels and targets are not part of it.

    Args:
      listing: of the cohort.
      source: as the user gave it.
      read: reads a case; for cases that do not come from files. Default: `open_case`.
      on_case: called after each case.

    Raises:
      InputError: the message lists all faults, each with its file, the value and the remedy.
    """
    read = read or partial(open_case, description=listing.description, targets_known=listing.targets_known)
    results = []
    for facts in map_ahead(lambda case: _read(case, read, listing.description), listing.cases):
        results.append(facts)
        on_case()
    faults = _faults_of_names(listing.cases) + [fault for facts in results for fault in facts.faults]
    checked = [(case, facts) for case, facts in zip(listing.cases, results, strict=True) if not facts.faults]
    shared_faults, notes = _shared_images(checked)
    faults += shared_faults
    description = listing.description
    if not listing.targets_known and not faults:
        description, unclear = _with_targets(description, checked)
        faults += unclear
    if not faults:
        faults += _no_target_faults(description, checked)
    if faults:
        raise InputError(list_faults(listing.root, faults))
    notes = [*listing.notes, *_merge_notes(checked), *notes, *_groups_of_patients(listing.cases)]
    notes += [
        f"no case has a voxel of {target.name} ({', '.join(map(str, target.labels))})"
        for target in _missing_targets(description, checked)
    ]
    summary = _summary(listing, description, source, checked, notes)
    cases = [
        CheckedCase(case, facts.digest, int(np.prod(facts.shape)) + sum(facts.voxels.values()))
        for case, facts in checked
    ]
    return CheckedCohort(tuple(cases), summary)


def _read(case: CaseFiles, read: Callable[[CaseFiles], Reading], description: Description) -> _Facts:
    if case.labels is None:
        return _Facts((f"{case.name}: no label map; add the file, or remove the case",))
    try:
        reading = read(case)
    except InputError as error:
        return _Facts(tuple(str(error).split("\n")))
    return _facts(reading, description)


def _facts(reading: Reading, description: Description) -> _Facts:
    volume = reading.volume
    assert volume.labels is not None  # `_read` refuses cases without a label map
    names = [name for name in description.channels if name not in reading.replaced]
    channels = [volume.voxels[..., description.channels.index(name)] for name in names]
    counts = np.stack([np.bincount(labels.ravel(), minlength=256) for labels in volume.labels])
    labelled = counts.copy()
    labelled[:, [0, description.ignore or 0]] = 0
    return _Facts(
        notes=reading.notes,
        digest=digest_of(volume),
        channel_digests=tuple(_short_digest(channel) for channel in channels if _is_distinctive(channel)),
        slice_digests=tuple(_short_digest(voxels) for voxels in volume.voxels if _is_distinctive(voxels)),
        shape=volume.voxels.shape,
        spacing=volume.spacing,
        voxels={int(label): int(counts[:, label].sum()) for label in np.flatnonzero(counts.any(axis=0))},
        labelled_slices=int(labelled.any(axis=1).sum()),
        ranges=dict(reading.ranges),
        replaced=reading.replaced,
        white=reading.white,
    )


def _is_distinctive(voxels: np.ndarray) -> bool:
    return int(np.count_nonzero(np.bincount(voxels.ravel(), minlength=256))) > _GRAYS


def _short_digest(voxels: np.ndarray) -> bytes:
    digest = hashlib.blake2b(np.array(voxels.shape, "<i8").data, digest_size=12)
    digest.update(np.ascontiguousarray(voxels).data)
    return digest.digest()


# Faults and notes of the cohort as a whole.

_Cases = Sequence[tuple[CaseFiles, _Facts]]


def _faults_of_names(cases: Sequence[CaseFiles]) -> list[str]:
    counts = Counter(case.name for case in cases)
    faults = [
        f"{name}: {count} cases have this name; rename all but one" for name, count in counts.items() if count > 1
    ]
    for case in cases:
        try:
            "".join((case.name, case.patient, case.group)).encode()
        except UnicodeEncodeError:  # a file name with bytes that are not UTF-8
            faults.append(f"{case.name!r}: the name of a case, patient or group is not valid Unicode; rename the file")
    return faults


def _shared_images(cases: _Cases) -> tuple[list[str], list[str]]:
    """Finds images that two cases share: a fault if the patients differ, otherwise a note."""
    owners: dict[bytes, CaseFiles] = {}
    pairs: dict[tuple[str, str], tuple[CaseFiles, CaseFiles, list[str]]] = {}
    duplicated = []
    for case, facts in cases:
        if len(set(facts.channel_digests)) < len(facts.channel_digests):
            duplicated.append(case.name)
        for what, digests in (("channel", facts.channel_digests), ("slice", facts.slice_digests)):
            for digest in digests:
                owner = owners.setdefault(digest, case)
                if owner is not case:
                    pairs.setdefault((owner.name, case.name), (owner, case, []))[2].append(what)
    faults, notes = [], []
    for first, second, kinds in pairs.values():
        counts = Counter(kinds)
        shared = " and ".join(f"{count} {what}{'s' * (count > 1)}" for what, count in sorted(counts.items()))
        where = f"{_file(second)}: the same image as {_file(first)} ({shared})"
        if first.patient != second.patient:
            faults.append(
                f"{where}, of another patient ({second.patient} and {first.patient}); remove one of them, or assign "
                "both cases to one patient (patients.csv)"
            )
        else:
            notes.append(f"{where}, of the same patient {first.patient}")
    if duplicated:
        notes.append(f"two channels contain the same image ({_cases(duplicated)})")
    return faults, notes


def _groups_of_patients(cases: Iterable[CaseFiles]) -> list[str]:
    groups = defaultdict(set)
    for case in cases:
        groups[case.patient].add(case.group)
    return [
        f"patient {patient} has cases in several groups: {', '.join(sorted(names))}"
        for patient, names in groups.items()
        if len(names) > 1
    ]


def _file(case: CaseFiles) -> str:
    return str(paths_of(next(iter(case.images.values())))[0])


def _with_targets(description: Description, cases: _Cases) -> tuple[Description, list[str]]:
    """Adds the targets to the description, from the label values of all cases. Faults if these are unclear."""
    values = sorted({value for _, facts in cases for value in facts.voxels} - {0})
    white = [case for case, facts in cases if facts.white]
    if white and values != [1]:
        others = ", ".join(map(str, values))
        return description, [
            f"{paths_of(case.labels)[0]}: a mask of 0 and 255, but "
            f"other label maps contain {others}; use the same label values in all cases"
            for case in white
        ]
    try:
        targets = targets_from_values(values, description.ignore)
    except InputError as error:
        return description, [str(error)]
    return dataclasses.replace(description, targets=targets, painted=()), []


def _missing_targets(description: Description, cases: _Cases) -> list[Target]:
    labels = {label for _, facts in cases for label in facts.voxels}
    return [target for target in description.targets if labels.isdisjoint(target.labels)]


def _no_target_faults(description: Description, cases: _Cases) -> list[str]:
    if len(_missing_targets(description, cases)) < len(description.targets):
        return []
    names = ", ".join(f"{target.name} ({', '.join(map(str, target.labels))})" for target in description.targets)
    return [f"no case has a voxel of any target: {names}; correct the label maps or the description"]


def _merge_notes(cases: _Cases) -> list[str]:
    """Merges the notes of all cases. Notes that differ only in numbers become one note with its cases."""
    merged: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    for case, facts in cases:
        for note in dict.fromkeys(facts.notes):
            if not _MAPPED.fullmatch(note):
                merged[_NUMBER.sub("#", note)].append((case.name, _NUMBER.split(note)))
    return [
        f"{_merge_numbers([parts for _, parts in same])} ({_cases([name for name, _ in same])})"
        for same in merged.values()
    ]


def _merge_numbers(notes: Sequence[Sequence[str]]) -> str:
    """Merges notes that differ only in numbers, each split at its numbers. Differing numbers become an ellipsis."""
    return "".join(column[0] if len(set(column)) == 1 else "..." for column in zip(*notes, strict=True))


def _cases(names: Sequence[str]) -> str:
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} case{'s' * (len(names) > 1)}: {listed}"


# The summary.


def _summary(listing: Listing, description: Description, source: str, cases: _Cases, notes: Sequence[str]) -> Summary:
    groups: dict[str, set[str]] = defaultdict(set)
    digest = hashlib.sha256()
    for case, facts in cases:
        groups[case.group].add(case.patient)
        digest.update(repr((case.name, case.patient, case.group, facts.digest)).encode() + b"\n")
    labels = sorted({label for target in description.targets for label in target.labels})
    slices = sum(facts.shape[0] for _, facts in cases)
    voxels = sum(sum(facts.voxels.values()) for _, facts in cases)
    return Summary(
        fingerprint=digest.hexdigest(),
        source=source,
        patients=len({case.patient for case, _ in cases}),
        slices=slices,
        target_slices=sum(facts.labelled_slices for _, facts in cases),
        target_fraction=sum(_count_labels(facts, labels) for _, facts in cases) / voxels,
        groups={group: len(patients) for group, patients in sorted(groups.items())},
        cases=len(cases),
        description=description,
        contents=Contents(
            kind=listing.kind,
            notes=tuple(dict.fromkeys(notes)),
            targets=tuple(_count(target.name, target.labels, cases) for target in description.targets),
            sizes=_spread([facts.shape[:3] for _, facts in cases]),
            spacings=_spread([facts.spacing for _, facts in cases if facts.spacing]),
            without_spacing=sum(facts.spacing is None for _, facts in cases),
            ranges={name: limits for name in description.channels if (limits := _range(name, cases))},
            replaced=dict(Counter(name for _, facts in cases for name in facts.replaced)),
        ),
    )


def _count(name: str, labels: Sequence[int], cases: _Cases) -> TargetCounts:
    voxels = [_count_labels(facts, labels) for _, facts in cases]
    spacings = [facts.spacing for _, facts in cases]
    volumes = [
        count * float(np.prod(spacing)) / 1000 for count, spacing in zip(voxels, spacings, strict=True) if spacing
    ]
    known = len(volumes) == len(voxels)
    return TargetCounts(
        name=name,
        labels=tuple(labels),
        cases=sum(count > 0 for count in voxels),
        voxels=sum(voxels),
        milliliters=sum(volumes) if known else None,
        median_milliliters=statistics.median(volumes) if known else None,
    )


def _count_labels(facts: _Facts, labels: Iterable[int]) -> int:
    return sum(facts.voxels.get(label, 0) for label in labels)


def _spread(rows: Sequence[Sequence[float]]) -> tuple[tuple[float, float, float], ...]:
    """Minimum, median and maximum of each column."""
    return tuple((min(column), statistics.median(column), max(column)) for column in zip(*rows, strict=True))


def _range(name: str, cases: _Cases) -> tuple[float, float] | None:
    ranges = [facts.ranges[name] for _, facts in cases if name in facts.ranges]
    return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None
