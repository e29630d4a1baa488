"""The slices of each step on the devices: gathered there from the whole cohort, or put there ahead of the step."""

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
from brainseg_jax.data.residence import DIVIDED, WHOLE

AHEAD = 2  # steps that are read before they are asked for, in as many threads
Sampler = Callable[[int], np.ndarray]  # step to indices of slices, [B] int32


class Drawn(NamedTuple):
    """The slices of a step as they are stored, divided over the devices."""

    images: jax.Array  # [B, n, side, side, C] uint8; neighboring slices from first to last, the slice in the middle
    target_bits: jax.Array  # [B, side, side, 1], see `cohort.unpack_targets`
    normalization: Normalization  # of [B, C]


class _OnDevices(NamedTuple):
    """The cohort's arrays. An argument of each call: closed over, they would be compiled in."""

    images: jax.Array  # [N, side, side, C] uint8
    target_bits: jax.Array  # [N, side, side, 1]
    case_index: jax.Array  # [N] int32
    neighbors: jax.Array  # [N, n] int32, see `Cohort.neighbors`
    normalization: Normalization  # of [P, C]


def make_feed(cohort: Cohort, sampler: Sampler, mesh: Mesh, *, context: int, kind: int) -> "DeviceFeed | HostFeed":
    """The feed for where the slices are, a kind of `data.residence`; for the other arguments see `DeviceFeed`."""
    if kind in (WHOLE, DIVIDED):
        return DeviceFeed(cohort, sampler, mesh, context=context, divided=kind == DIVIDED)
    return HostFeed(cohort, sampler, mesh, context=context)


class DeviceFeed:
    """Gathers the slices of a step from arrays that lie on the devices, whole on each or divided."""

    def __init__(
        self, cohort: Cohort, sampler: Sampler, mesh: Mesh, *, context: int = 0, divided: bool = False
    ) -> None:
        """Lays the cohort on the devices.

        Args:
          cohort: in memory.
          sampler: of the steps.
          mesh: of all devices.
          context: neighboring slices on either side of each.
          divided: whether each device holds a part of the slices only. A gather costs an exchange then.
        """
        self._sampler, self._mesh = sampler, mesh
        everywhere, over = sharding.replicated(mesh), sharding.over_batch(mesh)
        put = partial(sharding.put, sharding=everywhere)
        put_slices = partial(sharding.put_padded, mesh=mesh) if divided else put
        self._cohort = _OnDevices(
            images=put_slices(cohort.slices.images),
            target_bits=put_slices(cohort.slices.target_bits),
            case_index=put(cohort.case_index),
            neighbors=put(cohort.neighbors(context)),
            normalization=jax.tree.map(put, cohort.normalization),
        )
        options = ops.compiler_options(deterministic=True, network=False)  # it only copies
        self._gather = jax.jit(_gather, out_shardings=over, compiler_options=options)

    def __call__(self, step: int) -> Drawn:
        """The slices of a step."""
        indices = sharding.put(self._sampler(step), sharding.over_batch(self._mesh))
        return self._gather(self._cohort, indices)

    def close(self) -> None:
        """Does nothing: this feed has no threads."""


def _gather(cohort: _OnDevices, indices: jax.Array) -> Drawn:
    constants = jax.tree.map(lambda c: c[cohort.case_index[indices]], cohort.normalization)
    return Drawn(cohort.images[cohort.neighbors[indices]], cohort.target_bits[indices], constants)


class HostFeed:
    """Reads the slices of the next steps, from memory or disk, and puts them on the devices while a step runs.

    Each process reads what its own devices need.
    """

    def __init__(self, cohort: Cohort, sampler: Sampler, mesh: Mesh, *, context: int = 0) -> None:
        """Reads nothing yet; the cohort is in memory or on disk, for the other arguments see `DeviceFeed`."""
        self._cohort, self._sampler, self._context = cohort, sampler, context
        self._neighbors = cohort.neighbors(context)
        self._over_batch = sharding.over_batch(mesh)
        self._readers = ThreadPoolExecutor(AHEAD, thread_name_prefix="feed")
        self._ahead: deque[tuple[int, Future[Drawn]]] = deque()

    def __call__(self, step: int) -> Drawn:
        """The slices of a step; those of the steps after it are read from now on. Raises InputError as `read` does."""
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

    def _draw(self, step: int) -> Drawn:
        indices = self._sampler(step)
        own = indices[sharding.own_rows(self._over_batch, len(indices))]
        around = self._neighbors[own]
        read, where = np.unique(around, return_inverse=True)  # a slice that is the neighbor of several is read once
        images, bits = self._cohort.slices.read(read)
        where = where.reshape(around.shape)
        constants = (c[self._cohort.case_index[own]] for c in self._cohort.normalization)
        put = partial(sharding.put_own, sharding=self._over_batch, rows=len(indices))
        return Drawn(
            put(images[where]), put(bits[where[:, self._context]]), Normalization(*(put(c) for c in constants))
        )
