"""Where the slices of a cohort are while a network trains: in memory where they fit, else on disk."""

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
    """Where the slices are, and why.

    Attributes:
      kind: WHOLE, DIVIDED, HOST or DISK.
      reason: for the log, with the sizes that it rests on.
    """

    kind: int
    reason: str

    def __str__(self) -> str:
        """Both in words."""
        where = ("in memory and on each device", "in memory and divided over the devices", "in memory", "on disk")
        return f"slices {where[self.kind]} ({self.reason})"


def choose_residence(asked: str, *, slices: int, labels: int, free: int, device: int, devices: int) -> Residence:
    """Decides where the slices are.

    Args:
      asked: the config's `data.residence`.
      slices: bytes of the slices, see `bytes_of_slices`.
      labels: bytes of the label maps, which are in memory where the slices are.
      free: bytes of host memory that a process can take, see `free_memory`.
      device: bytes of memory of a device, see `device_memory`; 0 where devices have none of their own.
      devices: how many there are, of all processes.

    Raises:
      InputError: memory is asked for, and it is too small.
    """
    if asked == "disk":
        return Residence(DISK, "data.residence=disk")
    words = f"at most {format_bytes(slices + labels)} of slices and labels, {format_bytes(free)} of memory free"
    if slices + labels > (free if asked == "memory" else HOST_SHARE * free):
        if asked == "memory":
            raise InputError(f"data.residence=memory: {words}; give data.residence=disk, or a smaller data.image_size")
        return Residence(DISK, words)
    if not device:
        return Residence(HOST, words)
    words += f", {devices} devices of {format_bytes(device)}"
    if slices <= DEVICE_SHARE * device:
        return Residence(WHOLE, words)
    return Residence(DIVIDED if slices <= DEVICE_SHARE * device * devices else HOST, words)


def bytes_of_slices(summary: Summary, image_size: int, view: str) -> int:
    """Bytes of images and target bits at the network's size, of `max_slices`."""
    of_pixel = len(summary.description.channels) + bits_type(summary.description).itemsize
    return max_slices(summary, view) * image_size**2 * of_pixel


def bytes_of_labels(summary: Summary) -> int:
    """Bytes of all label maps on their own grids, at most."""
    rows, columns = _largest(summary)
    return summary.slices * rows * columns


def max_slices(summary: Summary, view: str) -> int:
    """Number of slices in a view: exact for axial slices, an upper bound for the others."""
    by_axis = (summary.slices, *(summary.cases * size for size in _largest(summary)))
    return sum(by_axis) if view == ALL_VIEWS else by_axis[VIEWS[view]]


def _largest(summary: Summary) -> tuple[int, int]:
    """The most rows and columns of a case; the summary of the LGG data does not have them."""
    if summary.contents is None:
        return SIZE, SIZE
    _, (*_, rows), (*_, columns) = summary.contents.sizes
    return int(rows), int(columns)


def free_memory(root: Path = Path("/")) -> int:
    """Bytes of host memory that the processes of this machine can still take together.

    The limits are those of the machine, of the cgroups of this process, and of `ulimit`.

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


def device_memory() -> int:
    """Bytes of memory of the smallest device of this process; 0 where devices have none of their own, as a CPU."""
    return min((device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices())
