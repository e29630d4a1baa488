"""Reads `dataset.json` of nnU-Net and of the Medical Segmentation Decathlon, which differ in its content."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brainseg_jax.data.formats.listing import Draft, few
from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import Target
from brainseg_jax.scans.untrusted import read_bounded

NAME = "dataset.json"


def read_json(path: Path) -> object:
    """Reads a JSON file.

    Raises:
      InputError: the file is unreadable, not valid JSON, or has a key twice; the message names the file.
    """
    try:
        return json.loads(read_bounded(path).decode("utf-8-sig"), object_pairs_hook=_without_repeats)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); correct the file, or get a new copy") from error


def read_dataset_json(root: Path) -> dict:
    """The content of `dataset.json`; raises InputError if it is not a JSON object."""
    content = read_json(root / NAME)
    if not isinstance(content, dict):
        raise InputError(f"{root / NAME}: contains a {type(content).__name__}; it must be an object {{...}}")
    return content


def read_channels(content: dict, draft: Draft) -> None:
    """Fills in the channels from `channel_names`, or from `modality` of the older format; adds faults to the draft."""
    key = "channel_names" if "channel_names" in content else "modality"
    channels = content.get(key)
    if isinstance(channels, list) and channels and all(isinstance(name, str) for name in channels):
        channels = {str(index): name for index, name in enumerate(channels)}
    if not isinstance(channels, dict) or not channels or not all(isinstance(name, str) for name in channels.values()):
        problem = "is missing" if channels is None else f"is {_short(channels)}"
        draft.faults.append(f'{NAME}: channel_names {problem}; name the channels, as in {{"0": "T1", "1": "FLAIR"}}')
        return
    if set(channels) != {str(index) for index in range(len(channels))}:
        draft.faults.append(f"{NAME}: {key} has the keys {few(channels, 8)}; number the channels from 0 without a gap")
        return
    names = [channels[str(index)] for index in range(len(channels))]
    if len(set(names)) < len(names):  # in some tasks of the Decathlon all channels are named "MRI"
        names = [f"{name} {index}" if names.count(name) > 1 else name for index, name in enumerate(names)]
        draft.notes.append(f"{NAME}: {key} has a name twice; the channels are renamed to {', '.join(names)}")
    draft.channels = tuple(names)


def read_labels(content: dict, draft: Draft, *, numbers_first: bool) -> None:
    """Fills in targets, paint order and the ignored label; adds faults to the draft.

    Args:
      content: of the file. Both {"tumor": 1} and {"1": "tumor"} are valid for `labels`.
      draft: receives the result.
      numbers_first: whether {"1": "tumor"} is usual in this format; a note reports the other form.
    """
    labels = _by_name(content.get("labels"), draft, numbers_first)
    if labels is None:
        return
    faults = draft.faults
    for name in [name for name, values in labels.items() if name.lower() == "ignore"]:
        values = labels.pop(name)
        if len(values) != 1:
            faults.append(f"{NAME}: the label {name!r} has {len(values)} values; give one")
        draft.ignore = values[0]
    background = [name for name, values in labels.items() if 0 in values]
    if not background:
        faults.append(f'{NAME}: labels have no background; add "background": 0')
    for name in background:
        if labels.pop(name) != [0]:
            faults.append(f"{NAME}: the label {name!r} contains 0, the background, and others; remove the 0")
    _check_consecutive(labels, draft)
    draft.targets = tuple(Target(name, tuple(values)) for name, values in labels.items())
    if not labels:
        faults.append(f'{NAME}: labels name only the background; add a label, as in "tumor": 1')
    _read_order(content, labels, draft)


def check_count(content: dict, draft: Draft, count: int, where: str) -> None:
    """Adds a fault if `numTraining` is not the number of cases."""
    declared = content.get("numTraining")
    if declared is not None and declared != count:
        draft.faults.append(
            f"{NAME}: numTraining is {_short(declared)}, but {where} has {count} cases; restore missing files, or "
            "correct the number"
        )


def folder_files(draft: Draft, folder: str, keep: Callable[[Path], bool], reason: str) -> list[Path]:
    """The visible files of a folder for which `keep` is true; passes over the others with the given reason."""
    full_path = draft.root / folder
    if not full_path.is_dir():
        draft.faults.append(f"{folder}: no such folder; it must be beside {NAME}")
        return []
    files = []
    for path in sorted(full_path.iterdir()):
        if path.name.startswith("."):
            draft.passed_over["a hidden or system file"].append(path)
        elif path.is_file() and keep(path):
            files.append(path)
        else:
            draft.passed_over[reason].append(path)
    return files


def pass_over_tests(draft: Draft) -> None:
    """Passes over the folders of test images."""
    for folder in ("imagesTs", "labelsTs"):
        if (draft.root / folder).is_dir():
            draft.passed_over["test images, not used in training; give them to predict"].append(draft.root / folder)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return content


def _by_name(labels: object, draft: Draft, numbers_first: bool) -> dict[str, list[int]] | None:
    """Label values by name; None, with a fault, if `labels` is invalid."""
    if not isinstance(labels, dict) or not labels:
        problem = "is missing" if labels is None else f"is {_short(labels)}"
        draft.faults.append(f'{NAME}: labels {problem}; give an object, as in {{"background": 0, "tumor": 1}}')
        return None
    numbers = [key for key, value in labels.items() if key.isdecimal() and isinstance(value, str)]
    if numbers and len(numbers) < len(labels):
        draft.faults.append(
            f"{NAME}: labels mix {numbers[0]!r}: {labels[numbers[0]]!r} with name: value; write name: value for all"
        )
        return None
    if bool(numbers) != numbers_first:
        draft.notes.append(
            f"{NAME}: labels are given as {'value: name' if numbers else 'name: value'}, which is unusual "
            f"in {draft.kind}, but valid"
        )
    if numbers:
        if len(set(labels.values())) < len(labels):
            draft.faults.append(f"{NAME}: labels have a name twice: {few(labels.values(), 8)}; use distinct names")
            return None
        labels = {name: value for value, name in labels.items()}
    result = {name: _whole(values) for name, values in labels.items()}
    if wrong := [name for name, values in result.items() if values is None]:
        draft.faults += [
            f"{NAME}: label {name!r} is {_short(labels[name])}; give a whole number from 0 to 255, or a list of them"
            for name in wrong
        ]
        return None
    return {name: values for name, values in result.items() if values is not None}


def _whole(values: Any) -> list[int] | None:
    values = values if isinstance(values, list) else [values]
    whole = [
        int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 4 else value for value in values
    ]
    valid = whole and all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255 for value in whole
    )
    return list(dict.fromkeys(whole)) if valid else None


def _check_consecutive(labels: dict[str, list[int]], draft: Draft) -> None:
    ignored = set() if draft.ignore is None else {draft.ignore}
    values = sorted({value for group in labels.values() for value in group if value} | ignored)
    without_ignored = [value for value in values if value != draft.ignore]
    if without_ignored != list(range(1, len(without_ignored) + 1)) and values != list(range(1, len(values) + 1)):
        draft.faults.append(
            f"{NAME}: label values {few(values, 8)} are not consecutive; number them from 1 without a gap, also in the "
            "label maps"
        )


def _read_order(content: dict, labels: dict[str, list[int]], draft: Draft) -> None:
    order = content.get("regions_class_order")
    if not any(len(values) > 1 for values in labels.values()):
        if order is not None:
            draft.notes.append(f"{NAME}: regions_class_order has no effect, since no label is a region")
        return
    if order is None:
        draft.faults.append(
            f"{NAME}: labels are regions, but regions_class_order is missing; give the value to paint for each of "
            f"{few(labels, 8)}, in this order; a later one is painted over an earlier one"
        )
        return
    declared = {value for values in labels.values() for value in values}
    if (
        not isinstance(order, list)
        or len(order) != len(labels)
        or any(type(value) is not int or value not in declared for value in order)
    ):
        draft.faults.append(
            f"{NAME}: regions_class_order is {_short(order)}; give {len(labels)} values, one for each of "
            f"{few(labels, 8)}, out of {few(sorted(declared), 8)}"
        )
        return
    draft.painted = tuple(order)


def _short(value: object) -> str:
    words = json.dumps(value)
    return words if len(words) <= 60 else f"{words[:57]}..."
