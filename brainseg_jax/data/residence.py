"""Decides where the slices of a cohort are during training: in memory if they fit, otherwise on disk."""

import resource
from pathlib import Path
from typing import NamedTuple

import jax
import psutil

from brainseg_jax.data.canvas import ALL_VIEWS, VIEWS
from brainseg_jax.data.prepared import Summary
from brainseg_jax.data.slice_store import bits_type
from brainseg_jax.data.validation import SIZE
from brainseg_jax.errors import InputError
from brainseg_jax.files import format_bytes

# All slices on each device; a share on each device; in host memory; in a file. With the last two, each step copies its
# batch to the devices.
REPLICATED, SHARDED, HOST, DISK = range(4)
HOST_SHARE = 0.5  # of the free host memory; programs, batches and volumes need the rest
DEVICE_SHARE = 0.4  # of the device memory; activations need most of it
_CGROUP_FILES = {  # limit, usage, and key in memory.stat of the file cache that the kernel can free
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # cgroup v1
    "": ("memory.max", "memory.current", "inactive_file"),  # cgroup v2
}


class Residence(NamedTuple):
    """Where the slices are, and the reason.

    Attributes:
      kind: REPLICATED, SHARDED, HOST or DISK.
      reason: for the log, with the sizes that decided.
    """

    kind: int
    reason: str

    def __str__(self) -> str:
        """Both as text."""
        where = ("in memory and on each device", "in memory and divided among the devices", "in memory", "on disk")
        return f"slices {where[self.kind]} ({self.reason})"


def choose_residence(asked: str, *, slices: int, labels: int, free: int, device: int, devices: int) -> Residence:
    """Decides where the slices are.

    Args:
      asked: the config's `data.residence`.
      slices: bytes of the slices, see `bytes_of_slices`.
      labels: bytes of the label maps, which are in memory if the slices are.
      free: bytes of host memory available to a process, see `free_memory`.
      device: bytes of memory of a device, see `device_memory`; 0 if devices have no memory of their own.
      devices: number of devices in all processes.

    Raises:
      InputError: `asked` is "memory", and the memory is too small.
    """
    if asked == "disk":
        return Residence(DISK, "data.residence=disk")
    reason = f"at most {format_bytes(slices + labels)} of slices and labels, {format_bytes(free)} of memory free"
    if slices + labels > (free if asked == "memory" else HOST_SHARE * free):
        if asked == "memory":
            raise InputError(f"data.residence=memory: {reason}; set data.residence=disk, or a smaller data.image_size")
        return Residence(DISK, reason)
    if not device:
        return Residence(HOST, reason)
    reason += f", {devices} devices of {format_bytes(device)}"
    if slices <= DEVICE_SHARE * device:
        return Residence(REPLICATED, reason)
    return Residence(SHARDED if slices <= DEVICE_SHARE * device * devices else HOST, reason)


def bytes_of_slices(summary: Summary, image_size: int, view: str) -> int:
    """Bytes of images and target bits at the network's size, for `max_slices` slices."""
    pixel_bytes = len(summary.description.channels) + bits_type(summary.description).itemsize
    return max_slices(summary, view) * image_size**2 * pixel_bytes


def bytes_of_labels(summary: Summary) -> int:
    """Maximum bytes of all label maps on their original grids."""
    rows, columns = _max_size(summary)
    return summary.slices * rows * columns


def max_slices(summary: Summary, view: str) -> int:
    """Number of slices in a view: exact for axial slices, otherwise an upper bound."""
    by_axis = (summary.slices, *(summary.cases * size for size in _max_size(summary)))
    return sum(by_axis) if view == ALL_VIEWS else by_axis[VIEWS[view]]


def _max_size(summary: Summary) -> tuple[int, int]:
    """Maximum numbers of rows and columns of a case. The summary of the LGG data does not contain them."""
    if summary.contents is None:
        return SIZE, SIZE
    _, rows, columns = (maximum for _, _, maximum in summary.contents.sizes)  # of slices, rows, columns
    return int(rows), int(columns)


def free_memory(root: Path = Path("/")) -> int:
    """Bytes of host memory that all processes of this machine can still allocate together.

    It respects the limits of the machine, of the cgroups of this process, and of `ulimit`.

    Args:
      root: of the file system with /proc and /sys.
    """
    free = [psutil.virtual_memory().available, *_free_in_cgroups(root)]
    process = psutil.Process().memory_info()
    for kind, used in ((resource.RLIMIT_AS, process.vms), (resource.RLIMIT_DATA, process.data)):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            free.append(soft - used)
    return max(0, min(free))


def _free_in_cgroups(root: Path) -> list[int]:
    """Free bytes below the limit of each cgroup of this process."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []
    free = []
    for controllers, path in (line.split(":", 2)[1:] for line in lines):
        if controllers not in _CGROUP_FILES:
            continue
        limit, usage, cache = _CGROUP_FILES[controllers]
        top = root / "sys/fs/cgroup" / controllers
        for folder in (top / path.strip("/"), *(top / path.strip("/")).parents):
            try:
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / usage).read_text()) - int(statistics.get(cache, 0))
                free.append(int((folder / limit).read_text()) - used)
            except (OSError, ValueError):  # no such cgroup, or no limit
                continue
    return free


def device_memory() -> int:
    """Memory in bytes of the smallest device of this process; 0 if devices have no memory of their own (CPU)."""
    return min((device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices())
