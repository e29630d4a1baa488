"""The base classes of scans and of their sources."""

import abc
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import Description
from brainseg_jax.scans.volume import Volume

MASK, PROBABILITY, UNCERTAINTY = "pred", "probability", "uncertainty"  # kinds of results; the names of files end so
STAND_IN = "used as FLAIR; the missing pre- and post-contrast sequences are replaced by FLAIR"
ONE_SLICE = "a single slice, so its normalization uses this slice alone; a whole volume is more reliable"


@dataclasses.dataclass(frozen=True, eq=False)
class Scan(Volume, abc.ABC):
    """A volume from files of a user; it writes results as files of the same kind.

    Attributes:
      notes: what a user must know about the files.
      flags: how the scan differs from the training scans, in words; None if it was not compared.
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
        """Writes a result on the grid of the input, in files of the same kind.

        One target gives a mask, several give a label map or segments.

        Args:
          kind: `MASK`, `PROBABILITY` or `UNCERTAINTY`.
          values: [S, H, W, K], one target per index of the last axis; bool for masks, else float32.
          paths: those of `Source.outputs`, in the same order.
          description: of the network, with the K targets.
          words: one text per target on its mask, for formats that can store it; may be empty.

        Returns:
          None, or a note if the result is in another file than `paths`.

        Raises:
          OSError: a file cannot be written.
        """


@dataclasses.dataclass(frozen=True)
class Source(abc.ABC):
    """The files of a scan; opens none before `read`.

    Attributes:
      name: unique name of the case; it begins with the folder if several cases have the same name.
      folder: folder of the files, relative to the input folder.
      notes: notes of the search; `read` puts them before the notes of the scan.
      channels: a short description of the files of each channel, for tables.
    """

    name: str
    folder: Path
    notes: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    channels: Mapping[str, str] = dataclasses.field(default_factory=dict, kw_only=True)

    @property
    def stem(self) -> str:
        """The name without the folder; names of results begin with it."""
        return Path(self.name).name

    @property
    @abc.abstractmethod
    def paths(self) -> tuple[Path, ...]:
        """The files that `read` reads."""

    @abc.abstractmethod
    def read(self) -> Scan:
        """Reads the scan.

        Raises:
          InputError: the files cannot be used; the message names them.
        """

    @abc.abstractmethod
    def outputs(self, kind: str, description: Description) -> list[Path]:
        """The files of a result, relative to the output folder.

        Args:
          kind: `MASK`, `PROBABILITY` or `UNCERTAINTY`.
          description: of the network.
        """


@dataclasses.dataclass(frozen=True)
class Refused(Source):
    """A case that names or headers show to be unusable; other cases are still read.

    Attributes:
      fault: the reason and the remedy.
    """

    fault: str

    @property
    def paths(self) -> tuple[Path, ...]:
        """Empty."""
        return ()

    def read(self) -> Scan:
        """Raises InputError with the fault."""
        raise InputError(self.fault)

    def outputs(self, kind: str, description: Description) -> list[Path]:
        """Empty."""
        return []


def file_words(description: Description) -> tuple[str, ...]:
    """A word per target for the names of files; unique even on file systems that ignore case."""
    words = tuple(re.sub(r"[^\w-]+", "_", name).strip("_") or "target" for name in description.names)
    if len({word.casefold() for word in words}) < len(words):
        words = tuple(f"{number}_{word}" for number, word in enumerate(words, start=1))
    return words
