"""The mesh, with one axis over all devices of all hosts, and functions that put arrays on it."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from brainseg_jax.errors import InputError


def data_mesh() -> Mesh:
    """All devices of all processes on one axis, "data".

    The axis type is Auto: under jit the compiler inserts the collectives. So a loss or a batch norm over the batch uses
    the global batch on any number of devices.
    """
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def connect() -> None:
    """Connects the devices of all processes. Call it as soon as the processes have joined.

    On CPUs, the first collective of a group of devices fails if a process arrives more than 30 s after the others
    (Gloo, GetKeyValue). Later collectives wait. So the groups are connected before one process prepares a dataset or
    compiles for longer than another.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("connect")  # groups with one device of each process
        one = put(np.ones(jax.device_count(), np.float32), over_batch(data_mesh()))
        jnp.sum(one).block_until_ready()  # the group of all devices


def replicated(mesh: Mesh) -> NamedSharding:
    """Each device has the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis is divided among the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Puts an array on the devices. Each process passes the whole array."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def put_padded(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Divides the rows of an array among the devices, padded with zero rows. Each process passes the whole array."""
    rows = -(-len(array) // mesh.size) * mesh.size

    def block(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # for the type checker
        start, stop, _ = index[0].indices(rows)
        values = array[start:stop]
        if len(values) == stop - start:
            return values
        return np.concatenate([values, np.zeros((stop - start - len(values), *array.shape[1:]), array.dtype)])

    return jax.make_array_from_callback((rows, *array.shape[1:]), over_batch(mesh), block)


def local_rows(sharding: NamedSharding, rows: int) -> np.ndarray:
    """Indices of the rows on the devices of this process, ascending, for an array of `rows` rows."""
    blocks = sharding.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[block] for block in blocks]))


def put_local(array: np.ndarray, sharding: NamedSharding, rows: int) -> jax.Array:
    """Puts an array of `rows` rows on the devices. Each process passes its `local_rows` only."""
    return jax.make_array_from_process_local_data(sharding, array, (rows, *array.shape[1:]))


def check_divides(mesh: Mesh, key: str, batch_size: int) -> None:
    """Raises InputError if the devices cannot share a batch evenly.

    Args:
      mesh: From `data_mesh`.
      key: The config key of the batch size, for the message.
      batch_size: Batch size over all devices.
    """
    if batch_size < 1 or batch_size % mesh.size:
        multiple = max(1, batch_size // mesh.size) * mesh.size
        raise InputError(
            f"{key}={batch_size} cannot be divided evenly among {mesh.size} devices; try --config.{key}={multiple}"
        )
