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

Key = tuple[Path, str]  # folder (without a part `images` or `masks`) and name of an image


@dataclass(frozen=True)
class SortedFiles:
    """The images and masks in a folder of pairs.

    Attributes:
      images: by key.
      masks: by key.
      faults: files with the same key.
    """

    images: dict[Key, Path]
    masks: dict[Key, Path]
    faults: list[str]


def list_pairs(root: Path, files: Iterable[Path], passed_over: PassedOver, *, slices: bool = True) -> Draft:
    """Lists the pairs in a folder and its subfolders.

    Args:
      root: folder of the cohort.
      files: all files in it.
      passed_over: receives files that are not images.
      slices: whether 2-D images `<case>_<n>` are the slices of one case; otherwise each is a case.
    """
    draft = Draft(PAIRS, root, passed_over=passed_over, label_pattern="{case}_mask, or masks/{case}")
    sorted_files = sort_pairs(draft, files)
    draft.faults += sorted_files.faults
    flat = {key: path for key, path in sorted_files.images.items() if is_flat(path)}
    if flat and len(flat) < len(sorted_files.images):
        other = next(path for path in sorted_files.images.values() if is_volume(path))
        draft.faults.append(
            f"{draft.short(next(iter(flat.values())))} is a 2-D image and {draft.short(other)} a volume; keep one "
            "format in the folder"
        )
        return draft
    draft.channels = _channels(next(iter(sorted_files.images.values()), None))
    channel = draft.channels[0] if len(draft.channels) == 1 else ALL
    images, masks = (group_slices(draft.root, paths, slices) for paths in (sorted_files.images, sorted_files.masks))
    names = case_names(sorted(images.keys() | masks.keys()))
    for key, case in names.items():
        draft.faults += check_numbers(draft, case, images.get(key, masks.get(key, [])))
        mask = as_files(masks[key]) if key in masks else None
        draft.cases.append(CaseFiles(case, case, "", {channel: as_files(images[key])} if key in images else {}, mask))
    counts = {names[key]: len(case_slices) for key, case_slices in images.items() if len(case_slices) > 1}
    _note_slices(draft, counts, len(names))
    return draft


def sort_pairs(draft: Draft, files: Iterable[Path]) -> SortedFiles:
    """Sorts files into images and masks by their names and folders."""
    result = SortedFiles({}, {}, [])
    masks: list[tuple[Path, Path, tuple[str, ...]]] = []
    for path in files:
        if not is_image(path):
            draft.passed_over["not an image by its name"].append(path)
            continue
        folder, role = _role(path.relative_to(draft.root).parent)
        names = images_of_mask(path, in_masks=role == "mask")
        if role == "image" or not names:
            _add(draft, result, result.images, (folder, image_name(path)), path)
        else:
            masks.append((path, folder, names))
    for path, folder, names in masks:
        likely = [(folder, name) for name in names if name]
        if not likely:  # the mask of the only image in its folder
            images = [key for key in result.images if key[0] == folder]
            likely = images if len(images) == 1 else [(folder, stem(path))]
        _add(draft, result, result.masks, next((key for key in likely if key in result.images), likely[0]), path)
    return result


def group_slices(root: Path, paths: dict[Key, Path], slices: bool) -> dict[Key, list[tuple[int, Path]]]:
    """Groups files by case, with their numbers, in order.

    Args:
      root: folder of the cohort; it names the case if the names of its images are only numbers.
      paths: by key.
      slices: whether 2-D images `<case>_<n>` are the slices of one case.
    """
    cases: dict[Key, list[tuple[int, Path]]] = defaultdict(list)
    for (folder, name), path in paths.items():
        numbered = split_slice(name) if slices and is_flat(path) else None
        case, number = numbered or (name, 1)
        case = "" if case.lower() in IMAGE_FOLDERS else case  # P1/image.nii.gz is an image of the case P1
        key = (folder, case) if case else (folder.parent, folder.name or root.absolute().name)
        cases[key].append((number, path))
    return {key: sorted(numbered_files) for key, numbered_files in cases.items()}


def as_files(numbered_files: list[tuple[int, Path]]) -> Files:
    """The files of one channel of a case: its numbered 2-D images, or its volume."""
    return tuple(numbered_files) if is_flat(numbered_files[0][1]) else numbered_files[0][1]


def check_numbers(draft: Draft, case: str, numbered_files: list[tuple[int, Path]]) -> list[str]:
    """Faults of the slice numbers of a case: repeated numbers and a gap."""
    remedy = "or write slices = false in cohort.toml if each image is a case"
    first: dict[int, Path] = {}
    faults = []
    for number, path in numbered_files:
        if (before := first.setdefault(number, path)) != path:
            faults.append(
                f"{draft.short(path)}: a second image for slice {number} of {case}, beside {draft.short(before)}; keep "
                f"one, {remedy}"
            )
    numbers = sorted(first)
    if missing := numbers[-1] - numbers[0] + 1 - len(numbers) if numbers else 0:
        gap = next(number for number in range(numbers[0], numbers[-1]) if number not in first)
        faults.append(
            f"{case}: {missing} of the slices {numbers[0]} to {numbers[-1]} are missing, number {gap} first "
            f"(present: {draft.short(numbered_files[0][1])}); restore them, {remedy}"
        )
    return faults


def case_names(keys: Sequence[Key]) -> dict[Key, str]:
    """Unique names: of the images, else of their folders, else both joined."""
    names = [name for _, name in keys]
    if len(set(names)) == len(names):
        return {key: key[1] for key in keys}
    folders = [folder for folder, _ in keys]
    if len(set(folders)) == len(folders) and Path() not in folders:
        return {key: "_".join(key[0].parts) for key in keys}
    return {key: "_".join((*key[0].parts, key[1])) for key in keys}


def _role(folder: Path) -> tuple[Path, str]:
    """The folder without a part such as `images` or `masks`, and the role of its files: "image", "mask" or ""."""
    for index in reversed(range(len(folder.parts))):
        word = folder.parts[index].lower()
        if word in MASK_FOLDERS | IMAGE_FOLDERS:
            rest = Path(*folder.parts[:index], *folder.parts[index + 1 :])
            return rest, "mask" if word in MASK_FOLDERS else "image"
    return folder, ""


def _add(draft: Draft, result: SortedFiles, paths: dict[Key, Path], key: Key, path: Path) -> None:
    if (first := paths.setdefault(key, path)) != path:
        role = "mask" if paths is result.masks else "image"
        result.faults.append(f"{draft.short(path)}: a second {role} of {key[1]}, beside {draft.short(first)}; keep one")


def _channels(path: Path | None) -> tuple[str, ...]:
    """The channels of the first image; the reader of the cases checks the others."""
    try:
        if path is not None and is_flat(path):
            return ("red", "green", "blue") if read_image(path).ndim == 3 else ("image",)
        if path is not None and (values := open_nifti(path).values).ndim == 4:
            return tuple(f"channel {index}" for index in range(values.shape[3]))
    except InputError:
        pass  # reported later, when the case is read
    return ("image",)


def _note_slices(draft: Draft, slices: dict[str, int], cases: int) -> None:
    if slices:
        case, count = min(slices.items())
        draft.notes.append(
            f"images with a number at the end of their names are slices of one case: {count} of {case}, for example; "
            f"{cases} cases in all. If each image is a case, write slices = false in cohort.toml"
        )
