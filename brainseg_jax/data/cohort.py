"""A prepared cohort: what a network trains on, and what each case needs for its scores."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds

from brainseg_jax.data import normalization as norm
from brainseg_jax.data.canvas import Canvas
from brainseg_jax.data.prepared import damaged, quiet_tfds
from brainseg_jax.data.slice_store import SlicesInMemory, SlicesOnDisk
from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import Description


@dataclass(frozen=True, eq=False)
class Cohort:
    """All cases, in the order in which they are stored; N slices of P cases, K targets.

    A case is one scan. A patient can have several, as of several time points. The slices of a case are those of its
    first view, then those of the next one where the network sees several.

    Attributes:
      description: channels and targets.
      slices: the N slices as the network sees them, in memory or on disk; None where cases are scored alone.
      case_index: [N] int32, index of the slice's case in `cases`.
      target_area: pixels of each slice that belong to any target, on the case's own grid, [N] int64.
      target_fractions: share of each slice's pixels that belongs to each target, of those whose label counts, on the
        case's own grid, [N, K] float64. Class weights are made from it.
      cases: P names.
      patients: of each case, whose scan it is.
      groups: of each case, such as its institution; "" where none is known.
      grades: of each case, the code of the LGG set's data.csv, -1 where it is missing; None for another cohort.
      shapes: of each case, (S, H, W) of its own grid.
      spacings: of each case, see `Volume.spacing`.
      numbers: of each case, see `Volume.numbers`.
      canvases: of each case, one for each view.
      records: of each case, indices of its axial slices in the prepared data, int [S].
      normalization: constants, each float32 [P, C], fitted to the volumes on their own grid.
      labels: of each case, [S, H, W] uint8 label map on its own grid; None where they are read from the prepared data.
      fingerprint: of the prepared data, so that a run can name them.
      folder: of the prepared data.
    """

    description: Description
    slices: SlicesInMemory | SlicesOnDisk | None
    case_index: np.ndarray
    target_area: np.ndarray
    target_fractions: np.ndarray
    cases: tuple[str, ...]
    patients: tuple[str, ...]
    groups: tuple[str, ...]
    grades: tuple[int, ...] | None
    shapes: tuple[tuple[int, int, int], ...]
    spacings: tuple[tuple[float, float, float] | None, ...]
    numbers: tuple[tuple[int, ...], ...]
    canvases: tuple[tuple[Canvas, ...], ...]
    records: tuple[np.ndarray, ...]
    normalization: norm.Normalization
    labels: tuple[np.ndarray, ...] | None
    fingerprint: str
    folder: Path

    def neighbors(self, context: int) -> np.ndarray:
        """Indices of the slices around each, from `context` before to `context` after it, [N, 2 * context + 1] int32.

        Beyond the ends of a view of a case its first or last slice is repeated, as in `canvas.with_neighbors`.
        """
        bounds = np.concatenate([self.stacks(index) for index in range(len(self.cases))])
        counts = bounds[:, 1] - bounds[:, 0]
        first, last = (np.repeat(ends, counts) for ends in bounds.T)
        around = np.arange(len(self.case_index))[:, None] + np.arange(-context, context + 1)
        return around.clip(first[:, None], last[:, None] - 1).astype(np.int32)

    def stacks(self, index: int) -> np.ndarray:
        """First slice of a case in each view, and the one after the last, [V, 2] int."""
        shape = self.shapes[index]
        ends = self._starts[index] + np.cumsum([shape[canvas.axis] for canvas in self.canvases[index]])
        return np.stack([np.append(self._starts[index], ends[:-1]), ends], axis=1)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.searchsorted(self.case_index, np.arange(len(self.cases)))

    @cached_property
    def has_target(self) -> np.ndarray:
        """Which slices hold a pixel of any target, [N] bool."""
        return self.target_area > 0

    def indices(self, cases: Iterable[str]) -> np.ndarray:
        """Indices of these cases, in the order given, int [n].

        Raises:
          InputError: a case is not in the cohort.
        """
        cases = list(cases)
        index = {name: i for i, name in enumerate(self.cases)}
        if unknown := sorted(set(cases) - index.keys()):
            raise InputError(f"not in the data: {', '.join(unknown)}; prepare the data anew or correct the split")
        return np.array([index[name] for name in cases], np.int64)

    def patients_of(self, cases: Iterable[str]) -> tuple[str, ...]:
        """Whose scans these cases are, each patient once, in order of the name. Raises InputError as `indices` does."""
        return tuple(sorted({self.patients[index] for index in self.indices(cases)}))

    def slices_of(self, cases: Iterable[str]) -> np.ndarray:
        """Indices of all slices of these cases, ascending, int32 [n]. Raises InputError as `indices` does."""
        return np.flatnonzero(np.isin(self.case_index, self.indices(cases))).astype(np.int32)

    def read_voxels(self, case: str) -> np.ndarray:
        """The scan of a case on its own grid, [S, H, W, C] uint8, read from the prepared data."""
        (index,) = self.indices([case])
        return self._read(index, "image")

    def read_labels(self, index: int) -> np.ndarray:
        """The label map of a case on its own grid, [S, H, W] uint8; from memory, or read from the prepared data."""
        if self.labels is not None:
            return self.labels[index]
        return self._read(index, "mask", "labels")[..., 0]

    def views(self, index: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """The slices of a case, view by view: images [n, side, side, C] and target bits [n, side, side, 1].

        Without `slices` the images are made of the prepared data, and there are no bits.
        """
        if self.slices is not None:
            yield from (self.slices.read_range(start, stop) for start, stop in self.stacks(index))
            return
        voxels = self.read_voxels(self.cases[index])
        yield from ((canvas.to_network(voxels), None) for canvas in self.canvases[index])

    def _read(self, index: int, *keys: str) -> np.ndarray:
        """What the prepared data have of a case under the first of these names that they know."""
        try:
            records = (self._prepared[int(record)] for record in self.records[index])
            return np.stack([next(record[key] for key in keys if key in record) for record in records])
        except Exception as error:  # array_record has no kinds of errors
            raise damaged(self.folder, f"case {self.cases[index]}: {error}") from error

    @cached_property
    def _prepared(self) -> Any:
        with quiet_tfds():
            (source,) = tfds.builder_from_directory(self.folder).as_data_source().values()
        return source


def unpack_targets(bits: jax.Array, description: Description) -> tuple[jax.Array, jax.Array | None]:
    """What target bits hold: bit k is set where a pixel belongs to target k, bit K where its label is to be ignored.

    Args:
      bits: [..., 1], of any dtype of whole numbers or floats.
      description: of the cohort.

    Returns:
      targets [..., K] float32 in {0, 1}; and where a pixel counts, [..., 1] float32 in {0, 1}, None where all do.
    """
    bits = bits.astype(jnp.int32)
    targets = [(bits >> k) & 1 for k in range(len(description.targets))]
    counted = None if description.ignore is None else 1.0 - ((bits >> len(targets)) & 1).astype(jnp.float32)
    return jnp.concatenate(targets, axis=-1).astype(jnp.float32), counted
