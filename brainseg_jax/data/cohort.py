"""A prepared cohort: the slices for training, and for each case what its scores need."""

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
    """All cases in the order in which they are stored: N slices of P cases, with K targets.

    A case is one scan. A patient can have several cases, such as several time points. The slices of a case are ordered
    by view: all of its first view, then all of the next one.

    Attributes:
      description: channels and targets.
      slices: the N slices at the network's size, in memory or on disk; None if cases are read one by one for scoring.
      case_index: [N] int32, index in `cases` of the case of each slice.
      target_area: [N] int64, number of pixels of any target in each slice, on the case's original grid.
      target_fractions: [N, K] float64, fraction of the pixels of each slice that belong to each target, on the original
        grid. Pixels with the ignored label do not count. Class weights are computed from it.
      cases: P names.
      patients: the patient of each case.
      groups: the group of each case, such as its institution; "" if unknown.
      grades: the grade code of each case in the LGG set's data.csv, -1 if missing; None for other cohorts.
      shapes: (S, H, W) of the original grid of each case.
      spacings: of each case, see `Volume.spacing`.
      numbers: of each case, see `Volume.numbers`.
      canvases: of each case, one per view.
      records: of each case, indices of its axial slices in the prepared data, int [S].
      normalization: constants, each float32 [P, C], fitted to the volumes on their original grids.
      labels: label map of each case on its original grid, [S, H, W] uint8; None if they are read from the prepared
        data.
      fingerprint: of the prepared data, so that a run can identify it.
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
        """Indices of the slices from `context` before to `context` after each slice, [N, 2 * context + 1] int32.

        At both ends of each view of a case the first or last slice is repeated, as in `canvas.with_neighbors`.
        """
        bounds = np.concatenate([self.stacks(index) for index in range(len(self.cases))])
        counts = bounds[:, 1] - bounds[:, 0]
        first, last = (np.repeat(ends, counts) for ends in bounds.T)
        neighbors = np.arange(len(self.case_index))[:, None] + np.arange(-context, context + 1)
        return neighbors.clip(first[:, None], last[:, None] - 1).astype(np.int32)

    def stacks(self, index: int) -> np.ndarray:
        """Start and stop index of the slices of a case in each view, [V, 2] int."""
        shape = self.shapes[index]
        ends = self._starts[index] + np.cumsum([shape[canvas.axis] for canvas in self.canvases[index]])
        return np.stack([np.append(self._starts[index], ends[:-1]), ends], axis=1)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.searchsorted(self.case_index, np.arange(len(self.cases)))

    @cached_property
    def has_target(self) -> np.ndarray:
        """Whether each slice contains a pixel of any target, [N] bool."""
        return self.target_area > 0

    def indices(self, cases: Iterable[str]) -> np.ndarray:
        """Indices of these cases in the given order, int [n].

        Raises:
          InputError: a case is not in the cohort.
        """
        cases = list(cases)
        index = {name: i for i, name in enumerate(self.cases)}
        if unknown := sorted(set(cases) - index.keys()):
            raise InputError(f"not in the data: {', '.join(unknown)}; prepare the data again or correct the split")
        return np.array([index[name] for name in cases], np.int64)

    def patients_of(self, cases: Iterable[str]) -> tuple[str, ...]:
        """The patients of these cases, sorted, without repetition. Raises InputError as `indices` does."""
        return tuple(sorted({self.patients[index] for index in self.indices(cases)}))

    def slices_of(self, cases: Iterable[str]) -> np.ndarray:
        """Indices of all slices of these cases, ascending, int32 [n]. Raises InputError as `indices` does."""
        return np.flatnonzero(np.isin(self.case_index, self.indices(cases))).astype(np.int32)

    def read_voxels(self, case: str) -> np.ndarray:
        """The scan of a case on its original grid, [S, H, W, C] uint8, read from the prepared data."""
        (index,) = self.indices([case])
        return self._read(index, "image")

    def read_labels(self, index: int) -> np.ndarray:
        """The label map of a case on its original grid, [S, H, W] uint8, from memory or the prepared data."""
        if self.labels is not None:
            return self.labels[index]
        return self._read(index, "mask", "labels")[..., 0]

    def views(self, index: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yields the slices of a case, view by view: images [n, side, side, C] and target bits [n, side, side, 1].

        Without `slices` the images are computed from the prepared data, and the bits are None.
        """
        if self.slices is not None:
            yield from (self.slices.read_range(start, stop) for start, stop in self.stacks(index))
            return
        voxels = self.read_voxels(self.cases[index])
        yield from ((canvas.to_network(voxels), None) for canvas in self.canvases[index])

    def _read(self, index: int, *keys: str) -> np.ndarray:
        """Reads a field of all records of a case, stacked: the first of `keys` that a record has."""
        try:
            records = (self._prepared[int(record)] for record in self.records[index])
            return np.stack([next(record[key] for key in keys if key in record) for record in records])
        except Exception as error:  # array_record has no exception types of its own
            raise damaged(self.folder, f"case {self.cases[index]}: {error}") from error

    @cached_property
    def _prepared(self) -> Any:
        with quiet_tfds():
            (source,) = tfds.builder_from_directory(self.folder).as_data_source().values()
        return source


def unpack_targets(bits: jax.Array, description: Description) -> tuple[jax.Array, jax.Array | None]:
    """Unpacks target bits. Bit k is set where a pixel belongs to target k; bit K where its label is ignored.

    Args:
      bits: [..., 1], of any integer or float dtype.
      description: of the cohort.

    Returns:
      targets: [..., K] float32 in {0, 1}.
      counted: [..., 1] float32 in {0, 1}, 1 where a pixel counts; None if all pixels count.
    """
    bits = bits.astype(jnp.int32)
    targets = [(bits >> k) & 1 for k in range(len(description.targets))]
    counted = None if description.ignore is None else 1.0 - ((bits >> len(targets)) & 1).astype(jnp.float32)
    return jnp.concatenate(targets, axis=-1).astype(jnp.float32), counted
