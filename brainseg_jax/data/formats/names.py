"""Parses names of files: images, masks, slices and sequences."""

import re
from collections.abc import Iterable
from pathlib import Path

from brainseg_jax.scans import images
from brainseg_jax.scans.nifti_file import SINGLE
from brainseg_jax.scans.slices import MOST_SLICES

# One row per sequence, with all its spellings.
SEQUENCES = (
    ("t1n", "t1", "t1w", "t1pre", "pre", "pre-contrast"),
    ("t1c", "t1ce", "t1gd", "t1km", "t1post", "post", "post-contrast", "t1w-ce"),
    ("t2w", "t2"),
    ("t2f", "flair"),
    ("dwi",),
    ("adc",),
    ("swi",),
    ("pd", "pdw"),
    ("dir",),
)
IMAGE_FOLDERS = frozenset(["image", "images", "img", "imgs", "scan", "scans"])
MASK_FOLDERS = frozenset(
    ["mask", "masks", "label", "labels", "seg", "segs", "segmentation", "segmentations", "annotation", "annotations"]
)

SPELLINGS = {spelling: row[0] for row in SEQUENCES for spelling in row}
_SEQUENCE = re.compile(
    rf"(?:(?P<case>.+?)[_.-])?(?P<sequence>{'|'.join(sorted(SPELLINGS, key=len, reverse=True))})", re.IGNORECASE
)
_MASK = re.compile(r"(?:(?P<base>.+)[_.-])?(?:masks?|segm?|segmentation|labels?|gtv?)|lesion|tumou?r", re.IGNORECASE)
_OF_MASK = re.compile(r"[_.-](?:lesion|tumou?r|seg|label)$", re.IGNORECASE)
_OF_IMAGE = re.compile(r"[_.-](?:image|img|scan)$", re.IGNORECASE)
_SLICE = re.compile(r"(?:(?P<case>.+)[_-])?(?P<number>[0-9]{1,5})")


def is_volume(path: Path) -> bool:
    """Whether the name is that of a NIfTI file."""
    return path.name.lower().endswith(SINGLE)


def is_flat(path: Path) -> bool:
    """Whether the name is that of a 2-D image, TIFF or PNG."""
    return path.suffix.lower() in images.SUFFIXES


def is_image(path: Path) -> bool:
    """Whether the name is that of a supported image file."""
    return is_volume(path) or is_flat(path)


def stem(path: Path) -> str:
    """The name without its suffix; `.nii.gz` is one suffix."""
    return path.name[: -len(ending(path))] if ending(path) else path.name


def ending(path: Path) -> str:
    """The suffix as written in the name; `.nii.gz` is one suffix."""
    return path.name[-len(".nii.gz") :] if path.name.lower().endswith(".nii.gz") else path.suffix


def same_sequence(name: str) -> str:
    """The first spelling of a sequence, see `SEQUENCES`; any other name in lower case."""
    return SPELLINGS.get(name.lower(), name.lower())


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Sorts sequences in the order of `SEQUENCES`, which is that of BraTS; other names follow alphabetically."""
    rows = {row[0]: index for index, row in enumerate(SEQUENCES)}
    return tuple(sorted(names, key=lambda name: (rows.get(same_sequence(name), len(rows)), name)))


def split_sequence(name: str) -> tuple[str | None, str]:
    """Case and lower-case sequence of a stem such as `P1_flair`.

    The case is "" if the stem is only a sequence, and None if it does not end in one.
    """
    match = _SEQUENCE.fullmatch(name)
    return (match["case"] or "", match["sequence"].lower()) if match else (None, "")


def image_name(path: Path) -> str:
    """The stem without a word for images: `P1` for `P1_image`."""
    return _OF_IMAGE.sub("", stem(path))


def images_of_mask(path: Path, *, in_masks: bool | None = None) -> tuple[str, ...]:
    """The possible names of the image of a mask, most likely first; empty if the file is not a mask by its name.

    For `P1_tumor_seg` these are `P1_tumor` and `P1`, for `mask` it is "". In a folder such as `masks` every file is a
    mask, and the first candidate is its name.

    Args:
      path: of a file.
      in_masks: whether the file is in such a folder; None to decide by its parent folder.
    """
    name, names = stem(path), []
    if path.parent.name.lower() in MASK_FOLDERS if in_masks is None else in_masks:
        names.append(image_name(path))
    if match := _MASK.fullmatch(name):
        names.append(match["base"] or "")
        while (shorter := _OF_MASK.sub("", names[-1])) != names[-1]:
            names.append(shorter)
    return tuple(names)


def split_slice(name: str) -> tuple[str, int] | None:
    """Case and number of a stem such as `P1_17`; the case is "" for a number alone. None if there is no number."""
    match = _SLICE.fullmatch(name)
    if match is None or int(match["number"]) > MOST_SLICES:
        return None
    return match["case"] or "", int(match["number"])
