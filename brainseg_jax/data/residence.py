"""Where the slices of a cohort are while a network trains: in memory where they fit, else on disk."""

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import psutil

from brainseg_jax.data.canvas import ALL_VIEWS, VIEWS
from brainseg_jax.data.prepared import Summary
from brainseg_jax.data.slice_store import bits_type
from brainseg_jax.data.validation import SIZE
from brainseg_jax.errors import InputError
from brainseg_jax.files import gigabytes

NAMES = ("auto", "memory", "disk")
# Whole on each device; a part on each device; in memory of the host; in a file. Batches of the last two are put on the
# devices step by step.
WHOLE, DIVIDED, HOST, DISK = range(4)
HOST_SHARE = 0.5  # of the free memory of the host: programs, batches and volumes need the rest
DEVICE_SHARE = 0.4  # of the memory of a device: activations need most of it
_CGROUP_FILES = {  # limit, usage, and in the statistics the files in the cache that the kernel can let go of
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # the first version
    "": ("memory.max", "memory.current", "inactive_file"),  # the second one
}


class Residence(NamedTuple):
    """A decision.

    Attributes:
      kind: WHOLE, DIVIDED, HOST or DISK.
      reason: for the log, with the sizes that it rests on.
    """

    kind: int
    reason: str

    def __str__(self) -> str:
        """The decision in words."""
        where = ("in memory and on each device", "in memory and divided over the devices", "in memory", "on disk")
        return f"slices {where[self.kind]} ({self.reason})"


def choose_residence(
    asked: str, *, slices: int, labels: int, free: int, devices: Sequence[int], trains: bool = True
) -> Residence:
    """Decides where the slices are.

    Args:
      asked: one of `NAMES`.
      slices: bytes of the slices, see `bytes_of_slices`.
      labels: bytes of the label maps, which are in memory where the slices are.
      free: bytes of host memory, see `free_memory`.
      devices: bytes of memory of each device, see `device_memory`; none where the devices have no memory of their own.
      trains: whether batches of all slices will be drawn; scoring puts volumes on the devices one after the other.

    Raises:
      InputError: memory is asked for, and it is too small.
    """
    if asked == "disk":
        return Residence(DISK, "data.residence=disk")
    words = f"{gigabytes(slices + labels)} of slices and labels, {gigabytes(free)} of memory free"
    if slices + labels > (free if asked == "memory" else HOST_SHARE * free):
        if asked == "memory":
            raise InputError(f"data.residence=memory: {words}; give data.residence=disk, or a smaller data.image_size")
        return Residence(DISK, words)
    if not trains or not devices:
        return Residence(HOST, words)
    words += f"; {len(devices)} x {gigabytes(min(devices))} of devices"
    if slices <= DEVICE_SHARE * min(devices):
        return Residence(WHOLE, words)
    return Residence(DIVIDED if slices <= DEVICE_SHARE * min(devices) * len(devices) else HOST, words)


def bytes_of_slices(summary: Summary, image_size: int, view: str) -> int:
    """Bytes of images and target bits at the network's size, of `most_slices`."""
    of_pixel = len(summary.description.channels) + bits_type(summary.description).itemsize
    return most_slices(summary, view) * image_size**2 * of_pixel


def bytes_of_labels(summary: Summary) -> int:
    """Bytes of all label maps on their own grids, at most."""
    rows, columns = _largest(summary)
    return summary.slices * rows * columns


def most_slices(summary: Summary, view: str) -> int:
    """How many slices a network sees in a view: axial ones are counted, of others it is the most there can be."""
    by_axis = (summary.slices, *(summary.cases * size for size in _largest(summary)))
    return sum(by_axis) if view == ALL_VIEWS else by_axis[VIEWS[view]]


def _largest(summary: Summary) -> tuple[int, int]:
    """The most rows and columns of a case; the summary of the LGG data does not have them."""
    if summary.contents is None:
        return SIZE, SIZE
    _, (*_, rows), (*_, columns) = summary.contents.sizes
    return int(rows), int(columns)


def free_memory(root: Path = Path("/")) -> int:
    """Bytes of host memory that this process can still take: of the machine, of its cgroups, of `ulimit`.

    Args:
      root: of the file system that has /proc and /sys.
    """
    free = [psutil.virtual_memory().available, *_left_in_cgroups(root)]
    process = psutil.Process().memory_info()
    for kind, used in ((resource.RLIMIT_AS, process.vms), (resource.RLIMIT_DATA, process.data)):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            free.append(soft - used)
    return max(0, min(free))


def _left_in_cgroups(root: Path) -> list[int]:
    """What is left below the limit of each cgroup that this process is in."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []
    left = []
    for controllers, path in (line.split(":", 2)[1:] for line in lines):
        if controllers not in _CGROUP_FILES:
            continue
        limit, usage, cache = _CGROUP_FILES[controllers]
        top = root / "sys/fs/cgroup" / controllers
        for folder in (top / path.strip("/"), *(top / path.strip("/")).parents):
            try:
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / usage).read_text()) - int(statistics.get(cache, 0))
                left.append(int((folder / limit).read_text()) - used)
            except (OSError, ValueError):  # no such cgroup, or no limit
                continue
    return left


def device_memory() -> list[int]:
    """Bytes of memory of each device of this process; empty where they have none of their own, as a CPU."""
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    return [of_device["bytes_limit"] for of_device in statistics if "bytes_limit" in of_device]
