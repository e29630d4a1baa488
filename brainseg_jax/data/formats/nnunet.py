"""nnU-Net raw data sets: `dataset.json`, one file per channel `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`.

https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
"""

import re
from collections import defaultdict
from pathlib import Path

from brainseg_jax.data.formats.dataset_json import (
    NAME,
    check_count,
    folder_files,
    pass_over_tests,
    read_channels,
    read_labels,
)
from brainseg_jax.data.formats.listing import ALL, CaseFiles, Draft, Files, few
from brainseg_jax.data.formats.names import ending, is_flat, is_image, stem
from brainseg_jax.data.formats.pairs import as_files

CHANNEL_NUMBER = re.compile(r"(?P<case>.+)_(?P<number>[0-9]{4})")
COLORS = 3  # channels of a 2-D image
SUPPORTED = (".nii", ".nii.gz", ".png", ".tif", ".tiff")  # supported suffixes


def list_nnunet(root: Path, content: dict) -> Draft:
    """Lists the cases of `imagesTr` and `labelsTr`.

    In PNG and TIFF a case is one 2-D image, as in nnU-Net.

    Args:
      root: folder of `dataset.json`.
      content: of `dataset.json`, in the current format (`channel_names`) or the older one (`modality`).
    """
    older = "channel_names" not in content
    draft = Draft(f"nnU-Net raw{' with the older dataset.json' if older else ''}", root)
    read_channels(content, draft)
    read_labels(content, draft, numbers_first=older)
    if "dataset" in content:
        draft.faults.append(
            f"{NAME}: the key 'dataset' with a list of files is not supported; put the files into imagesTr and "
            "labelsTr, or describe the folder in cohort.toml"
        )
        return draft
    files = folder_files(draft, "imagesTr", is_image, "not an image by its name")
    labels = folder_files(draft, "labelsTr", is_image, "not an image by its name")
    files, labels = _with_ending(content, draft, files, labels)
    images = channels_by_case(draft, files)
    label_of: dict[str, Path] = {}
    for path in labels:
        if (first := label_of.setdefault(stem(path), path)) != path:
            draft.faults.append(f"{draft.short(path)}: a second label of {stem(path)}, beside {first.name}; keep one")
    for case in images.keys() | label_of.keys():
        label = label_of.get(case)
        draft.cases.append(CaseFiles(case, case, "", images.get(case, {}), as_files([(1, label)]) if label else None))
    draft.label_pattern = f"labelsTr/{{case}}{content.get('file_ending') or '.nii.gz'}"
    check_count(content, draft, len(images), "imagesTr")
    pass_over_tests(draft)
    return draft


def channels_by_case(draft: Draft, files: list[Path]) -> dict[str, dict[str, Files]]:
    """The files of each case by channel; adds a fault for a missing or too large channel number.

    With three channels, if every case is a single 2-D image `CASE_0000`, its colors are the channels.
    """
    numbered: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in files:
        match = CHANNEL_NUMBER.fullmatch(stem(path))
        if match is None:
            draft.faults.append(
                f"{draft.short(path)}: no channel number in its name; rename it to {stem(path)}_0000{ending(path)}, or "
                "remove it"
            )
            continue
        first = numbered[match["case"]].setdefault(int(match["number"]), path)
        if first != path:
            draft.faults.append(
                f"{draft.short(path)}: a second file for channel {match['number']} of {match['case']}, beside "
                f"{first.name}; keep one"
            )
    colors = len(draft.channels) == COLORS and all(list(by_number) == [0] for by_number in numbered.values())
    if files and colors and all(is_flat(path) for path in files):
        draft.notes.append(f"{len(numbered)} images have the channels {', '.join(draft.channels)} as their colors")
        return {case: {ALL: as_files([(1, by_number[0])])} for case, by_number in numbered.items()}
    by_case: dict[str, dict[str, Files]] = {}
    for case, by_number in numbered.items():
        if draft.channels and (extra := [number for number in sorted(by_number) if number >= len(draft.channels)]):
            listed = few(draft.short(by_number[number]) for number in extra)
            draft.faults.append(
                f"{listed}: number too large for the {len(draft.channels)} channels of {NAME} "
                f"({', '.join(draft.channels)}); add the channel to channel_names, or remove the file"
            )
        by_case[case] = {
            name: as_files([(1, by_number[number])])
            for number, name in enumerate(draft.channels)
            if number in by_number
        }
        if not by_case[case]:  # a fault is already listed
            by_case[case] = {ALL: as_files([(1, next(iter(by_number.values())))])}
    return by_case


def _with_ending(content: dict, draft: Draft, files: list[Path], labels: list[Path]) -> tuple[list[Path], list[Path]]:
    """The files with the suffix `file_ending`; adds a fault for images with another suffix."""
    declared = content.get("file_ending")
    endings = sorted({ending(path).lower() for path in (*files, *labels)})
    if declared is None and "channel_names" in content:
        draft.notes.append(f"{NAME}: file_ending is missing; the files end in {few(endings)}")
    if declared is None:
        if len(endings) > 1:
            draft.faults.append(
                f"imagesTr and labelsTr: files that end in {', '.join(endings)}; save all in one format, or select one "
                f'in {NAME}, as in "file_ending": ".nii.gz"'
            )
        return files, labels
    if str(declared).lower() not in SUPPORTED:
        draft.faults.append(
            f"{NAME}: file_ending is {declared!r}, which is not supported; convert the files to NIfTI (.nii.gz), and "
            "correct it"
        )
        return files, labels
    wrong = [path for path in (*files, *labels) if ending(path).lower() != str(declared).lower()]
    if wrong and len(wrong) == len(files) + len(labels):
        draft.faults.append(
            f"{NAME}: file_ending is {declared!r}, but the files end in {few(endings)}, as {draft.short(wrong[0])}; "
            "correct it"
        )
        return files, labels
    draft.faults += [
        f"{draft.short(path)}: does not end in {declared!r}, the file_ending of {NAME}; convert it, or remove it"
        for path in wrong
    ]
    return [path for path in files if path not in wrong], [path for path in labels if path not in wrong]
