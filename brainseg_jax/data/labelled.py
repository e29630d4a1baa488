"""Reads one labelled case of a cohort as a `Volume`, or lists all faults of its files."""

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
_TOLERANCE = 1e-3  # tolerance for labels that are stored as floats
_WHITE = 255  # value of the target in masks stored as images
_MAX_LISTED = 8  # values in one message


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """One case as read from its files.

    Attributes:
      volume: with labels, unless the case has no label file.
      notes: messages about the files for the user, without file names.
      ranges: minimum and maximum of the finite values in the files, by channel. A replaced channel has no entry.
      replaced: channels that were replaced by `Description.stand_in`.
      white: whether the label map contained 0 and 255 and was read as a mask of one target.
    """

    volume: Volume
    notes: tuple[str, ...]
    ranges: Mapping[str, tuple[float, float]]
    replaced: tuple[str, ...]
    white: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class _Pixels:
    """The values of the files, before they are mapped to 8 bits.

    Attributes:
      channels: file (for messages) and values of each channel, of any numeric type: [I, J, K] on `grid`, or [S, H, W]
        if the files are images.
      labels: values of the label map, likewise, or None.
      grid: of a volume; None if the files are images.
      numbers: of the slices.
      notes: about headers and colors.
    """

    channels: Mapping[str, tuple[Path, np.ndarray]]
    labels: np.ndarray | None = None
    grid: Grid | None = None
    numbers: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def read_case(case: CaseFiles, description: Description) -> tuple[Volume, tuple[str, ...]]:
    """Reads a case for a network. Returns the volume and the notes of `open_case`."""
    reading = open_case(case, description)
    return reading.volume, reading.notes


def open_case(case: CaseFiles, description: Description, *, targets_known: bool = True) -> Reading:
    """Reads a case.

    NIfTI volumes are reoriented to axial slices. Channels and labels in other orientations are reoriented to the grid
    of the first channel by their affines, without interpolation. TIFF and PNG files are slices without spacing. Each
    channel is mapped to 8 bits separately, see `to_8_bits`.

    Args:
      case: its files.
      description: of the cohort. Its `stand_in` channel replaces missing channels.
      targets_known: False if the cohort does not declare its labels. All labels from 0 to 255 are then accepted.

    Raises:
      InputError: one line per fault, with the file, the value and the remedy.
    """
    faults: list[str] = []
    files = {name: case.images[name] for name in (ALL, *description.channels) if name in case.images}
    if files and len(description.channels) == 1:
        files = {ALL: next(iter(files.values()))}
    missing = [] if ALL in files else [name for name in description.channels if name not in files]
    if missing and (not description.stand_in or description.stand_in in missing):
        faults.append(_missing(case, missing, description.stand_in))
    are_images = any(_first(channel_files).suffix.lower() in SUFFIXES for channel_files in files.values())
    pixels = (_read_images if are_images else _read_volumes)(case, files, description, faults)
    notes = list(pixels.notes)
    mapped: dict[str, np.ndarray] = {}
    for name, (path, values) in pixels.channels.items():
        if not are_images and name != description.stand_in and description.stand_in and _is_constant(values):
            notes.append(f"{name} is constant and is replaced by {description.stand_in}")
        elif (result := _attempt(faults, _map, name, path, values, are_images)) is not None:
            mapped[name] = result[0]
            notes += result[1]
    labels, white = None, False
    if pixels.labels is not None:
        assert case.labels is not None  # the files of these labels
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
        volume=Volume(voxels, pixels.grid.spacing if pixels.grid else None, pixels.numbers, labels=labels),
        notes=tuple(notes),
        ranges={name: _range_of(pixels.channels[name][1]) for name in mapped},
        replaced=replaced,
        white=white,
    )


def _attempt(faults: list[str], function: Callable[..., _Result], *arguments: Any) -> _Result | None:
    """Calls a function. If it raises InputError, appends the lines of its message to `faults` and returns None."""
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
        else "add the file, name a channel that replaces missing ones (stand_in in cohort.toml)"
    )
    return f"{where}case {case.name} has no file of {', '.join(missing)}: {remedy}, or remove the case"


# NIfTI volumes.


def _read_volumes(case: CaseFiles, files: Mapping[str, Files], description: Description, faults: list[str]) -> _Pixels:
    opened: dict[str, tuple[Path, Nifti]] = {}
    for name, path in files.items():
        if (nifti := _attempt(faults, _open_channel, name, path)) is not None:
            opened[name] = (_first(path), nifti)
    label_map = None if case.labels is None else _attempt(faults, _open_labels, case.labels)
    if not opened:
        return _Pixels({}, label_map.values if label_map else None)
    first, reference = next(iter(opened.values()))
    grid, notes = reference.grid, list(reference.notes)
    channels: dict[str, tuple[Path, np.ndarray]] = {}
    if ALL in opened:
        by_channel = _attempt(faults, _by_channel, first, reference.values, description) or {}
        channels = {name: (first, values) for name, values in by_channel.items()}
    else:
        for name, (path, nifti) in opened.items():
            if (values := _attempt(faults, _reorient, grid, first, nifti, path)) is not None:
                channels[name] = (path, values)
    labels = None
    if label_map is not None:
        labels = _attempt(faults, _reorient, grid, first, label_map, case.labels)
        notes += [f"label map: {note}" for note in label_map.notes if note not in notes]
    return _Pixels(channels, labels, grid, grid.slice_numbers, tuple(notes))


def _open_channel(name: str, path: Files) -> Nifti:
    if not isinstance(path, Path):
        raise InputError(f"{_first(path)}: a slice, but other channels are volumes; use one kind of file")
    nifti = open_nifti(path)
    if nifti.values.ndim != 3 and name != ALL:
        raise InputError(
            f"{path}: an array of shape {nifti.values.shape}; a file of one channel has three axes; save each "
            "channel in a separate file"
        )
    return nifti


def _open_labels(path: Files) -> Nifti:
    if not isinstance(path, Path) or path.suffix.lower() in SUFFIXES:
        raise InputError(f"{_first(path)}: an image, but the scan is a volume; save the label map as NIfTI")
    nifti = open_nifti(path)
    if nifti.values.ndim != 3:
        raise InputError(
            f"{path}: an array of shape {nifti.values.shape}; a label map has three axes; save one value per voxel"
        )
    return nifti


def _by_channel(path: Path, values: np.ndarray, description: Description) -> dict[str, np.ndarray]:
    stacked = values[..., np.newaxis] if values.ndim == 3 else values
    if stacked.ndim != 4 or stacked.shape[3] != len(description.channels):
        raise InputError(_wrong_count(path, values.shape, stacked.shape[3], description))
    return {name: stacked[..., index] for index, name in enumerate(description.channels)}


def _wrong_count(path: Path, shape: tuple[int, ...], count: int, description: Description) -> str:
    return (
        f"{path}: an array of shape {shape}, that is {count} channel(s); the description has "
        f"{len(description.channels)} ({', '.join(description.channels)}). Correct the description or the file"
    )


def _reorient(grid: Grid, reference: Path, nifti: Nifti, path: Path) -> np.ndarray:
    """Reorients the values of a file to the grid of the first channel. `reference` is the file of that channel."""
    if path == reference:
        return nifti.values
    try:
        return nifti.grid.turned_onto(grid, nifti.values)
    except InputError as error:
        raise InputError(
            f"{path}: its grid is not that of {reference.name}: {error}; resample it to that grid, or correct "
            "its header"
        ) from None


# Images: one file per slice.


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
    """Slices of one channel: the first file, slice numbers, pixels [S, H, W] or [S, H, W, 3]."""

    path: Path
    numbers: tuple[int, ...]
    pixels: np.ndarray

    def __str__(self) -> str:
        slices, rows, columns = self.pixels.shape[:3]
        return f"{slices} slice(s) from number {self.numbers[0]} on, of {rows} x {columns} pixels"


def _stack(case: str, files: Files) -> _Stack:
    if not isinstance(files, Path) and (other := [path for _, path in files if path.suffix.lower() not in SUFFIXES]):
        raise InputError(f"{other[0]}: not an image, but other slices are images; use one kind of file")
    if isinstance(files, Path) and files.suffix.lower() not in SUFFIXES:
        raise InputError(f"{files}: a volume, but the other files of the case are images; use one kind of file")
    numbers, paths, pixels = stack_slices(case, ((1, files),) if isinstance(files, Path) else files, read_image)
    return _Stack(paths[0], numbers, pixels)


def _colors(
    name: str, stack: _Stack, first: _Stack, description: Description
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The channels in the images of one file pattern, and notes. A file of all channels stores them as its colors."""
    if name == ALL and len(description.channels) == 3 and stack.pixels.ndim == 4:
        return {each: stack.pixels[..., index] for index, each in enumerate(description.channels)}, []
    if name == ALL and len(description.channels) != 1:
        count = stack.pixels.shape[3] if stack.pixels.ndim == 4 else 1
        raise InputError(_wrong_count(stack.path, stack.pixels.shape[1:], count, description))
    gray, notes = _gray(stack, first)
    return {name or description.channels[0]: gray}, notes


def _gray(stack: _Stack, first: _Stack) -> tuple[np.ndarray, list[str]]:
    """Gray values [S, H, W] and notes. Raises InputError if slice numbers or size differ from the first channel."""
    pixels = stack.pixels
    if pixels.shape[:3] != first.pixels.shape[:3] or stack.numbers != first.numbers:
        raise InputError(f"{stack.path}: {stack}; {first.path.name} has {first}. Both need the same slices")
    if pixels.ndim == 3:
        return pixels, []
    if (pixels == pixels[..., :1]).all():
        return pixels[..., 0], ["a color image with three equal channels; read as gray"]
    raise InputError(f"{stack.path}: a color image; expected one value per pixel. Save it as gray")


# Values.


def _map(name: str, path: Path, values: np.ndarray, is_image: bool) -> tuple[np.ndarray, list[str]]:
    """Maps a channel to 8 bits. Images have 8 bits already, and a constant image is not a fault."""
    if is_image and _is_constant(values):
        return values, [f"{name} is constant"]
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
    rounded = values
    if values.dtype.kind == "f":
        rounded = np.rint(values)
        with np.errstate(invalid="ignore"):  # infinite values
            fractional = ~(np.abs(values - rounded) <= _TOLERANCE)
        if fractional.any():
            raise InputError(
                f"{path}: values that are not whole numbers: {_list_values(values[fractional])}. If it was resampled "
                "with interpolation, resample the original with nearest-neighbor interpolation"
            )
        if (values != rounded).any():
            notes.append("labels rounded to the nearest whole numbers")
    outside = (rounded < 0) | (rounded > 255)
    if outside.any():
        raise InputError(
            f"{path}: {_list_values(rounded[outside])}; labels are whole numbers from 0 to 255. Correct the file"
        )
    labels = rounded.astype(np.uint8)
    values_present = set(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist())
    declared = {0, *(label for target in description.targets for label in target.labels)}
    declared |= set() if description.ignore is None else {description.ignore}
    single = len(description.targets) == 1 or not targets_known
    is_white = values_present - {0} == {_WHITE} and single and description.ignore != _WHITE
    if is_white and (_WHITE not in declared or not targets_known):
        value = description.targets[0].labels[0] if targets_known else 1
        return (labels > 0) * np.uint8(value), True, [*notes, f"a mask of 0 and 255, read as 0 and {value}"]
    if targets_known and not values_present <= declared:
        wrong = labels[~np.isin(labels, sorted(declared))]
        raise InputError(
            f"{path}: {_list_values(wrong)}; the description has {', '.join(map(str, sorted(declared)))} ("
            f"{', '.join(description.names)}). Correct the file, or add the value to the description "
            "as a target or as ignored"
        )
    return labels, False, notes


def _list_values(values: np.ndarray) -> str:
    """Lists the distinct values, each with its number of voxels."""
    found, counts = np.unique(values, return_counts=True)
    listed = [
        f"{value:g} ({count} voxel{'s' if count > 1 else ''})"
        for value, count in zip(found[:_MAX_LISTED], counts, strict=False)
    ]
    return ", ".join(listed) + (f", and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else "")
