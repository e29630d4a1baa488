"""What every kind of scan is read into, and what each kind promises."""

import abc
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import Description
from brainseg_jax.scans.volume import Volume

MASK, PROBABILITY, UNCERTAINTY = "pred", "probability", "uncertainty"  # ends of the names of what is written
STAND_IN = "taken as FLAIR, which stands in for pre- and post-contrast"
ONE_SLICE = "a single slice: its normalization rests on this slice alone, a whole volume is more reliable"


@dataclasses.dataclass(frozen=True, eq=False)
class Scan(Volume, abc.ABC):
    """A volume that was read from files of a user, and can be answered in files of the same kind.

    Attributes:
      notes: what a user must know of how the files were read.
      flags: in what it is unlike the training scans, in words; None where it was not compared with them.
    """

    notes: tuple[str, ...]
    flags: tuple[str, ...] | None = dataclasses.field(default=None, kw_only=True)

    @abc.abstractmethod
    def write(
        self,
        kind: str,
        values: np.ndarray,
        paths: list[Path],
        description: Description,
        words: Sequence[str] = (),
    ) -> str | None:
        """Writes a result on the input's own grid, in files of the input's kind.

        Masks of one target are written as a mask, those of several as a label map or as segments.

        Args:
          kind: `MASK`, `PROBABILITY` or `UNCERTAINTY`.
          values: [S, H, W, K], a target along the last axis; bool for masks, else float32.
          paths: as many as `Source.outputs` names, in the same order.
          description: of the network, whose targets these are.
          words: what is known of the mask of each target, for files that have room for it; may be left out.

        Returns:
          None, or a note where it had to be written as another file.

        Raises:
          OSError: a file cannot be written.
        """


@dataclasses.dataclass(frozen=True)
class Source(abc.ABC):
    """Where a scan lies; nothing is opened before `read`.

    Attributes:
      name: of the case, unlike that of any other: where two are named alike it begins with the folder.
      place: folder of the files, below the folder that was given.
      notes: what the search says of this case; `read` puts it in front of the scan's notes.
      channels: what was found for each, in words, for a user to see before anything is read.
    """

    name: str
    place: Path
    notes: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    channels: Mapping[str, str] = dataclasses.field(default_factory=dict, kw_only=True)

    @property
    def stem(self) -> str:
        """The name without a folder, with which the names of results begin."""
        return Path(self.name).name

    @property
    @abc.abstractmethod
    def paths(self) -> tuple[Path, ...]:
        """The files that are read."""

    @abc.abstractmethod
    def read(self) -> Scan:
        """Reads the scan.

        Raises:
          InputError: its files cannot be used; the message names them.
        """

    @abc.abstractmethod
    def outputs(self, kind: str, description: Description) -> list[Path]:
        """The files that a result of this kind goes to, below the folder for results.

        Args:
          kind: `MASK`, `PROBABILITY` or `UNCERTAINTY`.
          description: of the network.
        """


@dataclasses.dataclass(frozen=True)
class Refused(Source):
    """A case that cannot be read, for what its names or headers tell; it stops no other.

    Attributes:
      fault: why, and what to do.
    """

    fault: str

    @property
    def paths(self) -> tuple[Path, ...]:
        """None."""
        return ()

    def read(self) -> Scan:
        """Raises InputError."""
        raise InputError(self.fault)

    def outputs(self, kind: str, description: Description) -> list[Path]:
        """None."""
        return []


def file_words(description: Description) -> tuple[str, ...]:
    """A word for each target that can stand in the name of a file; no two are alike, also where case does not count."""
    words = tuple(re.sub(r"[^\w-]+", "_", name).strip("_") or "target" for name in description.names)
    if len({word.casefold() for word in words}) < len(words):
        words = tuple(f"{number}_{word}" for number, word in enumerate(words, start=1))
    return words
