"""What a cohort says of itself: its channels, and the targets that a network has an output for."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from brainseg_jax.errors import InputError

MOST_TARGETS = 16


@dataclasses.dataclass(frozen=True)
class Target:
    """One output of a network.

    Attributes:
      name: as in `tumor`.
      labels: values of the label map that belong to it, one or more, 1 to 255.
    """

    name: str
    labels: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Description:
    """Channels and targets.

    Attributes:
      channels: names, in the order of the last axis of `Volume.voxels`.
      targets: one or more; each is a binary problem of its own, and they may overlap.
      stand_in: the channel whose voxels replace those of a missing one; "" where none may be missing.
      ignore: value of the label map, 1 to 255, whose voxels count in no loss and no score; None where there is none.
      painted: the value of each target in a label map that is made from masks, in the order of the targets: a later one
        is painted over an earlier one. By default the first label of each.
    """

    channels: tuple[str, ...]
    targets: tuple[Target, ...]
    stand_in: str = ""
    ignore: int | None = None
    painted: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Fills in `painted`; raises InputError with everything that is contradictory."""
        if not self.painted:
            object.__setattr__(self, "painted", tuple(target.labels[0] for target in self.targets if target.labels))
        if faults := self._faults():
            raise InputError("; ".join(faults))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the targets."""
        return tuple(target.name for target in self.targets)

    @property
    def exclusive(self) -> bool:
        """Whether no label belongs to two targets."""
        labels = [label for target in self.targets for label in target.labels]
        return len(set(labels)) == len(labels)

    @property
    def painted_over(self) -> tuple[str, ...]:
        """Names of the targets that a label map made of true masks does not give back."""
        labels = np.array(sorted({0, *(label for target in self.targets for label in target.labels)}))
        masks = self.masks(labels)
        wrong = (self.masks(self.label_map(masks)) != masks).any(axis=0)
        return tuple(name for name, is_wrong in zip(self.names, wrong, strict=True) if is_wrong)

    @property
    def nested(self) -> tuple[tuple[int, int], ...]:
        """Pairs (inner, outer) of indices of targets whose labels are a part of the other's; outer ones come first."""
        labels = [set(target.labels) for target in self.targets]
        order = sorted(range(len(labels)), key=lambda index: -len(labels[index]))
        return tuple((inner, outer) for inner in order for outer in order if labels[inner] < labels[outer])

    @property
    def shown(self) -> int:
        """Index of the channel that pictures show: the one that stands in for others, else the last FLAIR, else 0."""
        if self.stand_in:
            return self.channels.index(self.stand_in)
        flair = [i for i, name in enumerate(self.channels) if "flair" in name.lower() or name.lower() == "t2f"]
        return flair[-1] if flair else 0

    def masks(self, labels: np.ndarray) -> np.ndarray:
        """Maps labels [...] to the masks of the targets, [..., K] bool."""
        return np.stack([np.isin(labels, target.labels) for target in self.targets], axis=-1)

    def counted(self, labels: np.ndarray) -> np.ndarray | None:
        """Which voxels of labels [...] count in losses and scores, bool; None where all do."""
        return None if self.ignore is None else labels != self.ignore

    def label_map(self, masks: np.ndarray) -> np.ndarray:
        """Paints masks [..., K] bool in the order of the targets; [...] uint8, 0 is background."""
        labels = np.zeros(masks.shape[:-1], np.uint8)
        for index, value in enumerate(self.painted):
            labels[masks[..., index]] = value
        return labels

    def to_json(self) -> dict:
        """What `from_json` takes."""
        return {
            "channels": list(self.channels),
            "targets": {target.name: list(target.labels) for target in self.targets},
            "stand_in": self.stand_in,
            "ignore": self.ignore,
            "painted": list(self.painted),
        }

    @classmethod
    def from_json(cls, content: dict) -> "Description":
        """The inverse of `to_json`. Raises InputError, KeyError, TypeError or AttributeError for anything else."""
        targets = tuple(Target(name, tuple(labels)) for name, labels in content["targets"].items())
        painted = tuple(content["painted"])
        return cls(tuple(content["channels"]), targets, content["stand_in"], content["ignore"], painted)

    def _faults(self) -> list[str]:
        faults = []
        for what, names in (("channel", self.channels), ("target", self.names)):
            if not names:
                faults.append(f"no {what}")
            faults += [f"{what} {name!r} twice" for name in _repeated(names)]
            faults += [f"a {what} without a name" for name in names if not name]
        if len(self.targets) > MOST_TARGETS:
            faults.append(f"{len(self.targets)} targets; at most {MOST_TARGETS} are possible")
        if self.ignore is not None and not _is_label(self.ignore):
            faults.append(f"label {self.ignore} is to be ignored; give a whole number from 1 to 255")
        for target in self.targets:
            wrong = [label for label in target.labels if not _is_label(label)]
            if wrong or not target.labels:
                found = ", ".join(map(str, wrong)) or "none"
                faults.append(f"target {target.name!r} has labels {found}; give whole numbers from 1 to 255")
            if self.ignore in target.labels:
                faults.append(
                    f"label {self.ignore} is ignored and belongs to target {target.name!r}; it can be one only"
                )
        if self.stand_in and self.stand_in not in self.channels:
            faults.append(f"{self.stand_in!r} is to replace missing channels and is none of {', '.join(self.channels)}")
        if len(self.painted) != len(self.targets):
            faults.append(f"{len(self.painted)} values to paint {len(self.targets)} targets; give one for each")
        return faults


def _is_label(value: object) -> bool:
    return isinstance(value, int) and 1 <= value <= 255


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, group in itertools.groupby(sorted(names)) if len(list(group)) > 1]


LGG = Description(("pre-contrast", "FLAIR", "post-contrast"), (Target("tumor", (1,)),), stand_in="FLAIR")
