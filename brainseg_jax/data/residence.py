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
from brainseg_jax.errors import InputError
from brainseg_jax.files import gigabytes

NAMES = ("auto", "memory", "disk")
REPLICATED, DIVIDED, DISK = range(3)  # whole on each device; a part on each device; in a file
HOST_SHARE = 0.5  # of the free memory of the host: programs, batches and volumes need the rest
DEVICE_SHARE = 0.4  # of the memory of a device: activations need most of it
_CGROUP_FILES = {  # limit, usage, and in the statistics the files in the cache that the kernel can let go of
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # the first version
    "": ("memory.max", "memory.current", "inactive_file"),  # the second one
}


class Residence(NamedTuple):
    """A decision.

    Attributes:
      kind: REPLICATED, DIVIDED or DISK.
      reason: for the log, with the sizes that it rests on.
    """

    kind: int
    reason: str


def choose_residence(
    asked: str, *, slices: int, labels: int, free: int, devices: Sequence[int], trains: bool = True
) -> Residence:
    """Decides where the slices are.

    Args:
      asked: one of `NAMES`.
      slices: bytes of the slices, see `bytes_of_slices`.
      labels: bytes of the label maps, which are in memory where the slices are.
      free: bytes of host memory, see `free_memory`.
      devices: bytes of memory of each device, see `device_memory`.
      trains: whether the devices hold the slices; scoring puts batches on them alone.

    Raises:
      InputError: memory is asked for, and it is too small.
    """
    if asked == "disk":
        return Residence(DISK, "data.residence=disk")
    device = DEVICE_SHARE * min(devices)
    kinds = {
        REPLICATED: not trains or slices <= device,
        DIVIDED: trains and slices <= device * len(devices),
    }
    on_devices = next((kind for kind, fits in kinds.items() if fits), None)
    share = 1.0 if asked == "memory" else HOST_SHARE
    words = f"{gigabytes(slices + labels)} of slices and labels, {gigabytes(free)} of memory free"
    if slices + labels <= share * free and on_devices is not None:
        divided = f", divided over {len(devices)} devices of {gigabytes(min(devices))}"
        return Residence(on_devices, words + (divided if on_devices == DIVIDED else ""))
    if asked == "memory":
        raise InputError(
            f"data.residence=memory: {words}, {len(devices)} device{'s' * (len(devices) > 1)} of "
            f"{gigabytes(min(devices))}; give data.residence=disk, or a smaller data.image_size"
        )
    return Residence(DISK, words)


def bytes_of_slices(summary: Summary, image_size: int, view: str) -> int:
    """Bytes of images and target bits at the network's size; of other views than axial ones it is an estimate."""
    of_pixel = len(summary.description.channels) + bits_type(summary.description).itemsize
    return _slices(summary, view) * image_size**2 * of_pixel


def bytes_of_labels(summary: Summary) -> int:
    """Bytes of all label maps on their own grids, an estimate from the median size."""
    if summary.contents is None:
        return summary.slices * 256**2
    return summary.slices * int(summary.contents.sizes[1][1]) * int(summary.contents.sizes[1][2])


def _slices(summary: Summary, view: str) -> int:
    if view == "axial" or summary.contents is None:
        return summary.slices * (len(VIEWS) if view == ALL_VIEWS else 1)
    median = summary.contents.sizes[1]  # along slices, rows, columns
    axes = VIEWS.values() if view == ALL_VIEWS else (VIEWS[view],)
    return int(sum(summary.cases * median[axis] for axis in axes))


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


def device_memory(free: int) -> list[int]:
    """Bytes of memory of each device of this process; those that do not report it, as a CPU, share `free` bytes."""
    devices = jax.local_devices()
    statistics = [device.memory_stats() or {} for device in devices]
    return [of_device.get("bytes_limit", free // len(devices)) for of_device in statistics]
