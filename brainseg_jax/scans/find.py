"""Finds the scans in a file or folder, without reading pixels."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from brainseg_jax.errors import InputError
from brainseg_jax.scans import images
from brainseg_jax.scans.choice import MASKS, Candidate, choose, choose_by_patterns
from brainseg_jax.scans.nifti_file import is_image_of_pair, is_nifti, stem, to_header
from brainseg_jax.scans.patterns import Patterns, check_all_used, matches, without
from brainseg_jax.scans.scan import Refused, Source
from brainseg_jax.scans.sequences import ALL, FLAIR, MASK, ParsedName, read_name
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
    """The result of `find_scans`.

    Attributes:
      sources: the scans, sorted by name. Names are unique; those of several scans begin with their folder.
      passed_over: unused files and folders by reason.
    """

    sources: list[Source]
    passed_over: PassedOver

    def __iter__(self) -> Iterator[Source]:
        return iter(self.sources)


def find_scans(path: Path, sequences: Patterns | None = None) -> Found:
    """Finds the scans in a file, or in a folder and its subfolders; follows links.

    - Slices are `<case>_<n>.tif` or `.png`, `IM-<n>-<n>`, or `<n>` in a folder named like the case. A name without a
      number is a case of one slice.
    - A NIfTI file is a case. Files of one folder form one case if their names differ in the sequence only
      (`read_name`), and so do files in folders named after sequences.
    - DICOM files are grouped by their headers, see `find_studies`.
    - A file of another sequence is never used as FLAIR. Ambiguous cases, and cases with the same result names, become
      `Refused`.
    - Masks, earlier results and other files are passed over.

    Args:
      path: a file or folder.
      sequences: patterns by sequence, matched against file names, folder names and DICOM descriptions. Files that fit
        no pattern are passed over. None to use names and headers instead.

    Raises:
      InputError: there is no scan, the DICOM packages are not installed, or a pattern fits nothing.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a scan or a folder of scans")
    path = to_header(path)
    root, passed_over = path if path.is_dir() else path.parent, new()
    used: set[str] = set()
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
    return Found(sorted(_with_unique_names(sources), key=lambda source: source.name), passed_over)


def _by_kind(files: list[Path], passed_over: PassedOver) -> tuple[list[Path], list[Path], list[Path]]:
    """Splits files into 2-D images, NIfTI and DICOM; passes over all others."""
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
            passed_over["an index of DICOM files; the files themselves are read"].append(file)
        else:
            try:
                kind = "DICOM" if is_dicom(file) else "not a scan by its name"
            except OSError as error:
                kind = f"cannot be read ({error.strerror})"
            if kind == "DICOM":
                dicom.append(file)
            elif suffix in UNREAD:
                passed_over["an unsupported format; convert scans to NIfTI (.nii.gz)"].append(file)
            else:
                passed_over[kind].append(file)
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
    for (folder, case), slices in cases.items():
        subfolder, paths = folder.relative_to(root), [file for _, file in slices]
        parsed = _read_name_or_folder(case, folder, root)
        fits_flair = patterns and matches(patterns[FLAIR], case, folder.name, *(path.stem for path in paths[:1]))
        used |= {FLAIR} if fits_flair else set()
        if parsed.sequence == MASK:
            passed_over[MASKS] += paths
        elif parsed.sequence in (None, FLAIR) or fits_flair:
            cells = {FLAIR: f"{len(slices)} image{'s' * (len(slices) > 1)} *"}
            sources.append(SliceSource(case, subfolder, tuple(sorted(slices)), channels=cells))
        else:
            fault = (
                f"{folder / case}: images named as {parsed.sequence}, which is not used as FLAIR; if they are FLAIR, "
                f"or hold all sequences in their color channels, add --sequences='flair=*{case}*'"
            )
            sources.append(Refused(case, subfolder, fault))
    return sources


def _read_name_or_folder(name: str, folder: Path, root: Path) -> ParsedName:
    """The parsed name, or the parsed name of its folder if only the folder names a sequence."""
    parsed = read_name(name)
    return parsed if parsed.sequence or folder == root else _read_folder(folder)


def _read_folder(folder: Path) -> ParsedName:
    """The parsed name of a folder; it gives a sequence only if it is nothing else: `FLAIR` does, `FLAIR_study` not."""
    parsed = read_name(folder.name)
    return parsed if parsed.alone else ParsedName(None, False, folder.name, folder.name)


def _volume_sources(
    root: Path, files: list[Path], patterns: Patterns | None, passed_over: PassedOver, used: set[str]
) -> list[Source]:
    groups: dict[tuple[Path, str], list[tuple[str, Candidate]]] = defaultdict(list)  # by folder and key
    in_folder, numbered = Counter(file.parent for file in files), _channel_numbers(files)
    sources: list[Source] = []
    for file in files:
        parsed, in_subfolder = read_name(stem(file)), file.parent != root
        fitting = [pattern for pattern in (patterns or {}).values() if matches(pattern, stem(file), file.name)]
        named_by_folder = (
            in_subfolder and parsed.sequence is None and not fitting and _names_sequence(file.parent, patterns)
        )
        if named_by_folder or (in_subfolder and parsed.sequence is None and _read_folder(file.parent).sequence == MASK):
            parsed = _read_folder(file.parent)
        if parsed.sequence == MASK:
            passed_over[MASKS].append(file)
            continue
        folder, key, case = file.parent, parsed.key, parsed.case
        if named_by_folder:
            folder = folder.parent
            siblings = [other for other in in_folder if other.parent == folder and _names_sequence(other, patterns)]
            key = case = "" if all(in_folder[other] == 1 for other in siblings) else stem(file)
        elif file in numbered:
            key = case = numbered[file]
        elif parsed.sequence is None and fitting:
            key = case = without(fitting[0], stem(file))
        elif parsed.sequence is None:
            key = f"/{file.name}"  # a separate case, even beside files that name sequences
        candidate = Candidate(
            label=f"{file.parent.name}/{file.name}" if named_by_folder else file.name,
            location=str(file),
            paths=(file,),
            sequence=parsed.sequence,
            contrast=parsed.contrast,
            names=(stem(file), file.name),
            folders=(file.parent.name,) if in_subfolder else (),
        )
        groups[folder, key.casefold()].append((case if key else "", candidate))
    for (folder, _), group in groups.items():
        sources += _volume_source(root, folder, group, numbered, patterns, passed_over, used)
    return sources


def _names_sequence(folder: Path, patterns: Patterns | None) -> bool:
    """Whether the name of a folder is that of a sequence, or fits a pattern."""
    if patterns:
        return any(matches(pattern, folder.name) for pattern in patterns.values())
    return _read_folder(folder).sequence is not None


def _volume_source(
    root: Path,
    folder: Path,
    group: list[tuple[str, Candidate]],
    numbered: dict[Path, str],
    patterns: Patterns | None,
    passed_over: PassedOver,
    used: set[str],
) -> list[Source]:
    """The source of a group of files that form one case; empty if all are passed over."""
    candidates, cases = [candidate for _, candidate in group], [case for case, _ in group]
    case, subfolder = min(cases, key=len) or folder.absolute().name, folder.relative_to(root)
    if patterns:
        choice = choose_by_patterns(case, candidates, patterns, used)
    elif all(candidate.paths[0] in numbered for candidate in candidates):
        names = ", ".join(candidate.location for candidate in candidates)
        fault = (
            f"{case}: {names}: channels are numbered as by nnU-Net, and a number does not name a sequence; assign them "
            "by hand, for BraTS with --sequences='flair=*_0003,pre=*_0000,post=*_0001'"
        )
        return [Refused(case, subfolder, fault)]
    else:
        choice = choose(case, candidates, lambda channel, fitting, flair: (fitting, ""))
    choice.report_unused(passed_over, by_patterns=patterns is not None)
    if choice.fault:
        return [Refused(case, subfolder, choice.fault, channels=choice.cells)]
    if not choice.chosen:
        return []
    files = {channel: candidate.paths for channel, candidate in choice.chosen.items()}
    file = (files.get(FLAIR) or files[ALL])[0]
    suffix = file.name[len(stem(file)) :]
    cells = choice.cells
    if ALL in files:
        cells = {FLAIR: f"{cells[FLAIR]} *"}
    return [VolumeSource(case, subfolder, files, suffix, notes=tuple(choice.notes), channels=cells)]


def _channel_numbers(files: list[Path]) -> dict[Path, str]:
    """The case of each file with a channel number of nnU-Net: `<case>_0000` to at most `<case>_0009`."""
    groups: dict[tuple[Path, str], dict[int, Path]] = defaultdict(dict)
    for file in files:
        if (match := _CHANNEL_NUMBER.fullmatch(stem(file))) and read_name(stem(file)).sequence is None:
            groups[file.parent, match["case"]][int(match["number"])] = file
    return {
        file: case
        for (_, case), channels in groups.items()
        if 0 in channels and max(channels) <= 9
        for file in channels.values()
    }


def _with_unique_names(sources: list[Source]) -> list[Source]:
    """Adds the folder to names that are not unique; refuses the scans if the names still are not."""
    counts = Counter(source.name for source in sources)
    renamed = [
        replace(source, name=f"{source.folder.as_posix()}/{source.name}") if counts[source.name] > 1 else source
        for source in sources
    ]
    by_name: dict[str, list[Source]] = defaultdict(list)
    for source in renamed:
        if not isinstance(source, Refused):
            by_name[source.name].append(source)
    result: list[Source] = [source for source in renamed if len(by_name[source.name]) < 2]
    for name, namesakes in by_name.items():
        if len(namesakes) > 1:
            files = ", ".join(str(source.paths[0]) for source in namesakes[:4])
            fault = (
                f"{files}: more than one scan is named {name}, so their results would have the same names; rename one "
                "of them, or move it to another folder"
            )
            result.append(Refused(name, namesakes[0].folder, fault))
    return result
