"""The targets in two folders of label maps: from `--targets`, from a `dataset.json`, or from the label values."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import Description, Target
from brainseg_jax.scans.masks import Mask, MaskInfo

IGNORE = "ignore"  # not a target: voxels of this label do not count in any score, as in nnU-Net
_BACKGROUND = "background"
_CHANNELS = ("scan",)  # placeholder: there are no scans


@dataclasses.dataclass(frozen=True)
class Naming:
    """Named targets.

    Attributes:
      description: the targets and the ignore label.
      known: labels that a reference mask may contain; None: any.
      source: origin of the names, for messages.
    """

    description: Description
    known: frozenset[int] | None
    source: str


def parse_targets(text: str) -> Naming:
    """Parses `--targets`, for example "whole tumor=1,2,3;enhancing tumor=3;ignore=255".

    Raises:
      InputError: the text is invalid; the message lists all faults.
    """
    labels: dict[str, list[int]] = {}
    faults = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, numbers = (piece.strip() for piece in part.rpartition("="))
        values = [number.strip() for number in numbers.split(",")]
        if not equals or not name or not all(value.isascii() and value.isdigit() for value in values):
            faults.append(f"{part!r} is not NAME=LABEL,LABEL")
        elif name in labels:
            faults.append(f"target {name!r} occurs twice")
        else:
            labels[name] = [int(value) for value in values]
    if faults:
        raise InputError(f"--targets={text}: {'; '.join(faults)}")
    return Naming(_describe(labels, f"--targets={text}"), None, "--targets")


def read_dataset_json(path: Path) -> Naming | None:
    """Reads the labels of nnU-Net's `dataset.json`: name -> label or labels, or label -> name as in MSD.

    Returns:
      the targets; None if the file has no "labels".

    Raises:
      InputError: the file is unreadable or its labels contradict each other; the message contains the path.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = content.get("labels")
        if entries is None:
            return None
        if all(str(key).isdigit() for key in entries):
            entries = {name: int(label) for label, name in entries.items()}
        labels = {
            name: [int(label) for label in (value if isinstance(value, list) else [value])]
            for name, value in entries.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: its labels cannot be read ({error}); correct the file, or give --targets") from error
    known = frozenset(label for values in labels.values() for label in values)
    named = {name: values for name, values in labels.items() if name != _BACKGROUND and values != [0]}
    return Naming(_describe(named, str(path)), known, str(path))


def _describe(labels: Mapping[str, list[int]], source: str) -> Description:
    targets = tuple(Target(name, tuple(values)) for name, values in labels.items() if name.lower() != IGNORE)
    ignored = [value for name, values in labels.items() if name.lower() == IGNORE for value in values]
    if len(ignored) > 1:
        raise InputError(f"{source}: {len(ignored)} ignore labels; give one")
    try:
        return Description(_CHANNELS, targets, ignore=ignored[0] if ignored else None)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def find_naming(truth: Path, text: str) -> Naming | None:
    """Finds the names of the targets: `--targets`, or a `dataset.json` beside or in the folder of the reference masks.

    If `--targets` has no ignore label, that of the `dataset.json` is used.

    Args:
      truth: the folder.
      text: value of `--targets`, may be empty.

    Returns:
      the targets; None if there are no names.

    Raises:
      InputError: see `parse_targets` and `read_dataset_json`.
    """
    named = parse_targets(text) if text else None
    path = next((path for path in (truth / "dataset.json", truth.parent / "dataset.json") if path.is_file()), None)
    if path is None or (named and named.description.ignore is not None):
        return named
    from_file = read_dataset_json(path)
    if from_file is None:
        logging.warning("%s has no labels, so it does not define targets", path)
        return named
    if named is None:
        logging.info("%s defines the targets: %s", path, ", ".join(from_file.description.names))
        return from_file
    ignore = from_file.description.ignore
    if any(ignore in target.labels for target in named.description.targets):
        raise InputError(
            f"label {ignore} is ignored in {path} and a target in --targets={text}; remove it from one of them"
        )
    return dataclasses.replace(named, description=dataclasses.replace(named.description, ignore=ignore))


class Meaning(NamedTuple):
    """The meaning of the labels in two folders.

    Attributes:
      description: the targets.
      as_ones: whether 255 means 1 in a mask without other values.
      faults: labels that belong to no target, with their files.
    """

    description: Description
    as_ones: bool
    faults: list[str]

    def labels_of(self, mask: Mask, info: MaskInfo) -> np.ndarray:
        """Returns the labels of a mask, [S, H, W] uint8, as in the description; `info` as given to `describe_masks`."""
        return (mask.labels > 0).astype(np.uint8) if self.as_ones and info.values == (255,) else mask.labels


def describe_masks(true: Mapping[str, MaskInfo], predicted: Mapping[str, MaskInfo], naming: Naming | None) -> Meaning:
    """Determines the targets, and lists labels that belong to none.

    Masks with values 0 and 255 count as 0 and 1 if 1 is the only known label.

    Args:
      true: case -> info of the reference mask.
      predicted: case -> info of the predicted mask.
      naming: None: the labels of the reference masks are the targets. A single value is "tumor"; several are "label 1",
        "label 2".
    """
    reference_values = _values(true)
    faults: list[str] = []
    if naming:
        description = naming.description
        known = naming.known or frozenset(label for target in description.targets for label in target.labels)
    elif all(mask.values in ((), (1,), (255,)) for mask in true.values()):
        description, known = Description(_CHANNELS, (Target("tumor", (1,)),)), frozenset({1})
    else:
        description, known = _describe_values(reference_values, true, faults), frozenset(reference_values)
    if as_ones := known <= {0, 1}:
        true, predicted = ({case: _as_ones(mask) for case, mask in masks.items()} for masks in (true, predicted))
    if naming and naming.known is None:
        known |= frozenset(_values(true))
    ignored = frozenset() if description.ignore is None else {description.ignore}
    faults += _unknown(true, known | ignored, f"is not a label of {naming.source}" if naming else "")
    listed = ", ".join(map(str, sorted(known - ignored - {0}))) or "none"
    faults += _unknown(predicted, known - ignored, f"is not a label of the reference masks ({listed})")
    return Meaning(description, as_ones, faults)


def _values(masks: Mapping[str, MaskInfo]) -> list[int]:
    return sorted({value for mask in masks.values() for value in mask.values})


def _describe_values(values: list[int], true: Mapping[str, MaskInfo], faults: list[str]) -> Description:
    """Creates a target for each label. 255 next to other labels may mean "ignore", so it needs a name."""
    if 255 in values:
        files = [str(mask.first_files[255]) for mask in true.values() if 255 in mask.values]
        faults.append(
            f"{files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''}: value 255 next to labels "
            f"{', '.join(str(value) for value in values if value != 255)}; name all with --targets, for example "
            "--targets='first=1;second=2;ignore=255'"
        )
    try:
        return Description(_CHANNELS, tuple(Target(f"label {value}", (value,)) for value in values))
    except InputError as error:
        raise InputError(f"labels of the reference masks: {error}; name those that count with --targets") from None


def _as_ones(mask: MaskInfo) -> MaskInfo:
    if mask.values != (255,):
        return mask
    return dataclasses.replace(mask, first_files={1: mask.first_files[255]})


def _unknown(masks: Mapping[str, MaskInfo], known: frozenset[int], reason: str) -> list[str]:
    return [
        f"{path}: value {value} {reason}; correct the mask, or name the label with --targets"
        for mask in masks.values()
        for value, path in mask.first_files.items()
        if value not in known
    ]
