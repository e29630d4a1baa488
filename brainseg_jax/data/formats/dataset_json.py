"""Reads `dataset.json`, which nnU-Net and the Medical Segmentation Decathlon write each in their own way."""

import json
from collections.abc import Callable
from pathlib import Path

from brainseg_jax.data.formats.listing import Draft, few
from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import Target
from brainseg_jax.scans.untrusted import read_bounded

NAME = "dataset.json"


def read_json(path: Path) -> object:
    """Reads a JSON file.

    Raises:
      InputError: it cannot be read, is no JSON, or has a key twice; the message names the file.
    """
    try:
        return json.loads(read_bounded(path).decode("utf-8-sig"), object_pairs_hook=_without_repeats)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); correct the file, or get a new copy") from error


def read_dataset_json(root: Path) -> dict:
    """The content of `dataset.json`; raises InputError where it is no JSON object."""
    content = read_json(root / NAME)
    if not isinstance(content, dict):
        raise InputError(f"{root / NAME}: holds a {type(content).__name__}; it must be an object {{...}}")
    return content


def read_channels(content: dict, draft: Draft) -> None:
    """Fills in the channels from `channel_names`, or `modality` of the older json; faults go to the draft."""
    key = "channel_names" if "channel_names" in content else "modality"
    channels = content.get(key)
    if isinstance(channels, list) and channels and all(isinstance(name, str) for name in channels):
        channels = {str(index): name for index, name in enumerate(channels)}
    if not isinstance(channels, dict) or not channels or not all(isinstance(one, str) for one in channels.values()):
        found = "is missing" if channels is None else f"is {_short(channels)}"
        draft.faults.append(f'{NAME}: channel_names {found}; name the channels, as in {{"0": "T1", "1": "FLAIR"}}')
        return
    if set(channels) != {str(index) for index in range(len(channels))}:
        draft.faults.append(f"{NAME}: {key} has the keys {few(channels, 8)}; number the channels from 0 without a gap")
        return
    names = [channels[str(index)] for index in range(len(channels))]
    if len(set(names)) < len(names):  # several channels of the Decathlon are all "MRI"
        names = [f"{name} {index}" if names.count(name) > 1 else name for index, name in enumerate(names)]
        draft.notes.append(f"{NAME}: {key} has a name twice; the channels are called {', '.join(names)}")
    draft.channels = tuple(names)


def read_labels(content: dict, draft: Draft, *, numbers_first: bool) -> None:
    """Fills in targets, order of painting and the ignored label; faults go to the draft.

    Args:
      content: of the file. `labels` is understood both ways round: {"tumor": 1} and {"1": "tumor"}.
      draft: takes what is found.
      numbers_first: whether {"1": "tumor"} is the usual way round in this format; the other one is noted.
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
        faults.append(f'{NAME}: labels name no background; add "background": 0')
    for name in background:
        if labels.pop(name) != [0]:
            faults.append(f"{NAME}: the label {name!r} holds 0, the background, and others; leave the 0 out")
    _check_consecutive(labels, draft)
    draft.targets = tuple(Target(name, tuple(values)) for name, values in labels.items())
    if not labels:
        faults.append(f'{NAME}: labels name nothing but the background; add a label, as in "tumor": 1')
    _read_order(content, labels, draft)


def check_count(content: dict, draft: Draft, found: int, where: str) -> None:
    """Compares `numTraining` with the files."""
    declared = content.get("numTraining")
    if declared is not None and declared != found:
        draft.faults.append(
            f"{NAME}: numTraining is {_short(declared)}, but {where} has {found} cases; restore what is missing, or "
            "correct the number"
        )


def folder_files(draft: Draft, folder: str, keep: Callable[[Path], bool], reason: str) -> list[Path]:
    """The visible files of a folder that `keep` takes; the others are passed over for a reason."""
    place = draft.root / folder
    if not place.is_dir():
        draft.faults.append(f"{folder}: no such folder; it must be beside {NAME}")
        return []
    files = []
    for path in sorted(place.iterdir()):
        if path.name.startswith("."):
            draft.passed_over["hidden, or left behind by an operating system"].append(path)
        elif path.is_file() and keep(path):
            files.append(path)
        else:
            draft.passed_over[reason].append(path)
    return files


def pass_over_tests(draft: Draft) -> None:
    """Lists the folders of test images."""
    for folder in ("imagesTs", "labelsTs"):
        if (draft.root / folder).is_dir():
            draft.passed_over["images without a part in training; predict takes them"].append(draft.root / folder)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return content


def _by_name(labels: object, draft: Draft, numbers_first: bool) -> dict[str, list[int]] | None:
    """Values by name; None where that cannot be understood."""
    if not isinstance(labels, dict) or not labels:
        found = "is missing" if labels is None else f"is {_short(labels)}"
        draft.faults.append(f'{NAME}: labels {found}; give an object, as in {{"background": 0, "tumor": 1}}')
        return None
    turned = [key for key, value in labels.items() if key.isdecimal() and isinstance(value, str)]
    if turned and len(turned) < len(labels):
        draft.faults.append(
            f"{NAME}: labels mix {turned[0]!r}: {labels[turned[0]]!r} with the other way round; write name: "
            "value for all"
        )
        return None
    if bool(turned) != numbers_first:
        draft.notes.append(
            f"{NAME}: labels are given as {'value: name' if turned else 'name: value'}, the other way round than usual "
            f"in {draft.kind}; understood"
        )
    if turned:
        if len(set(labels.values())) < len(labels):
            draft.faults.append(f"{NAME}: labels have a name twice: {few(labels.values(), 8)}; give each its own")
            return None
        labels = {name: value for value, name in labels.items()}
    found = {name: _whole(values) for name, values in labels.items()}
    if wrong := [name for name, values in found.items() if values is None]:
        draft.faults += [
            f"{NAME}: label {name!r} is {_short(labels[name])}; give a whole number from 0 to 255, or a list of them"
            for name in wrong
        ]
        return None
    return found


def _whole(values: object) -> list[int] | None:
    values = values if isinstance(values, list) else [values]
    whole = [int(one) if isinstance(one, str) and one.isdecimal() and len(one) < 4 else one for one in values]
    valid = whole and all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one <= 255 for one in whole)
    return list(dict.fromkeys(whole)) if valid else None


def _check_consecutive(labels: dict[str, list[int]], draft: Draft) -> None:
    values = sorted({value for group in labels.values() for value in group if value} | {draft.ignore} - {None})
    ignored_apart = [value for value in values if value != draft.ignore]
    if ignored_apart != list(range(1, len(ignored_apart) + 1)) and values != list(range(1, len(values) + 1)):
        draft.faults.append(
            f"{NAME}: label values {few(values, 8)} are not consecutive; number them from 1 without a gap, in the "
            "files too"
        )


def _read_order(content: dict, labels: dict[str, list[int]], draft: Draft) -> None:
    order = content.get("regions_class_order")
    if not any(len(values) > 1 for values in labels.values()):
        if order is not None:
            draft.notes.append(f"{NAME}: regions_class_order has no effect, since no label is a region")
        return
    if order is None:
        draft.faults.append(
            f"{NAME}: labels are regions, but regions_class_order is missing; give the value that is written for each "
            f"of {few(labels, 8)}, in this order; a later one is painted over an earlier one"
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
