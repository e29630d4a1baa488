"""Finds the scans in what a user gives: a file, a case, or a folder of many; opens none of them."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from brainseg_jax.data.source import IGNORED_NAMES
from brainseg_jax.errors import InputError
from brainseg_jax.scans import images
from brainseg_jax.scans.nifti_file import is_nifti, stem
from brainseg_jax.scans.scan import Source
from brainseg_jax.scans.sequences import ALL, OTHER, split_name
from brainseg_jax.scans.series import SeriesSource, check_packages, is_dicom
from brainseg_jax.scans.slices import SliceSource
from brainseg_jax.scans.volumes import VolumeSource

_NUMBERED = re.compile(r"(?P<case>.+)_(?P<number>[0-9]+)")
_NO_SCAN = re.compile(r".+[_-](?:mask|seg|pred|probability|uncertainty|overlay)", re.IGNORECASE)


def find_scans(path: Path) -> list[Source]:
    """Lists the scans in a file, or in a folder and below.

    Slices are `<case>_<n>.tif` or `.png`; a name without a number is a case of one slice. A NIfTI file is a case,
    but files of one folder whose names end in a sequence (`<case>_pre`, `<case>_flair`, `<case>_post`, or BraTS's
    words) are one case together; without `<case>` it is named as its folder. A folder with DICOM files is a series and
    a case, but folders beside each other that are named for sequences are one case together, named as the folder that
    holds them; others beside those are not used. Masks and earlier results (`_mask`, `_seg`, `_pred`, ...) are passed
    over, and so is all else.

    Returns:
      the scans in order of the name, each of another name: of scans named alike the folder comes before the name.

    Raises:
      InputError: there is none, two would have the same results, or the packages for DICOM are not installed.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a scan or a folder of scans")
    root = path if path.is_dir() else path.parent
    slices, volumes, series = _sorted_by_case(path, root)
    sources: list[Source] = [SliceSource(case, place, tuple(sorted(found))) for (place, case), found in slices.items()]
    for (place, case, _), found in volumes.items():
        (first, *_) = next(iter(found.values()))
        suffix = first.name[len(stem(first)) :]
        sources.append(VolumeSource(case, place, {key: tuple(paths) for key, paths in found.items()}, suffix))
    sources += _series_sources(root, series)
    if not sources:
        raise InputError(
            f"{path}: no scan in it; give slices <case>_<n>.tif or .png, NIfTI volumes .nii or .nii.gz, DICOM series, "
            "or a folder of them"
        )
    return sorted(_named_apart(sources), key=lambda source: source.name)


_Slices = dict[tuple[Path, str], list[tuple[int, Path]]]  # numbers and files by folder and case
_Volumes = dict[tuple[Path, str, str], dict[str, list[Path]]]  # files by sequence, by folder, case and file
_Series = dict[Path, list[Path]]  # files by folder


def _sorted_by_case(path: Path, root: Path) -> tuple[_Slices, _Volumes, _Series]:
    slices: _Slices = defaultdict(list)
    volumes: _Volumes = defaultdict(lambda: defaultdict(list))
    series: _Series = defaultdict(list)
    for file in _files(path):
        place, image = file.parent.relative_to(root), file.suffix.lower() in images.SUFFIXES
        if _NO_SCAN.fullmatch(stem(file) if is_nifti(file) else file.stem):
            continue
        if is_nifti(file):
            case, sequence = split_name(stem(file)) or (stem(file), ALL)
            # Files that tell no sequence are a case each, also beside one that does.
            key = (place, case or file.parent.absolute().name, file.name if sequence == ALL else "")
            volumes[key][sequence].append(file)
        elif image:
            match = _NUMBERED.fullmatch(file.stem)
            slices[place, match["case"] if match else file.stem].append((int(match["number"]) if match else 1, file))
        elif is_dicom(file):
            series[file.parent].append(file)
    return slices, volumes, series


def _series_sources(root: Path, series: dict[Path, list[Path]]) -> list[Source]:
    """The cases of DICOM folders, see `find_scans`."""
    if not series:
        return []
    check_packages()
    cases: dict[Path, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    named = {folder: found[1] for folder in series if folder != root and (found := split_name(folder.name))}
    holders = {folder.parent for folder in named}
    for folder in series:
        around = [place for place in (folder, folder.parent) if place in holders and folder not in named]
        if folder in named:
            cases[folder.parent][named[folder]].append(folder)
        elif around:
            cases[around[0]][OTHER].append(folder)
        else:
            cases[folder][ALL].append(folder)
    return [
        SeriesSource(
            name=case.absolute().name,
            place=Path() if case == root else case.parent.relative_to(root),
            files={key: tuple(series[folders[0]]) for key, folders in found.items() if key != OTHER},
            notes=tuple(f"{folder.name} is not used" for folder in found.get(OTHER, ())),
        )
        for case, found in cases.items()
    ]


def _files(path: Path) -> Iterator[Path]:
    """The files at a path and below, by name, without what operating systems leave behind."""
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        parts = file.relative_to(path).parts
        if file.is_file() and not any(part.startswith(".") or part in IGNORED_NAMES for part in parts):
            yield file


def _named_apart(sources: list[Source]) -> list[Source]:
    times = Counter(source.name for source in sources)
    named = [
        replace(source, name=f"{source.place.as_posix()}/{source.name}") if times[source.name] > 1 else source
        for source in sources
    ]
    if twice := [name for name, count in Counter(source.name for source in named).items() if count > 1]:
        raise InputError(
            f"more than one scan is named {', '.join(sorted(twice)[:10])}, so their results would be too; give one of "
            "them another name, or another folder"
        )
    return named
