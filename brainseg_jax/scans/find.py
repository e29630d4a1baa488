"""Finds the scans in what a user gives: a file, a case, or a folder of many; opens no pixels."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from brainseg_jax.errors import InputError
from brainseg_jax.scans import images
from brainseg_jax.scans.choice import MASKS, Candidate, choose, choose_by_hand
from brainseg_jax.scans.nifti_file import is_image_of_pair, is_nifti, stem, to_header
from brainseg_jax.scans.patterns import Patterns, check_all_used, matches, without
from brainseg_jax.scans.scan import Refused, Source
from brainseg_jax.scans.sequences import ALL, FLAIR, MASK, Said, read_name
from brainseg_jax.scans.series import check_packages, is_dicom
from brainseg_jax.scans.slices import MOST_SLICES, SliceSource
from brainseg_jax.scans.study import find_studies
from brainseg_jax.scans.volumes import VolumeSource
from brainseg_jax.scans.walk import UNREAD, PassedOver, list_passed_over, new, walk

# OsiriX writes IM-0001-0001.png; a number alone is a slice of its folder.
_NUMBERED = re.compile(r"(?P<case>.+)_(?P<number>[0-9]+)|(?P<osirix>IM-[0-9]+)-(?P<of>[0-9]+)|(?P<alone>[0-9]+)")
_CHANNEL_NUMBER = re.compile(r"(?P<case>.+)_(?P<number>[0-9]{4})")  # of nnU-Net


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
      sources: the scans in order of the name, each of another name: of scans named alike the folder comes before it.
      passed_over: files and folders that are not used, by the reason.
    """

    sources: list[Source]
    passed_over: PassedOver

    def __iter__(self) -> Iterator[Source]:
        return iter(self.sources)


def find_scans(path: Path, sequences: Patterns | None = None) -> Found:
    """Finds the scans in a file, or in a folder and below; links are followed.

    Slices are `<case>_<n>.tif` or `.png`, `IM-<n>-<n>`, or `<n>` in a folder that is the case; a name without a number
    is a case of one slice. A NIfTI file is a case, but files of one folder whose names tell sequences (`read_name`) and
    are the same otherwise are one case together, and so are files that lie in folders named for sequences. DICOM files
    are sorted by their headers, see `find_studies`. What is known to be another sequence than FLAIR is never taken as
    FLAIR; a case for which two files would do is refused, as are two with the same results. Masks, earlier results and
    what is no scan are passed over.

    Args:
      path: of a file or folder.
      sequences: patterns by sequence, against names of files, folders and DICOM descriptions; what fits none is passed
        over. None where names and headers tell.

    Raises:
      InputError: there is no scan, the packages for DICOM are not installed, or a pattern fits nothing.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a scan or a folder of scans")
    path = to_header(path)
    root, passed_over, used = path if path.is_dir() else path.parent, new(), set()
    slices, volumes, dicom = _by_kind(walk(path, passed_over), passed_over)
    sources = _slice_sources(root, slices, sequences, passed_over, used)
    sources += _volume_sources(root, volumes, sequences, passed_over, used)
    if dicom:
        check_packages()
        sources += find_studies(root, dicom, sequences, passed_over, used)
    if sequences:
        check_all_used(sequences, used, path)
    if not sources:
        listed = "".join(f"\n  {line}" for line in list_passed_over(passed_over, root))
        raise InputError(
            f"{path}: no scan in it; give slices <case>_<n>.tif or .png, NIfTI volumes .nii or .nii.gz, DICOM series, "
            f"or a folder of them{'; passed over:' if listed else ''}{listed}"
        )
    return Found(sorted(_named_apart(sources), key=lambda source: source.name), passed_over)


def _by_kind(files: list[Path], passed_over: PassedOver) -> tuple[list[Path], list[Path], list[Path]]:
    """Images, NIfTI and DICOM; all else is passed over."""
    slices, volumes, dicom = [], [], []
    for file in files:
        suffix = file.suffix.lower()
        if is_nifti(file):
            volumes.append(file)
        elif suffix in images.SUFFIXES:
            slices.append(file)
        elif is_image_of_pair(file):
            continue
        elif file.name == "DICOMDIR":
            passed_over["a directory of DICOM files, which are read themselves"].append(file)
        else:
            try:
                what = "DICOM" if is_dicom(file) else "no scan by its name"
            except OSError as error:
                what = f"cannot be read ({error.strerror})"
            if what == "DICOM":
                dicom.append(file)
            elif suffix in UNREAD:
                passed_over["a format that is not read; convert scans to NIfTI (.nii.gz)"].append(file)
            else:
                passed_over[what].append(file)
    return slices, volumes, dicom


def _slice_sources(
    root: Path, files: list[Path], patterns: Patterns | None, passed_over: PassedOver, used: set[str]
) -> list[Source]:
    cases: dict[tuple[Path, str], list[tuple[int, Path]]] = defaultdict(list)
    for file in files:
        if read_name(file.stem).sequence == MASK:
            passed_over[MASKS].append(file)
            continue
        case, number = file.stem, 1
        if match := _NUMBERED.fullmatch(file.stem):
            digits = match["number"] or match["of"] or match["alone"]
            if int(digits) <= MOST_SLICES:
                case, number = match["case"] or match["osirix"] or file.parent.absolute().name, int(digits)
        cases[file.parent, case].append((number, file))
    sources: list[Source] = []
    for (folder, case), found in cases.items():
        place, paths = folder.relative_to(root), [file for _, file in found]
        said = _said(case, folder, root)
        by_hand = patterns and matches(patterns[FLAIR], case, folder.name, *(path.stem for path in paths[:1]))
        used |= {FLAIR} if by_hand else set()
        if said.sequence == MASK:
            passed_over[MASKS] += paths
        elif said.sequence in (None, FLAIR) or by_hand:
            shown = {FLAIR: f"{len(found)} image{'s' * (len(found) > 1)} *"}
            sources.append(SliceSource(case, place, tuple(sorted(found)), channels=shown))
        else:
            fault = (
                f"{folder / case}: images of {said.sequence} by name, which are not taken as FLAIR; if they are FLAIR, "
                f"or hold all sequences in their colors, add --sequences='flair=*{case}*'"
            )
            sources.append(Refused(case, place, fault))
    return sources


def _said(name: str, folder: Path, root: Path) -> Said:
    """What a name says of its sequence, or else its folder's."""
    said = read_name(name)
    return said if said.sequence or folder == root else _folder_says(folder)


def _folder_says(folder: Path) -> Said:
    """What a folder's name says of the files in it, where it says nothing else, as `FLAIR`; `FLAIR_study` does not."""
    said = read_name(folder.name)
    return said if said.alone else Said(None, False, folder.name, folder.name)


def _volume_sources(
    root: Path, files: list[Path], patterns: Patterns | None, passed_over: PassedOver, used: set[str]
) -> list[Source]:
    groups: dict[tuple[Path, str], list[tuple[str, Candidate]]] = defaultdict(list)  # by folder and key
    in_folder, numbered = Counter(file.parent for file in files), _channel_numbers(files)
    sources: list[Source] = []
    for file in files:
        said, own = read_name(stem(file)), file.parent != root
        fitting = [one for one in (patterns or {}).values() if matches(one, stem(file), file.name)]
        foldered = own and said.sequence is None and not fitting and _tells(file.parent, patterns)
        if foldered or (own and said.sequence is None and _folder_says(file.parent).sequence == MASK):
            said = _folder_says(file.parent)
        if said.sequence == MASK:
            passed_over[MASKS].append(file)
            continue
        folder, key, case = file.parent, said.key, said.case
        if foldered:
            folder = folder.parent
            beside = [place for place in in_folder if place.parent == folder and _tells(place, patterns)]
            key = case = "" if all(in_folder[place] == 1 for place in beside) else stem(file)
        elif file in numbered:
            key = case = numbered[file]
        elif said.sequence is None and fitting:
            key = case = without(fitting[0], stem(file))
        elif said.sequence is None:
            key = f"/{file.name}"  # a case for itself, also beside files that tell sequences
        candidate = Candidate(
            label=f"{file.parent.name}/{file.name}" if foldered else file.name,
            where=str(file),
            paths=(file,),
            sequence=said.sequence,
            contrast=said.contrast,
            names=(stem(file), file.name),
            folders=(file.parent.name,) if own else (),
        )
        groups[folder, key.casefold()].append((case if key else "", candidate))
    for (folder, _), group in groups.items():
        sources += _volume_source(root, folder, group, numbered, patterns, passed_over, used)
    return sources


def _tells(folder: Path, patterns: Patterns | None) -> bool:
    """Whether a folder's name says a sequence, or fits a pattern."""
    if patterns:
        return any(matches(pattern, folder.name) for pattern in patterns.values())
    return _folder_says(folder).sequence is not None


def _volume_source(
    root: Path,
    folder: Path,
    group: list[tuple[str, Candidate]],
    numbered: dict[Path, str],
    patterns: Patterns | None,
    passed_over: PassedOver,
    used: set[str],
) -> list[Source]:
    """The case of files that belong together; none where they are passed over."""
    candidates, cases = [candidate for _, candidate in group], [case for case, _ in group]
    case, place = min(cases, key=len) or folder.absolute().name, folder.relative_to(root)
    if patterns:
        choice = choose_by_hand(case, candidates, patterns, used)
    elif all(one.paths[0] in numbered for one in candidates):
        names = ", ".join(one.where for one in candidates)
        fault = (
            f"{case}: {names}: channels by number, as of nnU-Net, and a number tells no sequence; say by hand which is "
            "which, for BraTS as --sequences='flair=*_0003,pre=*_0000,post=*_0001'"
        )
        return [Refused(case, place, fault)]
    else:
        choice = choose(case, candidates, lambda channel, found, flair: (found, ""))
    choice.tell_unused(passed_over, by_hand=patterns is not None)
    if choice.fault:
        return [Refused(case, place, choice.fault, channels=choice.cells)]
    if not choice.chosen:
        return []
    found = {channel: one.paths for channel, one in choice.chosen.items()}
    file = (found.get(FLAIR) or found[ALL])[0]
    suffix = file.name[len(stem(file)) :]
    shown = choice.cells
    if ALL in found:
        shown = {FLAIR: f"{shown[FLAIR]} *"}
    return [VolumeSource(case, place, found, suffix, notes=tuple(choice.notes), channels=shown)]


def _channel_numbers(files: list[Path]) -> dict[Path, str]:
    """The case of each file that is a channel as nnU-Net numbers them: `<case>_0000` and on, and none above 9."""
    groups: dict[tuple[Path, str], dict[int, Path]] = defaultdict(dict)
    for file in files:
        if (match := _CHANNEL_NUMBER.fullmatch(stem(file))) and read_name(stem(file)).sequence is None:
            groups[file.parent, match["case"]][int(match["number"])] = file
    return {
        file: case for (_, case), found in groups.items() if 0 in found and max(found) <= 9 for file in found.values()
    }


def _files(source: Source) -> list[Path]:
    if isinstance(source, SliceSource):
        return [path for _, path in source.found]
    files = source.found if isinstance(source, VolumeSource) else source.files
    return [path for paths in files.values() for path in paths]


def _named_apart(sources: list[Source]) -> list[Source]:
    """Puts the folder before names that are given twice; where that does not tell them apart, both are refused."""
    times = Counter(source.name for source in sources)
    named = [
        replace(source, name=f"{source.place.as_posix()}/{source.name}") if times[source.name] > 1 else source
        for source in sources
    ]
    written: dict[str, list[Source]] = defaultdict(list)
    for source in named:
        if not isinstance(source, Refused):
            written[source.name].append(source)
    kept: list[Source] = [source for source in named if len(written[source.name]) < 2]
    for name, alike in written.items():
        if len(alike) > 1:
            files = ", ".join(str(_files(source)[0]) for source in alike[:4])
            fault = (
                f"{files}: more than one scan is named {name}, so their results would be too; give one of them another "
                "name, or another folder"
            )
            kept.append(Refused(name, alike[0].place, fault))
    return kept
