"""Pairs of an image and a mask: `X.png` and `X_mask.png`, or files of the same names in `images/` and `masks/`."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from brainseg_jax.data.formats.listing import ALL, CaseFiles, Draft, Files
from brainseg_jax.data.formats.names import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    image_name,
    images_of_mask,
    is_flat,
    is_image,
    is_volume,
    split_slice,
    stem,
)
from brainseg_jax.errors import InputError
from brainseg_jax.scans.images import read_image
from brainseg_jax.scans.nifti_file import open_nifti
from brainseg_jax.scans.walk import PassedOver

PAIRS = "pairs of image and mask"

Key = tuple[Path, str]  # folder, without `images` or `masks` in it, and name of an image


@dataclass(frozen=True)
class Sorted:
    """The files of a folder of pairs.

    Attributes:
      images: by key.
      masks: by key.
      faults: files with the same key.
    """

    images: dict[Key, Path]
    masks: dict[Key, Path]
    faults: list[str]


def list_pairs(root: Path, files: Iterable[Path], passed_over: PassedOver, *, slices: bool = True) -> Draft:
    """Lists the pairs in a folder and below.

    Args:
      root: folder of the cohort.
      files: all below it.
      passed_over: takes what is no image.
      slices: whether 2-D images `<case>_<n>` are the slices of one case; otherwise each is a case.
    """
    draft = Draft(PAIRS, root, passed_over=passed_over, label_place="{case}_mask, or masks/{case}")
    found = sort_pairs(draft, files)
    draft.faults += found.faults
    flat = {key: path for key, path in found.images.items() if is_flat(path)}
    if flat and len(flat) < len(found.images):
        other = next(path for path in found.images.values() if is_volume(path))
        draft.faults.append(
            f"{draft.short(next(iter(flat.values())))} is a 2-D image and {draft.short(other)} a volume; keep one "
            "format in the folder"
        )
        return draft
    draft.channels = _channels(next(iter(found.images.values()), None))
    channel = draft.channels[0] if len(draft.channels) == 1 else ALL
    images, masks = (group_slices(draft.root, paths, slices) for paths in (found.images, found.masks))
    names = case_names(sorted(images.keys() | masks.keys()))
    for key, case in names.items():
        draft.faults += check_numbers(draft, case, images.get(key, masks.get(key, [])))
        mask = as_files(masks[key]) if key in masks else None
        draft.cases.append(CaseFiles(case, case, "", {channel: as_files(images[key])} if key in images else {}, mask))
    _note_slices(draft, {names[key]: len(found) for key, found in images.items() if len(found) > 1}, len(names))
    return draft


def sort_pairs(draft: Draft, files: Iterable[Path]) -> Sorted:
    """Sorts files into images and masks by their names and folders."""
    found = Sorted({}, {}, [])
    masks: list[tuple[Path, Path, tuple[str, ...]]] = []
    for path in files:
        if not is_image(path):
            draft.passed_over["no image by its name"].append(path)
            continue
        place, role = _role(path.relative_to(draft.root).parent)
        names = images_of_mask(path, in_masks=role == "mask")
        if role == "image" or not names:
            _add(draft, found, found.images, (place, image_name(path)), path)
        else:
            masks.append((path, place, names))
    for path, place, names in masks:
        likely = [(place, name) for name in names if name]
        if not likely:  # the mask of the only image in its folder
            beside = [key for key in found.images if key[0] == place]
            likely = beside if len(beside) == 1 else [(place, stem(path))]
        _add(draft, found, found.masks, next((key for key in likely if key in found.images), likely[0]), path)
    return found


def group_slices(root: Path, paths: dict[Key, Path], slices: bool) -> dict[Key, list[tuple[int, Path]]]:
    """The files of each case with their numbers, in order.

    Args:
      root: folder of the cohort, whose name is that of a case whose images there are mere numbers.
      paths: by key.
      slices: whether 2-D images `<case>_<n>` are the slices of one case.
    """
    cases: dict[Key, list[tuple[int, Path]]] = defaultdict(list)
    for (place, name), path in paths.items():
        numbered = split_slice(name) if slices and is_flat(path) else None
        case, number = numbered or (name, 1)
        case = "" if case.lower() in IMAGE_FOLDERS else case  # P1/image.nii.gz is the image of P1
        key = (place, case) if case else (place.parent, place.name or root.absolute().name)
        cases[key].append((number, path))
    return {key: sorted(found) for key, found in cases.items()}


def as_files(found: list[tuple[int, Path]]) -> Files:
    """The files of one channel of a case: its 2-D images with their numbers, or its volume."""
    return tuple(found) if is_flat(found[0][1]) else found[0][1]


def check_numbers(draft: Draft, case: str, found: list[tuple[int, Path]]) -> list[str]:
    """A sentence for a number that two slices have, and for a gap in the numbers."""
    remedy = "or write slices = false in cohort.toml where each image is a case"
    first: dict[int, Path] = {}
    faults = []
    for number, path in found:
        if (before := first.setdefault(number, path)) != path:
            faults.append(
                f"{draft.short(path)}: a second image for slice {number} of {case}, beside {draft.short(before)}; keep "
                f"one, {remedy}"
            )
    numbers = sorted(first)
    if missing := numbers[-1] - numbers[0] + 1 - len(numbers) if numbers else 0:
        gap = next(number for number in range(numbers[0], numbers[-1]) if number not in first)
        faults.append(
            f"{case}: {missing} of the slices {numbers[0]} to {numbers[-1]} are missing, number {gap} first (there is: "
            f"{draft.short(found[0][1])}); restore them, {remedy}"
        )
    return faults


def case_names(keys: Sequence[Key]) -> dict[Key, str]:
    """The name of the image; of its folder where each folder has one of that name; else both."""
    own = [name for _, name in keys]
    if len(set(own)) == len(own):
        return {key: key[1] for key in keys}
    places = [place for place, _ in keys]
    if len(set(places)) == len(places) and Path() not in places:
        return {key: "_".join(key[0].parts) for key in keys}
    return {key: "_".join((*key[0].parts, key[1])) for key in keys}


def _role(folder: Path) -> tuple[Path, str]:
    """The folder without the part that says what is in it, and what it says: image, mask or nothing."""
    for index in reversed(range(len(folder.parts))):
        word = folder.parts[index].lower()
        if word in MASK_FOLDERS | IMAGE_FOLDERS:
            place = Path(*folder.parts[:index], *folder.parts[index + 1 :])
            return place, "mask" if word in MASK_FOLDERS else "image"
    return folder, ""


def _add(draft: Draft, found: Sorted, paths: dict[Key, Path], key: Key, path: Path) -> None:
    if (first := paths.setdefault(key, path)) != path:
        what = "mask" if paths is found.masks else "image"
        found.faults.append(f"{draft.short(path)}: a second {what} of {key[1]}, beside {draft.short(first)}; keep one")


def _channels(path: Path | None) -> tuple[str, ...]:
    """What the first image holds; whether all are like it is seen when they are read."""
    try:
        if path is not None and is_flat(path):
            return ("red", "green", "blue") if read_image(path).ndim == 3 else ("image",)
        if path is not None and (values := open_nifti(path).values).ndim == 4:
            return tuple(f"channel {index}" for index in range(values.shape[3]))
    except InputError:
        pass  # reported when it is read as a case
    return ("image",)


def _note_slices(draft: Draft, slices: dict[str, int], cases: int) -> None:
    if slices:
        case, count = min(slices.items())
        draft.notes.append(
            f"images with a number at the end of their names are slices of one case: {count} of {case}, for example; "
            f"{cases} cases in all. Where each image is a case, write slices = false in cohort.toml"
        )
