"""Reads every case of a cohort once, refuses the cohort with all of its faults, and counts what is in it."""

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

_GRAYS = 16  # a slice or channel of no more distinct values can equal another one by chance
_NUMBER = re.compile(r"(?<![\w.])(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")
_MAPPED = re.compile(r".*: values \S+ to \S+ mapped to 0 to 255")  # the table shows the ranges


@dataclasses.dataclass(frozen=True)
class CheckedCase:
    """A case that was read and found whole.

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
    """A cohort without a fault: its cases, in order, and what `prepare` records beside them."""

    cases: tuple[CheckedCase, ...]
    summary: Summary


@dataclasses.dataclass(frozen=True, eq=False)
class _Facts:
    """What is kept of a case once its voxels are let go."""

    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    digest: str = ""
    channel_digests: tuple[bytes, ...] = ()  # of channels that cannot be equal by chance
    slice_digests: tuple[bytes, ...] = ()
    shape: tuple[int, ...] = ()
    spacing: tuple[float, float, float] | None = None
    voxels: dict[int, int] = dataclasses.field(default_factory=dict)  # how many have each label that occurs
    labelled_slices: int = 0  # with a label other than 0 and the ignored one
    ranges: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    replaced: tuple[str, ...] = ()
    white: bool = False


def digest_of(volume: Volume) -> str:
    """Hexadecimal SHA-256 of spacing, voxels and labels of a volume."""
    digest = hashlib.sha256(np.array(volume.voxels.shape, "<i8"))
    digest.update(np.array(volume.spacing or (0, 0, 0), "<f4"))
    digest.update(np.ascontiguousarray(volume.voxels))
    digest.update(np.ascontiguousarray(volume.labels))
    return digest.hexdigest()


def check_cohort(
    listing: Listing,
    source: str,
    *,
    read: Callable[[CaseFiles], Reading] | None = None,
    on_case: Callable[[], None] = lambda: None,
) -> CheckedCohort:
    """Reads and checks all cases, one at a time in each of two threads, and writes nothing.

    The fingerprint is the hexadecimal SHA-256 of the cases in order: name, patient, group, spacing, voxels and label
    values. It names the content whatever the format: names of channels and targets do not count.

    Args:
      listing: of the cohort.
      source: as the user gave it.
      read: the labelled reading of a case whose voxels come from elsewhere than its files; by default `open_case`.
      on_case: called after each case.

    Raises:
      InputError: something is wrong; the message lists all faults, each with its file, the value found and the remedy.
    """
    read = read or partial(open_case, description=listing.description, targets_known=listing.targets_known)
    facts = []
    for each in map_ahead(lambda case: _read(case, read, listing.description), listing.cases):
        facts.append(each)
        on_case()
    faults = _faults_of_names(listing.cases) + [fault for each in facts for fault in each.faults]
    found = [(case, each) for case, each in zip(listing.cases, facts, strict=True) if not each.faults]
    shared, notes = _shared(found)
    faults += shared
    description = listing.description
    if not listing.targets_known and not faults:
        description, unclear = _described(description, found)
        faults += unclear
    if not faults:
        faults += _without_targets(description, found)
    if faults:
        raise InputError(list_faults(listing.root, faults))
    notes = [*listing.notes, *_gathered(found), *notes, *_groups_of_patients(listing.cases)]
    notes += [
        f"no case has a voxel of {target.name} ({', '.join(map(str, target.labels))})"
        for target in _absent(description, found)
    ]
    summary = _summary(listing, description, source, found, notes)
    cases = [
        CheckedCase(case, each.digest, int(np.prod(each.shape)) + sum(each.voxels.values())) for case, each in found
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
    names = [name for name in description.channels if name not in reading.replaced]
    channels = [volume.voxels[..., description.channels.index(name)] for name in names]
    found = np.stack([np.bincount(labels.ravel(), minlength=256) for labels in volume.labels])
    counted = found.copy()
    counted[:, [0, description.ignore or 0]] = 0
    return _Facts(
        notes=reading.notes,
        digest=digest_of(volume),
        channel_digests=tuple(_short_digest(channel) for channel in channels if _is_distinctive(channel)),
        slice_digests=tuple(_short_digest(voxels) for voxels in volume.voxels if _is_distinctive(voxels)),
        shape=volume.voxels.shape,
        spacing=volume.spacing,
        voxels={int(label): int(found[:, label].sum()) for label in np.flatnonzero(found.any(axis=0))},
        labelled_slices=int(counted.any(axis=1).sum()),
        ranges=dict(reading.ranges),
        replaced=reading.replaced,
        white=reading.white,
    )


def _is_distinctive(voxels: np.ndarray) -> bool:
    return int(np.count_nonzero(np.bincount(voxels.ravel(), minlength=256))) > _GRAYS


def _short_digest(voxels: np.ndarray) -> bytes:
    digest = hashlib.blake2b(np.array(voxels.shape, "<i8"), digest_size=12)
    digest.update(np.ascontiguousarray(voxels))
    return digest.digest()


# Faults and notes of the cohort as a whole.

_Read = Sequence[tuple[CaseFiles, _Facts]]


def _faults_of_names(cases: Sequence[CaseFiles]) -> list[str]:
    times = Counter(case.name for case in cases)
    faults = [f"{name}: {count} cases of this name; rename all but one" for name, count in times.items() if count > 1]
    for case in cases:
        try:
            "".join((case.name, case.patient, case.group)).encode()
        except UnicodeEncodeError:  # bytes in a file name that are no text
            faults.append(
                f"{case.name!r}: a name of a case, patient or group that is no valid Unicode; rename the file"
            )
    return faults


def _shared(read: _Read) -> tuple[list[str], list[str]]:
    """A fault for each two patients that share an image, and a note for each two cases of one patient that do."""
    owners: dict[bytes, CaseFiles] = {}
    pairs: dict[tuple[str, str], tuple[CaseFiles, CaseFiles, list[str]]] = {}
    twice = []
    for case, facts in read:
        if len(set(facts.channel_digests)) < len(facts.channel_digests):
            twice.append(case.name)
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
                f"{where}, of another patient ({second.patient} and {first.patient}); remove one of them, or give both "
                "cases one patient (patients.csv)"
            )
        else:
            notes.append(f"{where}, of the same patient {first.patient}")
    if twice:
        notes.append(f"two channels hold the same image ({_cases(twice)})")
    return faults, notes


def _groups_of_patients(cases: Iterable[CaseFiles]) -> list[str]:
    groups = defaultdict(set)
    for case in cases:
        groups[case.patient].add(case.group)
    return [
        f"patient {patient} has cases in several groups: {', '.join(sorted(found))}"
        for patient, found in groups.items()
        if len(found) > 1
    ]


def _file(case: CaseFiles) -> str:
    return str(paths_of(next(iter(case.images.values())))[0])


def _described(description: Description, read: _Read) -> tuple[Description, list[str]]:
    """The description with the targets that the label values of all cases tell, and faults where they are unclear."""
    values = sorted({value for _, facts in read for value in facts.voxels} - {0})
    white = [case for case, facts in read if facts.white]
    if white and values != [1]:
        others = ", ".join(map(str, values))
        return description, [
            f"{paths_of(case.labels)[0]}: a mask of 0 and 255, where "
            f"other label maps hold {others}; give all cases the same label values"
            for case in white
        ]
    try:
        targets = targets_from_values(values, description.ignore)
    except InputError as error:
        return description, [str(error)]
    return dataclasses.replace(description, targets=targets, painted=()), []


def _absent(description: Description, read: _Read) -> list[Target]:
    found = {label for _, facts in read for label in facts.voxels}
    return [target for target in description.targets if found.isdisjoint(target.labels)]


def _without_targets(description: Description, read: _Read) -> list[str]:
    if len(_absent(description, read)) < len(description.targets):
        return []
    names = ", ".join(f"{target.name} ({', '.join(map(str, target.labels))})" for target in description.targets)
    return [f"no case has a voxel of any target: {names}; correct the label maps or the description"]


def _gathered(read: _Read) -> list[str]:
    """The notes of all cases, each kind once with the cases that have it; numbers that differ are left out."""
    found: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    for case, facts in read:
        for note in dict.fromkeys(facts.notes):
            if not _MAPPED.fullmatch(note):
                found[_NUMBER.sub("#", note)].append((case.name, _NUMBER.split(note)))
    return [
        f"{_common([parts for _, parts in each])} ({_cases([name for name, _ in each])})" for each in found.values()
    ]


def _common(notes: Sequence[Sequence[str]]) -> str:
    """One note for several, which differ in their numbers; each is split at these."""
    return "".join(column[0] if len(set(column)) == 1 else "..." for column in zip(*notes, strict=True))


def _cases(names: Sequence[str]) -> str:
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} case{'s' * (len(names) > 1)}: {listed}"


# What is in it.


def _summary(listing: Listing, description: Description, source: str, read: _Read, notes: Sequence[str]) -> Summary:
    groups: dict[str, set[str]] = defaultdict(set)
    digest = hashlib.sha256()
    for case, facts in read:
        groups[case.group].add(case.patient)
        digest.update(repr((case.name, case.patient, case.group, facts.digest)).encode() + b"\n")
    labels = sorted({label for target in description.targets for label in target.labels})
    slices = sum(facts.shape[0] for _, facts in read)
    voxels = sum(sum(facts.voxels.values()) for _, facts in read)
    return Summary(
        fingerprint=digest.hexdigest(),
        source=source,
        patients=len({case.patient for case, _ in read}),
        slices=slices,
        target_slices=sum(facts.labelled_slices for _, facts in read),
        target_fraction=sum(_of_labels(facts, labels) for _, facts in read) / voxels,
        groups={group: len(patients) for group, patients in sorted(groups.items())},
        cases=len(read),
        description=description,
        contents=Contents(
            kind=listing.kind,
            notes=tuple(dict.fromkeys(notes)),
            targets=tuple(_count(target.name, target.labels, read) for target in description.targets),
            sizes=_spread([facts.shape[:3] for _, facts in read]),
            spacings=_spread([facts.spacing for _, facts in read if facts.spacing]),
            without_spacing=sum(facts.spacing is None for _, facts in read),
            ranges={name: _range(name, read) for name in description.channels if _range(name, read)},
            replaced=dict(Counter(name for _, facts in read for name in facts.replaced)),
        ),
    )


def _count(name: str, labels: Sequence[int], read: _Read) -> TargetCounts:
    voxels = [_of_labels(facts, labels) for _, facts in read]
    spacings = [facts.spacing for _, facts in read]
    known = all(spacings)
    volumes = [count * float(np.prod(spacing)) / 1000 for count, spacing in zip(voxels, spacings, strict=True) if known]
    return TargetCounts(
        name=name,
        labels=tuple(labels),
        cases=sum(count > 0 for count in voxels),
        voxels=sum(voxels),
        milliliters=sum(volumes) if known else None,
        median_milliliters=statistics.median(volumes) if known else None,
    )


def _of_labels(facts: _Facts, labels: Iterable[int]) -> int:
    return sum(facts.voxels.get(label, 0) for label in labels)


def _spread(rows: Sequence[Sequence[float]]) -> tuple[tuple[float, float, float], ...]:
    """Minimum, median and maximum of each column."""
    return tuple((min(column), statistics.median(column), max(column)) for column in zip(*rows, strict=True))


def _range(name: str, read: _Read) -> tuple[float, float] | None:
    ranges = [facts.ranges[name] for _, facts in read if name in facts.ranges]
    return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None
