"""Tasks of the Medical Segmentation Decathlon: `dataset.json` and `imagesTr/CASE.nii.gz`, channels along a fourth axis.

Antonelli et al. 2022, Nature Communications 13:4128; http://medicaldecathlon.com.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from brainseg_jax.data.formats.dataset_json import (
    NAME,
    check_count,
    folder_files,
    pass_over_tests,
    read_channels,
    read_labels,
)
from brainseg_jax.data.formats.listing import ALL, CaseFiles, Draft
from brainseg_jax.data.formats.names import is_image, is_volume, stem


def list_msd(root: Path, content: dict) -> Draft:
    """Lists the cases of the list `training`, and checks them against `imagesTr` and `labelsTr`.

    Args:
      root: folder of `dataset.json`.
      content: of `dataset.json`; without a list `training`, the files of both folders are the cases.
    """
    draft = Draft("Medical Segmentation Decathlon", root, label_pattern="labelsTr/{case}.nii.gz")
    read_channels(content, draft)
    read_labels(content, draft, numbers_first=True)
    files = folder_files(draft, "imagesTr", is_image, "not an image by its name")
    labels = folder_files(draft, "labelsTr", is_image, "not an image by its name")
    draft.faults += [
        f"{draft.short(path)}: a 2-D image, but this format has NIfTI volumes; convert it, or arrange the files as "
        "pairs in images/ and masks/"
        for path in (*files, *labels)
        if not is_volume(path)
    ]
    volumes = [path for path in files if is_volume(path)]
    pairs: Mapping[Path, Path | None]
    if "training" in content:
        pairs, named = _training(content, draft)
        draft.faults += [
            f"{draft.short(path)}: not in the list 'training' of {NAME}; add it, or remove the file"
            for path in (*volumes, *labels)
            if path not in named
        ]
    else:
        draft.notes.append(f"{NAME} has no list 'training'; the files of imagesTr and labelsTr are used")
        label_of = {stem(path): path for path in labels}
        pairs = {image: label_of.pop(stem(image), None) for image in volumes}
        draft.cases += [CaseFiles(case, case, "", {}, label) for case, label in label_of.items() if is_volume(label)]
        check_count(content, draft, len(pairs), "imagesTr")
    for image, label in pairs.items():
        channel = draft.channels[0] if len(draft.channels) == 1 else ALL
        draft.cases.append(CaseFiles(stem(image), stem(image), "", {channel: image}, label))
    pass_over_tests(draft)
    return draft


def _training(content: dict, draft: Draft) -> tuple[dict[Path, Path], set[Path]]:
    """Image and label of each entry of `training` with existing files, and all files in the list."""
    pairs: dict[Path, Path] = {}
    named: set[Path] = set()
    entries = content["training"]
    if not isinstance(entries, list):
        draft.faults.append(
            f"{NAME}: training is not a list; give a list of "
            '{"image": "./imagesTr/CASE.nii.gz", "label": "./labelsTr/CASE.nii.gz"}'
        )
        return pairs, named
    check_count(content, draft, len(entries), "the list 'training'")
    for number, entry in enumerate(entries):
        paths: list[Any] = [entry.get(key) if isinstance(entry, dict) else None for key in ("image", "label")]
        if not all(isinstance(path, str) for path in paths):
            draft.faults.append(f"{NAME}: entry {number} of training lacks image or label; complete or remove it")
            continue
        image, label = (_inside(path, draft) for path in paths)
        if image is None or label is None:
            continue
        if image in named:
            draft.faults.append(f"{NAME}: {draft.short(image)} is in training twice; keep one entry")
        elif image.is_file() and label.is_file():
            pairs[image] = label
        named |= {image, label}
        draft.faults += [
            f"{NAME}: training names {draft.short(path)}, but the file does not exist; restore it, or remove the entry"
            for path in (image, label)
            if not path.is_file()
        ]
    return pairs, named


def _inside(path: str, draft: Draft) -> Path | None:
    """The path of a file in the folder of the cohort; None, with a fault, if it is outside."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        draft.faults.append(f"{NAME}: training names {path!r}, outside of this folder; give paths within it")
        return None
    return draft.root / pure
