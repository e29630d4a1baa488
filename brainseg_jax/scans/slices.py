"""Scans and masks in single images, one TIFF or PNG file per slice."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from brainseg_jax.errors import InputError
from brainseg_jax.files import write_whole
from brainseg_jax.scans.description import Description
from brainseg_jax.scans.images import read_image
from brainseg_jax.scans.intensity import MOST_LABELS, refuse_labels
from brainseg_jax.scans.scan import MASK, ONE_SLICE, STAND_IN, Scan, Source, file_words

MOST_SLICES = 9999  # a larger number in a name is a date or a time


@dataclasses.dataclass(frozen=True, eq=False)
class SliceScan(Scan):
    """A scan read from images.

    Results are TIFF files: masks have values 0 and 255, label maps have labels as gray values, other maps are float32
    with one file per target.
    """

    def write(
        self,
        kind: str,
        values: np.ndarray,
        paths: list[Path],
        description: Description,
        words: Sequence[str] = (),
    ) -> None:
        """See `Scan.write`."""
        if kind == MASK:
            single = len(description.targets) == 1
            images = values[..., 0] * np.uint8(255) if single else description.label_map(values)
        else:
            images = np.moveaxis(values, -1, 1).reshape(-1, *values.shape[1:3]).astype(np.float32)
        for image, path in zip(images, paths, strict=True):
            write_whole(path, partial(Image.fromarray(image).save, format="TIFF"))


@dataclasses.dataclass(frozen=True)
class SliceSource(Source):
    """Images `<case>_<n>.tif` of one case.

    Attributes:
      files: numbers and files of the slices, sorted by number.
    """

    files: tuple[tuple[int, Path], ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """See `Source.paths`."""
        return tuple(path for _, path in self.files)

    def read(self) -> SliceScan:
        """See `Source.read`; gray images are used as FLAIR, masks and label maps are refused."""
        numbers, paths, pixels = stack_slices(self.name, self.files, read_image)
        try:
            refuse_labels(pixels.ravel())
        except InputError as error:
            if _colors(pixels) <= MOST_LABELS:
                raise InputError(f"{paths[0]}{' and the other slices' if len(paths) > 1 else ''}: {error}") from error
        notes = (*self.notes, ONE_SLICE) if len(pixels) == 1 else self.notes
        if pixels.ndim == 3:
            pixels, notes = np.stack([pixels] * 3, axis=-1), (*notes, STAND_IN)
        return SliceScan(pixels, None, numbers, (*self.notes, *notes))

    def outputs(self, kind: str, description: Description) -> list[Path]:
        """See `Source.outputs`."""
        return slice_outputs(self.folder, [path.stem for _, path in self.files], kind, description)


def slice_outputs(folder: Path, names: Sequence[str], kind: str, description: Description) -> list[Path]:
    """The result files of a `SliceScan`: one per slice; for maps of several targets one per slice and target.

    The kind is at the end, after the target, as in `P1_7_tumor_core_probability.tif`.

    Args:
      folder: relative to the output folder.
      names: of the slices.
      kind: see `Source.outputs`.
      description: of the network.
    """
    targets = [""]
    if kind != MASK and len(description.targets) > 1:
        targets = [f"_{word}" for word in file_words(description)]
    return [folder / f"{name}{target}_{kind}.tif" for name in names for target in targets]


def stack_slices(
    case: str, files: tuple[tuple[int, Path], ...], read: Callable[[Path], np.ndarray]
) -> tuple[tuple[int, ...], tuple[Path, ...], np.ndarray]:
    """Reads the slices of one case.

    Args:
      case: its name.
      files: numbers and files, sorted by number.
      read: reads the pixels of a file; may raise InputError.

    Returns:
      numbers, files, and pixels [S, ...]. A single file with a number above `MOST_SLICES` gets the number 1.

    Raises:
      InputError: lists all faults: repeated numbers, gaps, unreadable files, and different sizes.
    """
    numbers, paths = zip(*files, strict=True)
    if len(files) == 1 and numbers[0] > MOST_SLICES:
        numbers = (1,)
    faults = [
        f"{second}: a second file for slice {number} of {case}, beside {first}"
        for (number, first), (again, second) in pairwise(files)
        if number == again
    ]
    # Counted by differences, since numbers can be huge (dates).
    if missing := numbers[-1] - numbers[0] + 1 - len(set(numbers)):
        gaps = (number for before, after in pairwise(numbers) for number in range(before + 1, after))
        listed = ", ".join(str(number) for number in islice(gaps, 10)) + (", ..." if missing > 10 else "")
        faults.append(
            f"{case}: a gap in the numbers {numbers[0]} to {numbers[-1]}: {listed} missing; add the missing slices"
        )
    pictures: dict[Path, np.ndarray] = {}
    for path in paths:
        try:
            pictures[path] = read(path)
        except InputError as error:
            faults.append(str(error))
    shapes = {path: picture.shape for path, picture in pictures.items()}
    if len(set(shapes.values())) > 1:
        first, other = next((a, b) for a, b in pairwise(shapes) if shapes[a] != shapes[b])
        faults.append(f"{other}: {_size(shapes[other])} pixels, but {first.name} has {_size(shapes[first])}")
    if faults:
        raise InputError("\n".join(faults))
    return numbers, paths, np.stack(list(pictures.values()))


def _colors(pixels: np.ndarray) -> int:
    """Counts gray values [S, H, W] or colors [S, H, W, 3]; slices of pure noise have few values, but many colors."""
    if pixels.ndim == 4:
        pixels = pixels.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    return len(np.unique(pixels))


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)
