"""Reads a folder of masks, predicted or true, ours or others', whatever files hold them."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.scans.grid import Grid
from brainseg_jax.scans.images import read_image
from brainseg_jax.scans.nifti_file import is_nifti, open_nifti, stem
from brainseg_jax.scans.slices import stack_slices

_SLICE = re.compile(r"(?P<case>.+?)(?:_(?P<number>[0-9]+))?_(?:mask|pred)\.(?:tiff?|png)", re.IGNORECASE)
_OF_A_MASK = re.compile(r"_(?:mask|pred)$")
_NO_MASK = re.compile(r".+_(?:probability|uncertainty)$")  # maps that `predict` puts beside its masks


@dataclass(frozen=True, eq=False)
class Mask:
    """The mask of one case.

    Attributes:
      voxels: [S, H, W] bool, axial slices from foot to crown, turned as `Grid.to_slices` does; those of single files
        as they are.
      spacing: millimeters between voxels (slice, row, column); None for single slices, whose files do not say.
      numbers: of the slices, as in the names of their files; None for a volume.
      sources: the files.
    """

    voxels: np.ndarray
    spacing: tuple[float, float, float] | None
    numbers: tuple[int, ...] | None
    sources: tuple[Path, ...]


def read_masks(folder: Path) -> dict[str, Mask]:
    """Reads all masks in a folder and below.

    Slices are `<case>_<n>_mask` or `<case>_<n>_pred`, `.tif` or `.png`, nested as in the Kaggle set or flat; their
    numbers run without a gap. A name without a number is a case of one slice. Volumes are `<case>`, `<case>_mask` or
    `<case>_pred`, `.nii` or `.nii.gz`. Values are 0 and 1, or 0 and 255. All else in the folder is passed over.

    Returns:
      the masks by name of the case, in order of the name.

    Raises:
      InputError: there is no mask, or something is wrong; the message lists all faults, each with its file.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a folder of masks")
    slices: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    volumes: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("[!.]*")):
        if is_nifti(path) and not _NO_MASK.fullmatch(stem(path)):
            volumes[_OF_A_MASK.sub("", stem(path))].append(path)
        elif match := _SLICE.fullmatch(path.name):
            slices[match["case"]].append((int(match["number"] or 1), path))
    if not slices and not volumes:
        raise InputError(
            f"{folder}: no mask in it; a mask is named <case>_<n>_mask.tif, <case>_<n>_pred.tif, <case>.nii.gz or "
            "<case>_pred.nii.gz"
        )
    masks, faults = {}, []
    for case in sorted(slices.keys() | volumes.keys()):
        files = [path for _, path in slices[case]] + volumes[case]
        try:
            if (slices[case] and volumes[case]) or len(volumes[case]) > 1:
                raise InputError(f"{case}: more than one mask: {', '.join(str(path) for path in files[:4])}; keep one")
            masks[case] = _read_volume(volumes[case][0]) if volumes[case] else _read_slices(case, slices[case])
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError(f"{folder}: masks that cannot be used:\n" + "\n".join(faults))
    return masks


def _read_volume(path: Path) -> Mask:
    image, values = open_nifti(path)
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise InputError(f"{path}: an array of shape {values.shape}; a mask has three axes")
    try:
        grid = Grid(image.affine, values.shape)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return Mask(grid.to_slices(_as_bool(values, path)), grid.spacing, None, (path,))


def _read_slices(case: str, found: list[tuple[int, Path]]) -> Mask:
    numbers, paths, voxels = stack_slices(case, tuple(sorted(found)), _read_slice)
    return Mask(voxels, None, numbers, paths)


def _read_slice(path: Path) -> np.ndarray:
    values = read_image(path)
    if values.ndim != 2:
        raise InputError(f"{path}: a color image; a mask has one channel")
    return _as_bool(values, path)


def _as_bool(values: np.ndarray, path: Path) -> np.ndarray:
    found = np.unique(values)
    if not (np.isin(found, (0, 1)).all() or np.isin(found, (0, 255)).all()):
        listed = ", ".join(f"{value:g}" for value in found[:8]) + (", ..." if len(found) > 8 else "")
        raise InputError(f"{path}: values {listed}; a mask holds 0 and 1, or 0 and 255")
    return values > 0
