"""The mesh, one axis over all devices of all hosts, and the ways an array lies on it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from brainseg_jax.errors import InputError


def data_mesh() -> Mesh:
    """All devices of all processes on one axis, "data".

    Auto axes: under jit the compiler places the collectives, so a loss or a batch norm written over the batch is that
    of the global batch on any number of devices.
    """
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on each device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis divided among the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Lays an array, known whole to each process, on the devices."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def put_padded(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Divides an array, known whole to each process, over the devices by rows; rows of zeros make it divide evenly."""
    rows = -(-len(array) // mesh.size) * mesh.size

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # it is one where the sharding is known
        start, stop, _ = index[0].indices(rows)
        own = array[start:stop]
        if len(own) == stop - start:
            return own
        return np.concatenate([own, np.zeros((stop - start - len(own), *array.shape[1:]), array.dtype)])

    return jax.make_array_from_callback((rows, *array.shape[1:]), over_batch(mesh), part)


def local_rows(sharding: NamedSharding, rows: int) -> np.ndarray:
    """Indices of the rows, of an array of `rows` rows, that lie on the devices of this process, ascending."""
    parts = sharding.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[part] for part in parts]))


def put_local(array: np.ndarray, sharding: NamedSharding, rows: int) -> jax.Array:
    """Lays an array of `rows` rows, of which each process knows its `local_rows`, on the devices."""
    return jax.make_array_from_process_local_data(sharding, array, (rows, *array.shape[1:]))


def check_divides(mesh: Mesh, key: str, batch_size: int) -> None:
    """Raises InputError where the devices cannot share a batch evenly.

    Args:
      mesh: of `data_mesh`.
      key: the config key of the batch size, for the message.
      batch_size: over all devices.
    """
    if batch_size < 1 or batch_size % mesh.size:
        multiple = max(1, batch_size // mesh.size) * mesh.size
        raise InputError(
            f"{key}={batch_size} cannot be divided evenly among {mesh.size} devices; try --config.{key}={multiple}"
        )
