"""Groups DICOM files into series and studies, by their headers, or by folders if the headers are empty."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from os.path import commonpath
from pathlib import Path

import numpy as np

from brainseg_jax.scans.choice import MASKS, Candidate, choose, choose_by_patterns
from brainseg_jax.scans.header import Header, read_header
from brainseg_jax.scans.patterns import Patterns
from brainseg_jax.scans.scan import Refused, Source
from brainseg_jax.scans.sequences import ALL, DERIVED, FLAIR, MASK, OTHER, POST, PRE, UNCLEAR, read_name
from brainseg_jax.scans.series import SeriesSource
from brainseg_jax.scans.walk import PassedOver

_NOT_MR = {"CT", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "RTIMAGE", "SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "SR"}
_NOT_MR |= {"PR", "KO", "DOC", "REG", "AU", "ECG", "ES", "OP", "SM", "XC", "FID", "RWV", "PLAN"}
# Values of ImageType, by meaning.
_LOCALIZER = {"LOCALIZER", "SCOUT"}
_MAPS = {"ADC", "TRACEW", "TRACE", "FA", "DIFFUSION", "MOSAIC", "CBF", "CBV", "MTT", "TTP", "PERFUSION", "MIP", "MNIP"}
_MAPS |= {"PROJECTION IMAGE", "SUBTRACTION", "SUB", "P", "PHASE", "PHASE MAP", "T1 MAP", "T2 MAP", "FIELD_MAP"}


@dataclass(frozen=True, eq=False)
class _Series(Candidate):
    """A series of a study.

    Attributes:
      headers: of its files.
      by_folder: whether the sequence is known from the folder name only.
    """

    headers: tuple[Header, ...] = ()
    by_folder: bool = False


@dataclass(frozen=True, eq=False)
class _Study:
    """The series of one case: of a DICOM study, or without UIDs of a folder; and the folder that names the case."""

    folder: Path
    series: tuple[_Series, ...]


def find_studies(
    root: Path, files: list[Path], patterns: Patterns | None, passed_over: PassedOver, used: set[str]
) -> list[Source]:
    """Groups DICOM files into series, and series into studies; each study is a case.

    - Files with the same SeriesInstanceUID form a series, in any folders. Series with the same StudyInstanceUID form a
      study.
    - Without these UIDs, a folder is a series and a study. Sibling folders form one study if their names differ in the
      sequence only.
    - A damaged file joins its series, or the only series of its folder, so that reading the series reports it. Damaged
      files of a folder without series are a case.
    - Files with different PatientIDs are never in one study.
    - The sequence comes from SeriesDescription or ProtocolName, from acquisition times and contrast agent, and, if
      these are missing, from the name of the folder.

    Args:
      root: the input folder.
      files: DICOM files.
      patterns: of `--sequences`; None to use headers and names instead.
      passed_over: receives the files that are not used, by reason.
      used: receives the sequences of patterns that fit something.
    """
    headers: list[Header] = []
    damaged: dict[Path, str] = {}  # with the SeriesInstanceUID, if readable
    for path in files:
        header = read_header(path)
        if header is None:
            damaged[path] = ""
        elif header.mr_image and not header.image:
            damaged[path] = header.series
        elif header.modality in _NOT_MR or not header.image:
            passed_over[f"DICOM, but not an MR image ({header.modality or 'no pixels'})"].append(path)
        else:
            headers.append(header)
    groups = _grouped(headers, passed_over)
    series_per_folder = Counter(folder for group in groups for folder in {header.path.parent for header in group})
    of_series: dict[int, list[Path]] = defaultdict(list)  # by the id of the group
    strays: dict[Path, list[Path]] = defaultdict(list)  # by folder
    for path, uid in damaged.items():  # add each to its series, so that reading the series reports the damage
        neighbors = [group for group in groups if uid and group[0].series == uid]
        if not neighbors:
            neighbors = [group for group in groups if path.parent in {header.path.parent for header in group}]
        if len(neighbors) > 1:
            passed_over["damaged DICOM files beside several series"].append(path)
        elif neighbors:
            of_series[id(neighbors[0])].append(path)
        else:
            strays[path.parent].append(path)
    series = [_to_series(group, series_per_folder, of_series[id(group)]) for group in groups]
    studies = _to_studies(root, series)
    sources = []
    for (name, subfolder, notes), study in zip(_names(root, studies), studies, strict=True):
        sources += _to_sources(name, subfolder, notes, study, patterns, passed_over, used)
    for folder, paths in strays.items():
        cells = {FLAIR: f"{len(paths)} damaged file{'s' * (len(paths) > 1)}"}
        sources.append(SeriesSource(*_name_and_place(root, folder), {ALL: tuple(paths)}, channels=cells))
    return sources


def _grouped(headers: list[Header], passed_over: PassedOver) -> list[list[Header]]:
    """The headers of each series; passes over localizers and derived maps among its slices."""
    groups: dict[tuple, list[Header]] = defaultdict(list)
    for header in headers:
        key = (header.series,) if header.series else (header.path.parent, header.number, header.description)
        groups[header.patient, header.study, *key].append(header)
    result = []
    for group in groups.values():
        for values, reason in ((_LOCALIZER, "localizers among the slices of a series"), (_MAPS, "derived maps")):
            rest = [header for header in group if not values & set(header.image_type)]
            if 0 < len(rest) < len(group):
                passed_over[reason] += [header.path for header in group if values & set(header.image_type)]
                group = rest
        result.append(group)
    return result


def _to_series(headers: list[Header], series_per_folder: Counter[Path], damaged: list[Path]) -> _Series:
    first, folders = headers[0], sorted({header.path.parent for header in headers})
    is_only_series = all(series_per_folder[folder] == 1 for folder in folders)
    folder_name = folders[0].absolute().name if is_only_series else ""
    sequence, contrast, note, by_folder = _recognize_sequence(first, folder_name)
    number = f"series {first.number}" if first.number else ""
    title = first.description or ("" if folder_name else number or first.path.name)
    label = f"{folder_name} ({title})" if folder_name and title and title != folder_name else folder_name or title
    paths = tuple(sorted([*(header.path for header in headers), *damaged]))
    count = f"{len(paths)} file{'s' * (len(paths) > 1)}"
    return _Series(
        label=label,
        location=f"{folders[0]} ({', '.join(part for part in (title or number, count) if part)})",
        paths=paths,
        sequence=sequence,
        contrast=contrast,
        names=(first.description, first.protocol, number),
        folders=tuple(folder.absolute().name for folder in folders) if is_only_series else (),
        note=note,
        headers=tuple(headers),
        by_folder=by_folder,
    )


def _recognize_sequence(first: Header, folder: str) -> tuple[str | None, bool, str, bool]:
    """Sequence, whether contrast is stated, a note on contradictions, whether only the folder gives the sequence."""
    kinds, times, by_folder = set(first.image_type), first.by_times, read_name(folder)
    if kinds & _LOCALIZER:
        return OTHER, False, "a localizer", False
    if kinds & _MAPS:
        return DERIVED, False, "a derived map", False
    texts = [text for text in (first.description, first.protocol) if read_name(text, description=True).sequence]
    parsed = read_name(texts[0], description=True) if texts else None
    shown = ", ".join(
        f"{name} {time:g}"
        for name, time in (("TR", first.repetition), ("TE", first.echo), ("TI", first.inversion))
        if time is not None
    )
    # Without text and usable times the folder decides. If the text is silent or unclear, the times decide.
    if parsed is None and (times is None or (times == OTHER and by_folder.sequence == FLAIR and not first.inversion)):
        note = f"its folder is named FLAIR, but its header has no inversion ({shown})" if times else ""
        return by_folder.sequence, by_folder.contrast, note, by_folder.sequence is not None
    if parsed is None or (parsed.sequence == UNCLEAR and times):
        sequence, contrast, note = times, first.agent, ""
    elif parsed.sequence == FLAIR and times in (PRE, POST):
        note = f"its description is {texts[0]!r}, but its times are those of T1 ({shown})"
        sequence, contrast = FLAIR if "DERIVED" in kinds else UNCLEAR, False
    elif parsed.sequence == OTHER and times == FLAIR and "t2" in texts[0].lower():
        sequence, contrast, note = FLAIR, False, ""
    elif parsed.sequence == PRE and not parsed.contrast and first.agent:
        sequence, contrast, note = POST, True, ""
    else:
        sequence, contrast, note = parsed.sequence, parsed.contrast, ""
    if sequence in (PRE, POST) and not contrast and by_folder.sequence in (PRE, POST) and by_folder.contrast:
        sequence, contrast = by_folder.sequence, True
    return sequence, contrast, note, False


def _to_studies(root: Path, series: list[_Series]) -> list[_Study]:
    """Groups series into studies: by UID, or by folder without one.

    Folders that are only named for a sequence join their parent. Folders with names that differ only in the sequence
    join each other.
    """
    folders = {candidate.headers[0].path.parent for candidate in series if candidate.folders} - {root}
    named = {folder: parsed for folder in folders if (parsed := read_name(folder.name)).sequence}
    holders = {folder.parent for folder, parsed in named.items() if parsed.alone}
    studies: dict[tuple, list[_Series]] = defaultdict(list)
    for candidate in series:
        first = candidate.headers[0]
        folder = first.path.parent
        if uid := first.study or first.frame_of_reference:
            studies[first.patient, uid, ""].append(candidate)
        elif folder in named:
            rest = "" if named[folder].alone else named[folder].key
            studies[first.patient, folder.parent, rest].append(candidate)
        else:  # an unknown sequence beside a folder `FLAIR` belongs to that study, and is not a case
            joins = candidate.sequence is None and folder not in holders and folder.parent in holders
            studies[first.patient, folder.parent if joins else folder, ""].append(candidate)
    result = []
    owners: dict[Path, set[int]] = defaultdict(set)  # indices of studies, by the parent of the folders of their files
    for number, group in enumerate(studies.values()):
        for header in (header for candidate in group for header in candidate.headers):
            owners[header.path.parent.parent].add(number)
    for (_, key, rest), group in studies.items():
        folders = {header.path.parent for candidate in group for header in candidate.headers}
        (one, *_) = folders
        if isinstance(key, Path) and rest:  # for several folders, a folder that could contain them
            folder = key / min((read_name(path.name).case for path in folders), key=len) if len(folders) > 1 else one
        elif isinstance(key, Path):
            folder = key
        elif len(folders) > 1:
            folder = Path(commonpath(folders))
        else:
            folder = one.parent if one in named and named[one].alone and len(owners[one.parent]) == 1 else one
        result.append(_Study(folder, tuple(group)))
    return result


def _names(root: Path, studies: list[_Study]) -> list[tuple[str, Path, tuple[str, ...]]]:
    """Name, folder and notes of each study. Studies of one folder get a PatientID, or a number with a note."""
    result = []
    for study in studies:
        name, subfolder = _name_and_place(root, study.folder)
        notes: tuple[str, ...] = ()
        neighbors = [other for other in studies if other.folder == study.folder]
        if len(neighbors) > 1:
            patients = [re.sub(r"[^\w.-]+", "-", other.series[0].headers[0].patient) for other in neighbors]
            patient = patients[neighbors.index(study)]
            if patient and patients.count(patient) == 1:
                name += f"_{patient}"
            else:
                number = neighbors.index(study) + 1
                name, notes = f"{name}_{number}", (f"number {number} is {_study_in_words(study, neighbors)}",)
        result.append((name, subfolder, notes))
    return result


def _study_in_words(study: _Study, neighbors: list[_Study]) -> str:
    """Describes a study among others of its folder: by its date, or the end of its UID."""
    first, others = (
        study.series[0].headers[0],
        [other.series[0].headers[0] for other in neighbors if other is not study],
    )
    if first.date and first.date not in {other.date for other in others}:
        return f"the study of {first.date}"
    return f"the study with a UID that ends in {first.study[-8:]}" if first.study else f"the one with {first.path.name}"


def _name_and_place(root: Path, folder: Path) -> tuple[str, Path]:
    return folder.absolute().name, Path() if folder == root else folder.parent.relative_to(root)


def _to_sources(
    name: str,
    subfolder: Path,
    notes: tuple[str, ...],
    study: _Study,
    patterns: Patterns | None,
    passed_over: PassedOver,
    used: set[str],
) -> list[Source]:
    masks = [candidate for candidate in study.series if candidate.sequence == MASK]
    scans = [candidate for candidate in study.series if candidate.sequence != MASK]
    for candidate in masks:
        passed_over[MASKS] += candidate.paths
    prefer = partial(_prefer, scans)
    choice = choose_by_patterns(name, scans, patterns, used) if patterns else choose(name, scans, prefer)
    choice.report_unused(passed_over, by_patterns=patterns is not None)
    if choice.fault:
        return [Refused(name, subfolder, choice.fault, channels=choice.cells)]
    if not choice.chosen:
        return []
    files = {channel: candidate.paths for channel, candidate in choice.chosen.items()}
    return [SeriesSource(name, subfolder, files, notes=(*notes, *choice.notes), channels=choice.cells)]


def _prefer(
    scans: list[_Series], channel: str, candidates: list[_Series], flair: _Series | None
) -> tuple[list[_Series], str]:
    """See `Prefer`: selects series on the same grid, and among several FLAIR series the axial one."""
    if flair is None:
        partners = [candidate for candidate in scans if candidate.sequence in (PRE, POST)]
        together = [candidate for candidate in candidates if any(_same_space(candidate, other) for other in partners)]
        axial = [candidate for candidate in candidates if candidate.headers[0].is_axial]
        if len(candidates) > 1 and len(together) == 1:
            return together, "another FLAIR series is on the grid of T1, and is used"
        if len(candidates) > 1 and len(axial) == 1:
            return axial, "another FLAIR series is axial, and is used"
        return candidates, ""
    # A folder name is a deliberate choice of the user, so `SeriesSource.read` checks and reports its grid.
    nearby = [
        candidate for candidate in candidates if candidate.by_folder or _same_space(candidate, flair) is not False
    ]
    exact = [candidate for candidate in nearby if _same_space(candidate, flair)]
    if len(nearby) > 1 and len(exact) == 1:
        return exact, "another one is on the grid of FLAIR, and is used"
    return nearby, "its grid is not that of FLAIR; resample it onto the grid of FLAIR to use it"


def _same_space(a: _Series, b: _Series) -> bool | None:
    """Whether two series have the same bounding box and number of voxels; None if the headers lack the geometry.

    `SeriesSource.read` compares the grids exactly.
    """
    box_a, box_b = _box(a), _box(b)
    if box_a is None or box_b is None:
        frames = {candidate.headers[0].frame_of_reference for candidate in (a, b)}
        return None if len(frames) == 1 or "" in frames else False
    return bool(np.allclose(box_a, box_b, atol=0.5))


def _box(candidate: _Series) -> np.ndarray | None:
    """[7]: minimum and maximum coordinates of the voxel centers in mm, and the cube root of their number."""
    first = candidate.headers[0]
    positions = [header.position for header in candidate.headers]
    if not (first.size and first.orientation and first.spacing) or None in positions or first.frames > 1:
        return None
    rows, columns = first.size
    along_row, along_column = np.reshape(first.orientation, (2, 3))
    across = along_row * (columns - 1) * first.spacing[1], along_column * (rows - 1) * first.spacing[0]
    starts = np.array(positions)
    corners = np.concatenate([starts + a * across[0] + b * across[1] for a in (0, 1) for b in (0, 1)])
    count = (rows * columns * len(positions)) ** (1 / 3)
    return np.array([*corners.min(axis=0), *corners.max(axis=0), count])
