"""Where slices are stored: byte counts by hand, and files as the kernel writes them."""

import dataclasses
import subprocess
import sys

import pytest

from brainseg_jax.data.prepared import Contents, read_summary
from brainseg_jax.data.residence import (
    DISK,
    HOST,
    REPLICATED,
    SHARDED,
    bytes_of_labels,
    bytes_of_slices,
    choose_residence,
    free_memory,
    max_slices,
)
from brainseg_jax.errors import InputError

GIB = 2**30


@pytest.mark.parametrize(
    ("asked", "slices", "free", "device", "devices", "kind"),
    [
        ("auto", 7, 16, 0, 1, HOST),  # with 1 of labels half of 16; a CPU has no memory of its own
        ("auto", 8, 16, 0, 1, DISK),
        ("auto", 8, 16, 80, 1, DISK),
        ("auto", 6, 16, 15, 1, REPLICATED),  # 0.4 of 15
        ("auto", 7, 16, 16, 2, SHARDED),  # more than 0.4 of 16, less than 0.4 of 32
        ("auto", 7, 16, 8, 2, HOST),
        ("memory", 7, 8, 0, 1, HOST),  # asked for: all of the free memory
        ("memory", 7, 8, 80, 2, REPLICATED),
        ("disk", 1, 16, 16, 1, DISK),
    ],
)
def test_choice(asked, slices, free, device, devices, kind):
    given = {"slices": slices * GIB, "labels": GIB, "free": free * GIB, "device": device * GIB, "devices": devices}
    assert choose_residence(asked, **given).kind == kind


def test_memory_that_is_too_small_is_refused_when_asked_for():
    words = r"residence=memory: at most 8.00 GiB of slices and labels, 512.0 MiB of .*residence=disk"
    with pytest.raises(InputError, match=words):
        choose_residence("memory", slices=7 * GIB, labels=GIB, free=GIB // 2, device=0, devices=1)


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_ulimit_counts(limit):
    program = f"""
import resource
from brainseg_jax.data.residence import free_memory
before = free_memory()
resource.setrlimit(resource.{limit}, (3 * 2**30, resource.RLIM_INFINITY))
print(before, free_memory())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, limited = map(int, done.stdout.split())
    assert 0 < limited < min(3 * GIB, before)


def test_bytes(dataset_folder, cohort):
    summary = read_summary(dataset_folder)
    slices = cohort.slices
    assert bytes_of_slices(summary, 64, "axial") == slices.images.nbytes + slices.target_bits.nbytes
    assert bytes_of_labels(summary) == sum(labels.nbytes for labels in cohort.labels)
    assert bytes_of_slices(summary, 64, "all") == (128 + 2 * 8 * 256) * 64 * 64 * 4  # 8 patients


def test_the_most_slices_of_a_cohort(dataset_folder):
    sizes = ((3.0, 4.0, 5.0), (10.0, 11.0, 12.0), (20.0, 21.0, 22.0))  # minimum, median, maximum of each axis
    contents = Contents("", (), (), sizes, (), 0, {}, {})
    summary = dataclasses.replace(read_summary(dataset_folder), contents=contents, cases=2, slices=9)
    found = [max_slices(summary, view) for view in ("axial", "coronal", "sagittal", "all")]
    assert found == [9, 2 * 12, 2 * 22, 9 + 24 + 44]
    assert bytes_of_labels(summary) == 9 * 12 * 22


def cgroups(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


V1 = {
    "proc/self/cgroup": "5:devices:/job\n4:memory:/job/step\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000\n",
    "sys/fs/cgroup/memory/memory.stat": "cache 10\ntotal_inactive_file 0\n",
    "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "4000\n",
    "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "3000\n",
    "sys/fs/cgroup/memory/job/memory.stat": "total_inactive_file 600\n",
    "sys/fs/cgroup/memory/job/step/memory.limit_in_bytes": "3500\n",
    "sys/fs/cgroup/memory/job/step/memory.usage_in_bytes": "1000\n",
    "sys/fs/cgroup/memory/job/step/memory.stat": "total_inactive_file 0\n",
}
V2 = {
    "proc/self/cgroup": "0::/slurm/job\n",
    "sys/fs/cgroup/slurm/job/memory.max": "9000\n",
    "sys/fs/cgroup/slurm/job/memory.current": "8000\n",
    "sys/fs/cgroup/slurm/job/memory.stat": "anon 4\ninactive_file 500\n",
    "sys/fs/cgroup/slurm/memory.max": "max\n",
    "sys/fs/cgroup/slurm/memory.current": "1\n",
    "sys/fs/cgroup/slurm/memory.stat": "inactive_file 0\n",
}


@pytest.mark.parametrize(
    ("files", "left"),
    [(V1, 4000 - (3000 - 600)), (V2, 9000 - (8000 - 500))],  # the tightest: of the parent; of the only limit
    ids=["first version", "second version"],
)
def test_the_limit_of_a_cgroup_counts(tmp_path, files, left):
    cgroups(tmp_path, files)
    assert free_memory(tmp_path) == left
    (tmp_path / "proc/self/cgroup").unlink()
    assert free_memory(tmp_path) > 2**20  # that of the machine
