"""The mesh, one axis over all devices of all hosts, and the two ways an array lies on it."""

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
