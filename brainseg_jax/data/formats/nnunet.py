"""nnU-Net's raw data sets: `dataset.json`, a file a channel `imagesTr/CASE_0000.nii.gz`, labels `labelsTr/CASE.nii.gz`.

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
READ = (".nii", ".nii.gz", ".png", ".tif", ".tiff")  # endings of files


def list_nnunet(root: Path, content: dict) -> Draft:
    """Lists the cases of `imagesTr` and `labelsTr`.

    In PNG and TIFF a case is one 2-D image, as nnU-Net has it.

    Args:
      root: folder of `dataset.json`.
      content: of `dataset.json`, the present one with `channel_names` or the older one with `modality`.
    """
    older = "channel_names" not in content
    draft = Draft(f"nnU-Net raw{' with the older dataset.json' if older else ''}", root)
    read_channels(content, draft)
    read_labels(content, draft, numbers_first=older)
    if "dataset" in content:
        draft.faults.append(
            f"{NAME}: lists its files under the key 'dataset', which is not read; put the files into imagesTr and "
            "labelsTr, or describe the folder by cohort.toml"
        )
        return draft
    files = folder_files(draft, "imagesTr", is_image, "no image by its name")
    labels = folder_files(draft, "labelsTr", is_image, "no image by its name")
    files, labels = _with_ending(content, draft, files, labels)
    images = channels_by_case(draft, files)
    label_of: dict[str, Path] = {}
    for path in labels:
        if (first := label_of.setdefault(stem(path), path)) != path:
            draft.faults.append(f"{draft.short(path)}: a second label of {stem(path)}, beside {first.name}; keep one")
    for case in images.keys() | label_of.keys():
        found = label_of.get(case)
        draft.cases.append(CaseFiles(case, case, "", images.get(case, {}), as_files([(1, found)]) if found else None))
    draft.label_place = f"labelsTr/{{case}}{content.get('file_ending') or '.nii.gz'}"
    check_count(content, draft, len(images), "imagesTr")
    pass_over_tests(draft)
    return draft


def channels_by_case(draft: Draft, files: list[Path]) -> dict[str, dict[str, Files]]:
    """The files of each case by channel; a name without a number and a number beyond the channels are faults.

    Where there are three channels and every case has only `CASE_0000`, a 2-D image, that image holds them as colors.
    """
    numbered: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in files:
        match = CHANNEL_NUMBER.fullmatch(stem(path))
        if match is None:
            draft.faults.append(
                f"{draft.short(path)}: no number of a channel in its name; call it {stem(path)}_0000{ending(path)}, or "
                "take it away"
            )
            continue
        first = numbered[match["case"]].setdefault(int(match["number"]), path)
        if first != path:
            draft.faults.append(
                f"{draft.short(path)}: a second file for channel {match['number']} of {match['case']}, beside "
                f"{first.name}; keep one"
            )
    colors = len(draft.channels) == COLORS and all(list(one) == [0] for one in numbered.values())
    if files and colors and all(is_flat(path) for path in files):
        draft.notes.append(f"{len(numbered)} images hold the channels {', '.join(draft.channels)} as their colors")
        return {case: {ALL: as_files([(1, found[0])])} for case, found in numbered.items()}
    by_case: dict[str, dict[str, Files]] = {}
    for case, found in numbered.items():
        if draft.channels and (extra := [number for number in sorted(found) if number >= len(draft.channels)]):
            files_of = few(draft.short(found[number]) for number in extra)
            draft.faults.append(
                f"{files_of}: beyond the {len(draft.channels)} channels of {NAME} "
                f"({', '.join(draft.channels)}); name it in channel_names, or take it away"
            )
        by_case[case] = {
            name: as_files([(1, found[number])]) for number, name in enumerate(draft.channels) if number in found
        }
        if not by_case[case]:  # its faults are listed above, or those of the channels
            by_case[case] = {ALL: as_files([(1, next(iter(found.values())))])}
    return by_case


def _with_ending(content: dict, draft: Draft, files: list[Path], labels: list[Path]) -> tuple[list[Path], list[Path]]:
    """The files that end as `file_ending` says; another ending of an image is a fault."""
    declared = content.get("file_ending")
    endings = sorted({ending(path).lower() for path in (*files, *labels)})
    if declared is None and "channel_names" in content:
        draft.notes.append(f"{NAME}: file_ending is missing; the files end in {few(endings)}")
    if declared is None:
        if len(endings) > 1:
            draft.faults.append(
                f"imagesTr and labelsTr: files that end in {', '.join(endings)}; save all in one format, or name it in "
                f'{NAME}, as in "file_ending": ".nii.gz"'
            )
        return files, labels
    if str(declared).lower() not in READ:
        draft.faults.append(
            f"{NAME}: file_ending is {declared!r}, which is not read; convert the files to NIfTI (.nii.gz), and "
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
        f"{draft.short(path)}: does not end in {declared!r}, the file_ending of {NAME}; save it so, or take it away"
        for path in wrong
    ]
    return [path for path in files if path not in wrong], [path for path in labels if path not in wrong]
