"""The description of a cohort: its channels, and the targets that a network predicts."""

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
      name: for example `tumor`.
      labels: label values that belong to it; one or more, from 1 to 255.
    """

    name: str
    labels: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Description:
    """Channels and targets.

    Attributes:
      channels: names, in the order of the last axis of `Volume.voxels`.
      targets: one or more. Each is a separate binary problem, and they may overlap.
      stand_in: the channel that replaces missing channels; "" if no channel may be missing.
      ignore: label value from 1 to 255. Its voxels count in no loss and no score. None if there is no such value.
      painted: one value per target, in the order of the targets. `label_map` paints each mask with its value, a later
        target over an earlier one. The default is the first label of each target.
    """

    channels: tuple[str, ...]
    targets: tuple[Target, ...]
    stand_in: str = ""
    ignore: int | None = None
    painted: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Fills in `painted`; raises InputError that lists all contradictions."""
        if not self.painted:
            object.__setattr__(self, "painted", tuple(target.labels[0] for target in self.targets if target.labels))
        if faults := self._faults():
            raise InputError("; ".join(faults))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the targets."""
        return tuple(target.name for target in self.targets)

    @property
    def exclusive(self) -> bool:
        """Whether each label belongs to one target only."""
        labels = [label for target in self.targets for label in target.labels]
        return len(set(labels)) == len(labels)

    @property
    def painted_over(self) -> tuple[str, ...]:
        """Names of the targets that `label_map` hides in part, so that `masks` cannot recover them."""
        labels = np.array(sorted({0, *(label for target in self.targets for label in target.labels)}))
        masks = self.masks(labels)
        wrong = (self.masks(self.label_map(masks)) != masks).any(axis=0)
        return tuple(name for name, is_wrong in zip(self.names, wrong, strict=True) if is_wrong)

    @property
    def nested(self) -> tuple[tuple[int, int], ...]:
        """Index pairs (inner, outer) where the labels of `inner` are a proper subset of those of `outer`.

        Pairs with the larger inner target come first.
        """
        labels = [set(target.labels) for target in self.targets]
        order = sorted(range(len(labels)), key=lambda index: -len(labels[index]))
        return tuple((inner, outer) for inner in order for outer in order if labels[inner] < labels[outer])

    @property
    def shown(self) -> int:
        """Index of the channel that pictures show: `stand_in`, else the last FLAIR channel, else 0."""
        if self.stand_in:
            return self.channels.index(self.stand_in)
        flair = [i for i, name in enumerate(self.channels) if "flair" in name.lower() or name.lower() == "t2f"]
        return flair[-1] if flair else 0

    def masks(self, labels: np.ndarray) -> np.ndarray:
        """Maps labels [...] to the masks of the targets, [..., K] bool."""
        return np.stack([np.isin(labels, target.labels) for target in self.targets], axis=-1)

    def counted(self, labels: np.ndarray) -> np.ndarray | None:
        """Maps labels [...] to bool [...]: True for voxels that count in losses and scores; None if all count."""
        return None if self.ignore is None else labels != self.ignore

    def label_map(self, masks: np.ndarray) -> np.ndarray:
        """Paints masks [..., K] bool in the order of the targets into labels [...] uint8; 0 is background."""
        labels = np.zeros(masks.shape[:-1], np.uint8)
        for index, value in enumerate(self.painted):
            labels[masks[..., index]] = value
        return labels

    def to_json(self) -> dict:
        """A dict for JSON; see `from_json`."""
        return {
            "channels": list(self.channels),
            "targets": {target.name: list(target.labels) for target in self.targets},
            "stand_in": self.stand_in,
            "ignore": self.ignore,
            "painted": list(self.painted),
        }

    @classmethod
    def from_json(cls, content: dict) -> "Description":
        """The inverse of `to_json`. Raises InputError, KeyError, TypeError or AttributeError for invalid content."""
        targets = tuple(Target(name, tuple(labels)) for name, labels in content["targets"].items())
        painted = tuple(content["painted"])
        return cls(tuple(content["channels"]), targets, content["stand_in"], content["ignore"], painted)

    def _faults(self) -> list[str]:
        faults = []
        for kind, names in (("channel", self.channels), ("target", self.names)):
            if not names:
                faults.append(f"no {kind}")
            faults += [f"{kind} {name!r} twice" for name in _repeated(names)]
            faults += [f"a {kind} without a name" for name in names if not name]
        if len(self.targets) > MOST_TARGETS:
            faults.append(f"{len(self.targets)} targets; at most {MOST_TARGETS} are possible")
        if self.ignore is not None and not _is_label(self.ignore):
            faults.append(f"ignored label {self.ignore}; give a whole number from 1 to 255")
        for target in self.targets:
            wrong = [label for label in target.labels if not _is_label(label)]
            if wrong or not target.labels:
                listed = ", ".join(map(str, wrong)) or "none"
                faults.append(f"target {target.name!r} has labels {listed}; give whole numbers from 1 to 255")
            if self.ignore in target.labels:
                faults.append(
                    f"label {self.ignore} is both ignored and a label of target {target.name!r}; remove it from one"
                )
        if self.stand_in and self.stand_in not in self.channels:
            faults.append(
                f"{self.stand_in!r} cannot replace missing channels: it is none of {', '.join(self.channels)}"
            )
        if len(self.painted) != len(self.targets):
            faults.append(f"{len(self.painted)} label values for {len(self.targets)} targets; give one for each")
        return faults


def _is_label(value: object) -> bool:
    return isinstance(value, int) and 1 <= value <= 255


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, group in itertools.groupby(sorted(names)) if len(list(group)) > 1]


LGG = Description(("pre-contrast", "FLAIR", "post-contrast"), (Target("tumor", (1,)),), stand_in="FLAIR")
