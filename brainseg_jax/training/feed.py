"""Feeds: the slices of each step, on the devices. They gather from device arrays, or read ahead from memory or disk."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from brainseg_jax import ops, sharding
from brainseg_jax.data.cohort import Cohort
from brainseg_jax.data.normalization import Normalization
from brainseg_jax.data.residence import REPLICATED, SHARDED
from brainseg_jax.data.slice_store import SlicesInMemory

AHEAD = 2  # number of steps that are read in advance, one thread each
Sampler = Callable[[int], np.ndarray]  # step to indices of slices, [B] int32


class DrawnSlices(NamedTuple):
    """The slices of a step as stored, divided among the devices along the batch."""

    images: jax.Array  # [B, n, side, side, C] uint8; the slice is in the middle of its n - 1 neighbors
    target_bits: jax.Array  # [B, side, side, 1], see `cohort.unpack_targets`
    normalization: Normalization  # arrays [B, C]


class _DeviceArrays(NamedTuple):
    """The arrays of the cohort on the devices, as jit arguments: jit would compile closed-over arrays as constants."""

    images: jax.Array  # [N, side, side, C] uint8
    target_bits: jax.Array  # [N, side, side, 1]
    case_index: jax.Array  # [N] int32
    neighbors: jax.Array  # [N, n] int32, see `Cohort.neighbors`
    normalization: Normalization  # arrays [P, C]


def make_feed(cohort: Cohort, sampler: Sampler, mesh: Mesh, *, context: int, kind: int) -> "DeviceFeed | HostFeed":
    """Returns the feed for a kind of `data.residence`. The other arguments are as in `DeviceFeed`."""
    if kind in (REPLICATED, SHARDED):
        return DeviceFeed(cohort, sampler, mesh, context=context, divided=kind == SHARDED)
    return HostFeed(cohort, sampler, mesh, context=context)


class DeviceFeed:
    """Gathers the slices of a step from arrays on the devices. Each device has all slices, or an equal share."""

    def __init__(
        self, cohort: Cohort, sampler: Sampler, mesh: Mesh, *, context: int = 0, divided: bool = False
    ) -> None:
        """Copies the cohort to the devices.

        Args:
          cohort: A cohort with its slices in memory.
          sampler: Maps a step to the indices of its slices.
          mesh: The mesh of all devices.
          context: Number of neighboring slices on either side of each slice.
          divided: Whether to divide the slices among the devices. A gather then needs communication.
        """
        self._sampler, self._mesh = sampler, mesh
        replicated, divided_batch = sharding.replicated(mesh), sharding.over_batch(mesh)
        put = partial(sharding.put, sharding=replicated)
        slices = cohort.slices
        assert isinstance(slices, SlicesInMemory)
        put_slices = partial(sharding.put_padded, mesh=mesh) if divided else put
        self._cohort = _DeviceArrays(
            images=put_slices(slices.images),
            target_bits=put_slices(slices.target_bits),
            case_index=put(cohort.case_index),
            neighbors=put(cohort.neighbors(context)),
            normalization=jax.tree.map(put, cohort.normalization),
        )
        options = ops.compiler_options(deterministic=True, network=False)  # a gather only copies
        self._gather = jax.jit(_gather, out_shardings=divided_batch, compiler_options=options)

    def __call__(self, step: int) -> DrawnSlices:
        """The slices of a step."""
        indices = sharding.put(self._sampler(step), sharding.over_batch(self._mesh))
        return self._gather(self._cohort, indices)

    def close(self) -> None:
        """Does nothing: this feed has no threads."""


def _gather(cohort: _DeviceArrays, indices: jax.Array) -> DrawnSlices:
    constants = jax.tree.map(lambda c: c[cohort.case_index[indices]], cohort.normalization)
    return DrawnSlices(cohort.images[cohort.neighbors[indices]], cohort.target_bits[indices], constants)


class HostFeed:
    """Reads the slices of the next steps from memory or disk, and copies them to the devices while a step runs.

    Each process reads only the slices for its own devices.
    """

    def __init__(self, cohort: Cohort, sampler: Sampler, mesh: Mesh, *, context: int = 0) -> None:
        """Starts the threads. The slices can be in memory or on disk. The other arguments are as in `DeviceFeed`."""
        assert cohort.slices is not None
        self._cohort, self._slices, self._sampler, self._context = cohort, cohort.slices, sampler, context
        self._neighbors = cohort.neighbors(context)
        self._over_batch = sharding.over_batch(mesh)
        self._readers = ThreadPoolExecutor(AHEAD, thread_name_prefix="feed")
        self._ahead: deque[tuple[int, Future[DrawnSlices]]] = deque()

    def __call__(self, step: int) -> DrawnSlices:
        """The slices of a step. Starts to read those of the next steps. Raises InputError like `read`."""
        if self._ahead and self._ahead[0][0] != step:
            self._drop()
        if not self._ahead:
            self._submit(step)
        while len(self._ahead) <= AHEAD:
            self._submit(self._ahead[-1][0] + 1)
        return self._ahead.popleft()[1].result()

    def close(self) -> None:
        """Ends the threads."""
        self._drop()
        self._readers.shutdown()

    def _submit(self, step: int) -> None:
        self._ahead.append((step, self._readers.submit(self._draw, step)))

    def _drop(self) -> None:
        for _, future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def _draw(self, step: int) -> DrawnSlices:
        indices = self._sampler(step)
        local = indices[sharding.local_rows(self._over_batch, len(indices))]
        neighbors = self._neighbors[local]
        unique, inverse = np.unique(
            neighbors, return_inverse=True
        )  # each slice is read once, though it may be repeated
        images, bits = self._slices.read(unique)
        inverse = inverse.reshape(neighbors.shape)
        put = partial(sharding.put_local, sharding=self._over_batch, rows=len(indices))
        return DrawnSlices(
            put(images[inverse]),
            put(bits[inverse[:, self._context]]),
            jax.tree.map(lambda c: put(c[self._cohort.case_index[local]]), self._cohort.normalization),
        )
