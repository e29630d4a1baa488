"""Which targets two folders of label maps hold: named by a user, by a `dataset.json`, or by their values."""

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

IGNORE = "ignore"  # a target of this name is no target: its label counts in no score, as in nnU-Net
_BACKGROUND = "background"
_CHANNELS = ("scan",)  # there is none


@dataclasses.dataclass(frozen=True)
class Naming:
    """Targets by name, as somebody gave them.

    Attributes:
      description: the targets and the ignore label.
      known: labels that a reference mask may hold; None: any.
      source: who named them, in words.
    """

    description: Description
    known: frozenset[int] | None
    source: str


def parse_targets(text: str) -> Naming:
    """Reads `--targets`, as in "whole tumor=1,2,3;enhancing tumor=3;ignore=255".

    Raises:
      InputError: it cannot be read; the message holds all faults.
    """
    labels: dict[str, object] = {}
    faults = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, numbers = (piece.strip() for piece in part.rpartition("="))
        values = [number.strip() for number in numbers.split(",")]
        if not equals or not name or not all(value.isascii() and value.isdigit() for value in values):
            faults.append(f"{part!r} is not NAME=LABEL,LABEL")
        elif name in labels:
            faults.append(f"target {name!r} twice")
        else:
            labels[name] = [int(value) for value in values]
    if faults:
        raise InputError(f"--targets={text}: {'; '.join(faults)}")
    return Naming(_describe(labels, f"--targets={text}"), None, "--targets")


def read_dataset_json(path: Path) -> Naming | None:
    """Reads the labels of nnU-Net's `dataset.json`: name -> label or labels, or the other way round, as in MSD.

    Returns:
      the targets; None where the file has no "labels".

    Raises:
      InputError: it cannot be read, or its labels are contradictory; the message names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content.get("labels")
        if found is None:
            return None
        if all(str(key).isdigit() for key in found):
            found = {name: int(label) for label, name in found.items()}
        labels = {
            name: [int(label) for label in (value if isinstance(value, list) else [value])]
            for name, value in found.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: its labels cannot be read ({error}); correct it, or give --targets") from error
    known = frozenset(label for values in labels.values() for label in values)
    named = {name: values for name, values in labels.items() if name != _BACKGROUND and values != [0]}
    return Naming(_describe(named, str(path)), known, str(path))


def _describe(labels: Mapping[str, list[int]], source: str) -> Description:
    targets = tuple(Target(name, tuple(values)) for name, values in labels.items() if name.lower() != IGNORE)
    ignored = [value for name, values in labels.items() if name.lower() == IGNORE for value in values]
    if len(ignored) > 1:
        raise InputError(f"{source}: {len(ignored)} labels to ignore; give one")
    try:
        return Description(_CHANNELS, targets, ignore=ignored[0] if ignored else None)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def find_naming(truth: Path, text: str) -> Naming | None:
    """Who names the targets: `--targets`, or a `dataset.json` in the folder of the reference masks or beside it.

    The ignore label of a `dataset.json` holds beside `--targets` that name none.

    Args:
      truth: the folder.
      text: of `--targets`, may be empty.

    Returns:
      the targets; None where nobody names them.

    Raises:
      InputError: see `parse_targets` and `read_dataset_json`.
    """
    named = parse_targets(text) if text else None
    path = next((path for path in (truth / "dataset.json", truth.parent / "dataset.json") if path.is_file()), None)
    if path is None or (named and named.description.ignore is not None):
        return named
    of_file = read_dataset_json(path)
    if of_file is None:
        logging.warning("%s: it has no labels, so it does not name the targets", path)
        return named
    if named is None:
        logging.info("%s names the targets: %s", path, ", ".join(of_file.description.names))
        return of_file
    ignore = of_file.description.ignore
    if any(ignore in target.labels for target in named.description.targets):
        raise InputError(f"{path} says that label {ignore} is ignored, and --targets={text} has it; take it out of one")
    return dataclasses.replace(named, description=dataclasses.replace(named.description, ignore=ignore))


class Meaning(NamedTuple):
    """What the labels of two folders mean.

    Attributes:
      description: the targets.
      as_ones: whether 255 means 1 in a mask that holds no other value.
      faults: labels that belong to no target, each with its file.
    """

    description: Description
    as_ones: bool
    faults: list[str]

    def labels_of(self, mask: Mask, info: MaskInfo) -> np.ndarray:
        """The labels of a mask, [S, H, W] uint8, as the description knows them; `info` is what `describe_masks` got."""
        return (mask.labels > 0).astype(np.uint8) if self.as_ones and info.values == (255,) else mask.labels


def describe_masks(true: Mapping[str, MaskInfo], predicted: Mapping[str, MaskInfo], naming: Naming | None) -> Meaning:
    """Decides on the targets, and looks for labels that do not belong to one.

    Masks of 0 and 255 count as masks of 0 and 1 where label 1 is the only one that is known.

    Args:
      true: of the reference masks, by case.
      predicted: of the predicted masks, by case.
      naming: None: the labels of the reference masks are the targets. Those of masks of one value are "tumor", else
        "label 1", "label 2".
    """
    of_truth = _values(true)
    faults: list[str] = []
    if naming:
        description = naming.description
        known = naming.known or frozenset(label for target in description.targets for label in target.labels)
    elif all(mask.values in ((), (1,), (255,)) for mask in true.values()):
        description, known = Description(_CHANNELS, (Target("tumor", (1,)),)), frozenset({1})
    else:
        description, known = _of_values(of_truth, true, faults), frozenset(of_truth)
    if as_ones := known <= {0, 1}:
        true, predicted = ({case: _as_ones(mask) for case, mask in masks.items()} for masks in (true, predicted))
    if naming and naming.known is None:
        known |= frozenset(_values(true))
    ignored = frozenset() if description.ignore is None else {description.ignore}
    faults += _unknown(true, known | ignored, f"none of the labels of {naming.source}" if naming else "")
    others = ", ".join(map(str, sorted(known - ignored - {0}))) or "none"
    faults += _unknown(predicted, known - ignored, f"none of the labels of the reference masks ({others})")
    return Meaning(description, as_ones, faults)


def _values(masks: Mapping[str, MaskInfo]) -> list[int]:
    return sorted({value for mask in masks.values() for value in mask.values})


def _of_values(values: list[int], true: Mapping[str, MaskInfo], faults: list[str]) -> Description:
    """A target for each label; 255 beside others may mean that it is ignored, so it has to be named."""
    if 255 in values:
        files = [str(mask.first_files[255]) for mask in true.values() if 255 in mask.values]
        faults.append(
            f"{files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''}: value 255 beside labels "
            f"{', '.join(str(value) for value in values if value != 255)}; name all by --targets, as in "
            "--targets='first=1;second=2;ignore=255'"
        )
    try:
        return Description(_CHANNELS, tuple(Target(f"label {value}", (value,)) for value in values))
    except InputError as error:
        raise InputError(f"the reference masks hold {error}; name those that count by --targets") from None


def _as_ones(mask: MaskInfo) -> MaskInfo:
    if mask.values != (255,):
        return mask
    return dataclasses.replace(mask, first_files={1: mask.first_files[255]})


def _unknown(masks: Mapping[str, MaskInfo], known: frozenset[int], words: str) -> list[str]:
    return [
        f"{path}: value {value}, {words}; correct it, or name it by --targets"
        for mask in masks.values()
        for value, path in mask.first_files.items()
        if value not in known
    ]
