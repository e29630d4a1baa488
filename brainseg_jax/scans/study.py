"""DICOM files to the series of one head, told by their headers, and by folders where headers are empty."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from os.path import commonpath
from pathlib import Path

import numpy as np

from brainseg_jax.scans.choice import MASKS, Candidate, choose, choose_by_hand
from brainseg_jax.scans.header import Header, read_header
from brainseg_jax.scans.patterns import Patterns
from brainseg_jax.scans.scan import Refused, Source
from brainseg_jax.scans.sequences import ALL, DERIVED, FLAIR, MASK, OTHER, POST, PRE, UNCLEAR, read_name
from brainseg_jax.scans.series import SeriesSource
from brainseg_jax.scans.walk import PassedOver

_NO_MR = {"CT", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "RTIMAGE", "SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "SR"}
_NO_MR |= {"PR", "KO", "DOC", "REG", "AU", "ECG", "ES", "OP", "SM", "XC", "FID", "RWV", "PLAN"}
# Values of ImageType, by what they tell.
_LOCALIZER = {"LOCALIZER", "SCOUT"}
_MAPS = {"ADC", "TRACEW", "TRACE", "FA", "DIFFUSION", "MOSAIC", "CBF", "CBV", "MTT", "TTP", "PERFUSION", "MIP", "MNIP"}
_MAPS |= {"PROJECTION IMAGE", "SUBTRACTION", "SUB", "P", "PHASE", "PHASE MAP", "T1 MAP", "T2 MAP", "FIELD_MAP"}


@dataclass(frozen=True, eq=False)
class _Series(Candidate):
    """A series of a head.

    Attributes:
      headers: of its files.
      by_folder: whether a folder's name tells the sequence, where no header does.
    """

    headers: tuple[Header, ...] = ()
    by_folder: bool = False


@dataclass(frozen=True, eq=False)
class _Head:
    """The series of one head, and the folder that stands for it."""

    folder: Path
    series: tuple[_Series, ...]


def find_studies(
    root: Path, files: list[Path], patterns: Patterns | None, passed_over: PassedOver, used: set[str]
) -> list[Source]:
    """Sorts DICOM files into series, and series into heads, of which each is a case.

    A series is what has one SeriesInstanceUID, in whatever folders; the series of one StudyInstanceUID are one head.
    Where these are empty, a folder is a series and a head, and folders beside each other whose names are the same but
    for the sequence are one head. Files of different PatientIDs never are. The sequence is told by SeriesDescription or
    ProtocolName, by the times and the contrast agent, and, where these are empty, by the folder's name.

    Args:
      root: the folder that was given.
      files: whose names or first bytes say DICOM.
      patterns: of `--sequences`; None where sequences are told by headers and names.
      passed_over: takes what is no MR scan.
      used: takes the sequences whose pattern fitted something.
    """
    headers: list[Header] = []
    damaged: dict[Path, str] = {}  # with the series, where that can be read
    for path in files:
        header = read_header(path)
        if header is None:
            damaged[path] = ""
        elif header.mr_image and not header.image:
            damaged[path] = header.series
        elif header.modality in _NO_MR or not header.image:
            passed_over[f"DICOM, but no MR image ({header.modality or 'no pixels'})"].append(path)
        else:
            headers.append(header)
    groups = _grouped(headers, passed_over)
    crowded = Counter(folder for group in groups for folder in {header.path.parent for header in group})
    strays = defaultdict(list)
    for path, uid in damaged.items():  # a slice of the one series beside it; its reader says what is wrong with it
        beside = [group for group in groups if path.parent in {header.path.parent for header in group}]
        beside = [group for group in beside if uid and group[0].series == uid] or beside
        if len(beside) > 1:
            passed_over["damaged DICOM files beside several series"].append(path)
        else:
            strays[id(beside[0]) if beside else path.parent].append(path)
    series = [_to_series(group, crowded, strays.pop(id(group), [])) for group in groups]
    heads = _to_heads(root, series)
    sources = []
    for (name, place, notes), head in zip(_names(root, heads), heads, strict=True):
        sources += _to_source(name, place, notes, head, patterns, passed_over, used)
    for folder, paths in strays.items():
        shown = {FLAIR: f"{len(paths)} damaged file{'s' * (len(paths) > 1)}"}
        sources.append(SeriesSource(*_name_and_place(root, folder), {ALL: tuple(paths)}, channels=shown))
    return sources


def _grouped(headers: list[Header], passed_over: PassedOver) -> list[list[Header]]:
    """The files of each series, without single localizers and maps among its slices."""
    groups: dict[tuple, list[Header]] = defaultdict(list)
    for header in headers:
        apart = (header.series,) if header.series else (header.path.parent, header.number, header.description)
        groups[header.patient, header.study, *apart].append(header)
    kept = []
    for group in groups.values():
        for values, reason in ((_LOCALIZER, "localizers among the slices of a series"), (_MAPS, "derived maps")):
            rest = [header for header in group if not values & set(header.image_type)]
            if 0 < len(rest) < len(group):
                passed_over[reason] += [header.path for header in group if values & set(header.image_type)]
                group = rest
        kept.append(group)
    return kept


def _to_series(headers: list[Header], crowded: Counter[Path], damaged: list[Path]) -> _Series:
    first, folders = headers[0], sorted({header.path.parent for header in headers})
    alone = all(crowded[folder] == 1 for folder in folders)
    named = folders[0].absolute().name if alone else ""
    sequence, contrast, note, by_folder = _tell_sequence(first, named)
    number = f"series {first.number}" if first.number else ""
    said = first.description or ("" if named else number or first.path.name)
    label = f"{named} ({said})" if named and said and said != named else named or said
    paths = tuple(sorted([*(header.path for header in headers), *damaged]))
    count = f"{len(paths)} file{'s' * (len(paths) > 1)}"
    return _Series(
        label=label,
        where=f"{folders[0]} ({', '.join(part for part in (said or number, count) if part)})",
        paths=paths,
        sequence=sequence,
        contrast=contrast,
        names=(first.description, first.protocol, number),
        folders=tuple(folder.absolute().name for folder in folders) if alone else (),
        note=note,
        headers=tuple(headers),
        by_folder=by_folder,
    )


def _tell_sequence(first: Header, folder: str) -> tuple[str | None, bool, str, bool]:
    """Sequence, whether contrast is said, what is odd about it, and whether the folder tells it."""
    kinds, times, by_folder = set(first.image_type), first.by_times, read_name(folder)
    if kinds & _LOCALIZER:
        return OTHER, False, "a localizer", False
    if kinds & _MAPS:
        return DERIVED, False, "a derived map", False
    texts = [text for text in (first.description, first.protocol) if read_name(text, description=True).sequence]
    said = read_name(texts[0], description=True) if texts else None
    shown = ", ".join(
        f"{name} {time:g}"
        for name, time in (("TR", first.repetition), ("TE", first.echo), ("TI", first.inversion))
        if time is not None
    )
    if said is None and (times is None or (times == OTHER and by_folder.sequence == FLAIR and not first.inversion)):
        note = f"its folder calls it FLAIR; its header tells no inversion ({shown})" if times else ""
        return by_folder.sequence, by_folder.contrast, note, by_folder.sequence is not None
    if said is None or (said.sequence == UNCLEAR and times):
        sequence, contrast, note = times, first.agent, ""
    elif said.sequence == FLAIR and times in (PRE, POST):
        note = f"it calls itself {texts[0]!r}, but its times are those of T1 ({shown})"
        sequence, contrast = FLAIR if "DERIVED" in kinds else UNCLEAR, False
    elif said.sequence == OTHER and times == FLAIR and "t2" in texts[0].lower():
        sequence, contrast, note = FLAIR, False, ""
    elif said.sequence == PRE and not said.contrast and first.agent:
        sequence, contrast, note = POST, True, ""
    else:
        sequence, contrast, note = said.sequence, said.contrast, ""
    if sequence in (PRE, POST) and not contrast and by_folder.sequence in (PRE, POST) and by_folder.contrast:
        sequence, contrast = by_folder.sequence, True
    return sequence, contrast, note, False


def _to_heads(root: Path, series: list[_Series]) -> list[_Head]:
    places = {one.headers[0].path.parent for one in series if one.folders} - {root}
    named = {folder: said for folder in places if (said := read_name(folder.name)).sequence}
    holders = {folder.parent for folder, said in named.items() if said.alone}
    heads: dict[tuple, list[_Series]] = defaultdict(list)
    for one in series:
        first = one.headers[0]
        folder = first.path.parent
        if uid := first.study or first.frame_of_reference:
            heads[first.patient, uid, ""].append(one)
        elif folder in named:
            rest = "" if named[folder].alone else named[folder].key
            heads[first.patient, folder.parent, rest].append(one)
        else:  # what tells nothing beside `FLAIR` is not used there, and is no case either
            falls = one.sequence is None and folder not in holders and folder.parent in holders
            heads[first.patient, folder.parent if falls else folder, ""].append(one)
    found = []
    owners: dict[Path, set[int]] = defaultdict(set)  # heads by the folder above those of their files
    for number, group in enumerate(heads.values()):
        for header in (header for one in group for header in one.headers):
            owners[header.path.parent.parent].add(number)
    for (_, key, rest), group in heads.items():
        folders = {header.path.parent for one in group for header in one.headers}
        (first, *_) = folders
        if isinstance(key, Path) and rest:  # of several the folder that would hold them
            folder = key / min((named[one].case for one in folders), key=len) if len(folders) > 1 else first
        elif isinstance(key, Path):
            folder = key
        elif len(folders) > 1:
            folder = Path(commonpath(folders))
        else:
            folder = first.parent if first in named and named[first].alone and len(owners[first.parent]) == 1 else first
        found.append(_Head(folder, tuple(group)))
    return found


def _names(root: Path, heads: list[_Head]) -> list[tuple[str, Path, tuple[str, ...]]]:
    """Names, places, notes; of heads in one folder each has the patient's name too, or a number and a note on it."""
    found = []
    for head in heads:
        (name, place), notes = _name_and_place(root, head.folder), ()
        beside = [other for other in heads if other.folder == head.folder]
        if len(beside) > 1:
            patients = [re.sub(r"[^\w.-]+", "-", other.series[0].headers[0].patient) for other in beside]
            own = patients[beside.index(head)]
            if own and patients.count(own) == 1:
                name += f"_{own}"
            else:
                number = beside.index(head) + 1
                name, notes = f"{name}_{number}", (f"number {number} is {_study_in_words(head, beside)}",)
        found.append((name, place, notes))
    return found


def _study_in_words(head: _Head, beside: list[_Head]) -> str:
    """What tells a study from those beside it: its date, or the end of its UID."""
    first, others = head.series[0].headers[0], [other.series[0].headers[0] for other in beside if other is not head]
    if first.date and first.date not in {other.date for other in others}:
        return f"the study of {first.date}"
    return f"the study with a UID that ends in {first.study[-8:]}" if first.study else f"that of {first.path.name}"


def _name_and_place(root: Path, folder: Path) -> tuple[str, Path]:
    return folder.absolute().name, Path() if folder == root else folder.parent.relative_to(root)


def _to_source(
    name: str,
    place: Path,
    notes: tuple[str, ...],
    head: _Head,
    patterns: Patterns | None,
    passed_over: PassedOver,
    used: set[str],
) -> list[Source]:
    masks = [one for one in head.series if one.sequence == MASK]
    scans = [one for one in head.series if one.sequence != MASK]
    for one in masks:
        passed_over[MASKS] += one.paths
    by_names = partial(choose, prefer=partial(_prefer, scans))
    choice = choose_by_hand(name, scans, patterns, used) if patterns else by_names(name, scans)
    choice.tell_unused(passed_over, by_hand=patterns is not None)
    if choice.fault:
        return [Refused(name, place, choice.fault, channels=choice.cells)]
    if not choice.chosen:
        return []
    files = {channel: one.paths for channel, one in choice.chosen.items()}
    return [SeriesSource(name, place, files, notes=(*notes, *choice.notes), channels=choice.cells)]


def _prefer(
    scans: list[_Series], channel: str, found: list[_Series], flair: _Series | None
) -> tuple[list[_Series], str]:
    """See `Prefer`: series on one grid go together, and of several FLAIR the axial one is used."""
    if flair is None:
        partners = [one for one in scans if one.sequence in (PRE, POST)]
        together = [one for one in found if any(_same_space(one, other) for other in partners)]
        axial = [one for one in found if one.headers[0].is_axial]
        if len(found) > 1 and len(together) == 1:
            return together, "another FLAIR series lies on the grid of T1, and is used"
        if len(found) > 1 and len(axial) == 1:
            return axial, "another FLAIR series is axial, and is used"
        return found, ""
    # What a folder's name tells is meant so: its reader refuses another grid.
    here = [one for one in found if one.by_folder or _same_space(one, flair) is not False]
    exact = [one for one in here if _same_space(one, flair)]
    if len(here) > 1 and len(exact) == 1:
        return exact, "another one lies on the grid of FLAIR, and is used"
    return here, "it lies on another grid than FLAIR, or elsewhere; bring it onto FLAIR's grid for it to be used"


def _same_space(a: _Series, b: _Series) -> bool | None:
    """Whether two series have the same voxels in space, in whatever order; None where headers do not say."""
    boxes = _box(a), _box(b)
    if boxes[0] is None or boxes[1] is None:
        frames = {one.headers[0].frame_of_reference for one in (a, b)}
        return None if len(frames) == 1 or "" in frames else False
    return len(a.headers) * len(b.headers) > 0 and np.allclose(*boxes, atol=0.5)


def _box(one: _Series) -> np.ndarray | None:
    """Least and greatest coordinates of the voxels' centers in mm, and the cube root of their number: [7]."""
    first = one.headers[0]
    places = [header.position for header in one.headers]
    if not (first.size and first.orientation and first.spacing) or None in places or first.frames > 1:
        return None
    rows, columns = first.size
    along_row, along_column = np.reshape(first.orientation, (2, 3))
    across = along_row * (columns - 1) * first.spacing[1], along_column * (rows - 1) * first.spacing[0]
    starts = np.array(places)
    corners = np.concatenate([starts + a * across[0] + b * across[1] for a in (0, 1) for b in (0, 1)])
    count = (rows * columns * len(places)) ** (1 / 3)
    return np.array([*corners.min(axis=0), *corners.max(axis=0), count])
