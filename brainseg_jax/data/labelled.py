"""Reads one labelled case of a cohort: its files become a `Volume`, or every fault in them is listed."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from brainseg_jax.data.formats.listing import ALL, CaseFiles, Files, paths_of
from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import Description
from brainseg_jax.scans.grid import Grid
from brainseg_jax.scans.images import SUFFIXES, read_image
from brainseg_jax.scans.intensity import to_8_bits
from brainseg_jax.scans.nifti_file import Nifti, open_nifti
from brainseg_jax.scans.slices import stack_slices
from brainseg_jax.scans.volume import Volume

NO_TARGET = "no voxel of any target"
_Result = TypeVar("_Result")
_WHOLE = 1e-3  # a label that differs from a whole number by no more is that number
_WHITE = 255  # the value of a target in a mask that is an image
_MOST_LISTED = 8  # values in a message


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """One case as it was read.

    Attributes:
      volume: with labels, unless the case has no label file.
      notes: what a user must know of the files, without their names.
      ranges: minimum and maximum of the finite values in the files, by channel; a replaced channel has none.
      replaced: channels that hold the voxels of the stand-in.
      white: whether the label map held 0 and 255 and was read as a mask of one target.
    """

    volume: Volume
    notes: tuple[str, ...]
    ranges: Mapping[str, tuple[float, float]]
    replaced: tuple[str, ...]
    white: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class _Pixels:
    """The values of the files before they are mapped.

    Attributes:
      channels: the file of each, for messages, and its values of any type of numbers: [I, J, K] on `grid`, or
        [S, H, W] of single images.
      labels: the same of the label map, or None.
      grid: of a volume; None for single images.
      numbers: of the slices.
      notes: of the headers and colors.
    """

    channels: Mapping[str, tuple[Path, np.ndarray]]
    labels: np.ndarray | None = None
    grid: Grid | None = None
    numbers: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def read_case(case: CaseFiles, description: Description) -> tuple[Volume, tuple[str, ...]]:
    """Reads a case as the networks take it; see `open_case`, which returns more."""
    reading = open_case(case, description)
    return reading.volume, reading.notes


def open_case(case: CaseFiles, description: Description, *, targets_known: bool = True) -> Reading:
    """Reads a case.

    NIfTI volumes are turned to axial slices. Channels and labels of another orientation are brought onto the grid of
    the first channel by their affines; nothing is interpolated. TIFF and PNG files are slices without spacing. Each
    channel is mapped to 8 bits by itself, see `to_8_bits`.

    Args:
      case: its files.
      description: of the cohort. Missing channels are replaced by its stand-in.
      targets_known: False where the cohort does not declare its labels: every label from 0 to 255 is then accepted.

    Raises:
      InputError: something is wrong; a line for each fault, with the file, the value found and the remedy.
    """
    faults: list[str] = []
    files = {name: case.images[name] for name in (ALL, *description.channels) if name in case.images}
    if files and len(description.channels) == 1:
        files = {ALL: next(iter(files.values()))}
    missing = [] if ALL in files else [name for name in description.channels if name not in files]
    if missing and (not description.stand_in or description.stand_in in missing):
        faults.append(_missing(case, missing, description.stand_in))
    are_images = any(_first(found).suffix.lower() in SUFFIXES for found in files.values())
    pixels = (_read_images if are_images else _read_volumes)(case, files, description, faults)
    notes = list(pixels.notes)
    mapped: dict[str, np.ndarray] = {}
    for name, (path, values) in pixels.channels.items():
        if not are_images and name != description.stand_in and description.stand_in and _is_constant(values):
            notes.append(f"{name} holds a single value and is replaced by {description.stand_in}")
        elif (result := _attempt(faults, _map, name, path, values, are_images)) is not None:
            mapped[name] = result[0]
            notes += result[1]
    labels, white = None, False
    if pixels.labels is not None:
        checked = _attempt(faults, _check_labels, _first(case.labels), pixels.labels, description, targets_known)
        if checked is not None:
            labels, white = checked[:2]
            notes += checked[2]
    if faults:
        raise InputError("\n".join(faults))
    if labels is not None and np.isin(labels, (0, description.ignore or 0)).all():
        notes.append(NO_TARGET)
    if pixels.grid is not None:
        mapped = {name: pixels.grid.to_slices(values) for name, values in mapped.items()}
        labels = labels if labels is None else np.ascontiguousarray(pixels.grid.to_slices(labels))
    replaced = tuple(name for name in description.channels if name not in mapped)
    voxels = np.stack([mapped[name if name in mapped else description.stand_in] for name in description.channels], -1)
    return Reading(
        volume=Volume(voxels, pixels.grid and pixels.grid.spacing, pixels.numbers, labels=labels),
        notes=tuple(notes),
        ranges={name: _range_of(pixels.channels[name][1]) for name in mapped},
        replaced=replaced,
        white=white,
    )


def _attempt(faults: list[str], function: Callable[..., _Result], *arguments: Any) -> _Result | None:
    """Calls a function; where it raises InputError, its lines are added to the faults and None is returned."""
    try:
        return function(*arguments)
    except InputError as error:
        faults += str(error).split("\n")
        return None


def _first(files: Files) -> Path:
    return paths_of(files)[0]


def _missing(case: CaseFiles, missing: list[str], stand_in: str) -> str:
    where = f"{_first(next(iter(case.images.values()))).parent}: " if case.images else ""
    remedy = (
        f"{stand_in}, which replaces missing channels, is missing itself; add it"
        if stand_in
        else "add the file, name the channel that replaces missing ones (stand_in in cohort.toml)"
    )
    return f"{where}case {case.name} has no file of {', '.join(missing)}: {remedy}, or remove the case"


# NIfTI volumes.


def _read_volumes(case: CaseFiles, files: Mapping[str, Files], description: Description, faults: list[str]) -> _Pixels:
    opened: dict[str, tuple[Path, Nifti]] = {}
    for name, path in files.items():
        if (nifti := _attempt(faults, _open_channel, name, path)) is not None:
            opened[name] = (path, nifti)
    label_map = None if case.labels is None else _attempt(faults, _open_labels, case.labels)
    if not opened:
        return _Pixels({}, label_map and label_map.values)
    first, reference = next(iter(opened.values()))
    grid, notes = reference.grid, list(reference.notes)
    channels: dict[str, tuple[Path, np.ndarray]] = {}
    if ALL in opened:
        values = _attempt(faults, _by_channel, first, reference.values, description) or {}
        channels = {name: (first, values[name]) for name in values}
    else:
        for name, (path, nifti) in opened.items():
            if (values := _attempt(faults, _onto, grid, first, nifti, path)) is not None:
                channels[name] = (path, values)
    labels = None
    if label_map is not None:
        labels = _attempt(faults, _onto, grid, first, label_map, case.labels)
        notes += [f"label map: {note}" for note in label_map.notes if note not in notes]
    return _Pixels(channels, labels, grid, grid.slice_numbers, tuple(notes))


def _open_channel(name: str, path: Files) -> Nifti:
    if not isinstance(path, Path):
        raise InputError(f"{_first(path)}: a slice, where other channels are volumes; give one kind of files")
    nifti = open_nifti(path)
    if nifti.values.ndim != 3 and name != ALL:
        raise InputError(
            f"{path}: an array of shape {nifti.values.shape}; a file of one channel has three axes, so save each "
            "channel in a file of its own"
        )
    return nifti


def _open_labels(path: Files) -> Nifti:
    if not isinstance(path, Path) or path.suffix.lower() in SUFFIXES:
        raise InputError(f"{_first(path)}: an image, where the scan is a volume; give the label map as NIfTI")
    nifti = open_nifti(path)
    if nifti.values.ndim != 3:
        raise InputError(
            f"{path}: an array of shape {nifti.values.shape}; a label map has three axes, so give one value a voxel"
        )
    return nifti


def _by_channel(path: Path, values: np.ndarray, description: Description) -> dict[str, np.ndarray]:
    stacked = values[..., np.newaxis] if values.ndim == 3 else values
    if stacked.ndim != 4 or stacked.shape[3] != len(description.channels):
        raise InputError(_wrong_count(path, values.shape, stacked.shape[3], description))
    return {name: stacked[..., index] for index, name in enumerate(description.channels)}


def _wrong_count(path: Path, shape: tuple[int, ...], found: int, description: Description) -> str:
    return (
        f"{path}: an array of shape {shape}, that is {found} channel(s); the description has "
        f"{len(description.channels)} ({', '.join(description.channels)}). Correct the description or the file"
    )


def _onto(grid: Grid, reference: Path, nifti: Nifti, path: Path) -> np.ndarray:
    """The values of a file on the grid of the first channel, whose file is `reference`."""
    if path == reference:
        return nifti.values
    try:
        return nifti.grid.turned_onto(grid, nifti.values)
    except InputError as error:
        raise InputError(
            f"{path}: its grid is not that of {reference.name}: {error}; resample it onto that grid, or correct its "
            "header"
        ) from None


# Images, a file a slice.


def _read_images(case: CaseFiles, files: Mapping[str, Files], description: Description, faults: list[str]) -> _Pixels:
    notes: list[str] = []
    channels: dict[str, tuple[Path, np.ndarray]] = {}
    stacks = {name: stack for name in files if (stack := _attempt(faults, _stack, case.name, files[name])) is not None}
    first = next(iter(stacks.values()), None)
    for name, stack in stacks.items():
        split = _attempt(faults, _colors, name, stack, first, description)
        if split is not None:
            channels |= {each: (stack.path, values) for each, values in split[0].items()}
            notes += split[1]
    labels = None
    if case.labels is not None and (stack := _attempt(faults, _stack, case.name, case.labels)) is not None:
        gray = _attempt(faults, _gray, stack, first or stack)
        if gray is not None:
            labels = gray[0]
            notes += [f"label map: {note}" for note in gray[1]]
    return _Pixels(channels, labels, None, first.numbers if first else (), tuple(notes))


@dataclasses.dataclass(frozen=True, eq=False)
class _Stack:
    """Slices of one kind: the first file, numbers, pixels [S, H, W] or [S, H, W, 3]."""

    path: Path
    numbers: tuple[int, ...]
    pixels: np.ndarray

    def __str__(self) -> str:
        slices, rows, columns = self.pixels.shape[:3]
        return f"{slices} slice(s) from number {self.numbers[0]} on, of {rows} x {columns} pixels"


def _stack(case: str, found: Files) -> _Stack:
    if not isinstance(found, Path) and (other := [path for _, path in found if path.suffix.lower() not in SUFFIXES]):
        raise InputError(f"{other[0]}: no image, where other slices are images; give one kind of files")
    if isinstance(found, Path) and found.suffix.lower() not in SUFFIXES:
        raise InputError(f"{found}: a volume, where the other files of the case are images; give one kind of files")
    numbers, paths, pixels = stack_slices(case, ((1, found),) if isinstance(found, Path) else found, read_image)
    return _Stack(paths[0], numbers, pixels)


def _colors(
    name: str, stack: _Stack, first: _Stack, description: Description
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The channels in the images of one kind, and notes; a file of all channels holds them as its colors."""
    if name == ALL and len(description.channels) == 3 and stack.pixels.ndim == 4:
        return {each: stack.pixels[..., index] for index, each in enumerate(description.channels)}, []
    if name == ALL and len(description.channels) != 1:
        found = stack.pixels.shape[3] if stack.pixels.ndim == 4 else 1
        raise InputError(_wrong_count(stack.path, stack.pixels.shape[1:], found, description))
    gray, notes = _gray(stack, first)
    return {name or description.channels[0]: gray}, notes


def _gray(stack: _Stack, first: _Stack) -> tuple[np.ndarray, list[str]]:
    """The values of gray slices, [S, H, W], and notes; they have the numbers and the size of the first channel's."""
    pixels = stack.pixels
    if pixels.shape[:3] != first.pixels.shape[:3] or stack.numbers != first.numbers:
        raise InputError(f"{stack.path}: {stack}; {first.path.name} has {first}. Give both for the same slices")
    if pixels.ndim == 3:
        return pixels, []
    if (pixels == pixels[..., :1]).all():
        return pixels[..., 0], ["saved as color, with three equal channels; read as gray"]
    raise InputError(f"{stack.path}: a color image, where one value a pixel is expected; save it as gray")


# Values.


def _map(name: str, path: Path, values: np.ndarray, is_image: bool) -> tuple[np.ndarray, list[str]]:
    """Maps a channel to 8 bits; images are 8 bits already, and a black slice is none of their faults."""
    if is_image and _is_constant(values):
        return values, [f"{name} holds a single value"]
    try:
        mapped, note = to_8_bits(values)
    except InputError as error:
        raise InputError(f"{path}: {name} {error}") from None
    return mapped, [f"{name}: {part}" for part in (note or "").split("; ") if part]


def _is_constant(values: np.ndarray) -> bool:
    return bool((values == values.flat[0]).all())


def _range_of(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return float(finite.min()), float(finite.max())


def _check_labels(
    path: Path, values: np.ndarray, description: Description, targets_known: bool
) -> tuple[np.ndarray, bool, list[str]]:
    """Returns the labels as uint8, whether they were a mask of 0 and 255, and notes."""
    notes = []
    whole = values
    if values.dtype.kind == "f":
        whole = np.rint(values)
        with np.errstate(invalid="ignore"):  # of infinite values
            broken = ~(np.abs(values - whole) <= _WHOLE)
        if broken.any():
            raise InputError(
                f"{path}: values that are no whole numbers: {_listed(values[broken])}. If it was resampled with "
                "interpolation, resample the original with nearest neighbor"
            )
        if (values != whole).any():
            notes.append("labels rounded to the whole numbers that they are close to")
    outside = (whole < 0) | (whole > 255)
    if outside.any():
        raise InputError(f"{path}: {_listed(whole[outside])}; labels are whole numbers from 0 to 255. Correct the file")
    labels = whole.astype(np.uint8)
    found = set(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist())
    declared = {0, *(label for target in description.targets for label in target.labels)}
    declared |= set() if description.ignore is None else {description.ignore}
    single = len(description.targets) == 1 or not targets_known
    is_white = found - {0} == {_WHITE} and single and description.ignore != _WHITE
    if is_white and (_WHITE not in declared or not targets_known):
        value = description.targets[0].labels[0] if targets_known else 1
        return (labels > 0) * np.uint8(value), True, [*notes, f"a mask of 0 and 255, read as 0 and {value}"]
    if targets_known and not found <= declared:
        wrong = labels[~np.isin(labels, sorted(declared))]
        raise InputError(
            f"{path}: {_listed(wrong)}; described are {', '.join(map(str, sorted(declared)))} ("
            f"{', '.join(description.names)}). Correct the file, or describe the value as a target or as ignored"
        )
    return labels, False, notes


def _listed(values: np.ndarray) -> str:
    """Values and how many voxels have them."""
    found, counts = np.unique(values, return_counts=True)
    listed = [
        f"{value:g} ({count} voxel{'s' if count > 1 else ''})"
        for value, count in zip(found[:_MOST_LISTED], counts, strict=False)
    ]
    return ", ".join(listed) + (f", and {len(found) - _MOST_LISTED} more" if len(found) > _MOST_LISTED else "")
