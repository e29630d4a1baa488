"""Batches from memory, from divided arrays and from disk are equal; slices on disk are complete or refused."""

import dataclasses
import shutil
import threading
import time
from functools import partial

import chex
import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from twenty_steps import twenty_losses

from brainseg_jax import sharding
from brainseg_jax.data import slice_store
from brainseg_jax.data.load_cohort import IN_MEMORY, NO_SLICES, ON_DISK, load_cohort
from brainseg_jax.data.residence import DISK, HOST, REPLICATED
from brainseg_jax.errors import InputError
from brainseg_jax.training.feed import AHEAD, DeviceFeed, HostFeed

BATCH = 8


def mesh_of(devices: int) -> jax.sharding.Mesh:
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def sampler(step: int) -> np.ndarray:
    return np.random.default_rng(step).choice(128, BATCH, replace=False).astype(np.int32)


@pytest.fixture(scope="module")
def data_folder(dataset_folder, tmp_path_factory):
    """A copy of the prepared data, where a test may write slices."""
    root = tmp_path_factory.mktemp("on_disk")
    shutil.copytree(dataset_folder.parents[1], root / dataset_folder.parts[-3])
    return root / dataset_folder.relative_to(dataset_folder.parents[2])


@pytest.fixture(scope="module")
def on_disk(data_folder):
    return load_cohort(data_folder, image_size=64, normalization="volume_zscore", slices=ON_DISK)


def store_of(cohort):
    return cohort.slices.folder


@pytest.mark.parametrize("view", ["axial", "all"])
def test_a_cohort_on_disk_is_that_in_memory(data_folder, view):
    load = partial(load_cohort, data_folder, image_size=96, normalization="volume_median", view=view, pixel_spacing=3.0)
    memory, disk, again, alone = load(), load(slices=ON_DISK), load(slices=ON_DISK), load(slices=NO_SLICES)
    for one in (disk, again, alone):  # as it was written, and as it is read from the index
        for field in dataclasses.fields(memory):
            if field.name not in ("slices", "labels"):
                chex.assert_trees_all_equal(getattr(one, field.name), getattr(memory, field.name))
        for index in range(len(memory.cases)):
            np.testing.assert_array_equal(one.read_labels(index), memory.labels[index])
            for (images, bits), (expected, expected_bits) in zip(one.views(index), memory.views(index), strict=True):
                np.testing.assert_array_equal(images, expected)
                if one is not alone:
                    np.testing.assert_array_equal(bits, expected_bits)
    for one in (disk, again):
        assert (one.slices.count, one.slices.shape) == (memory.slices.count, memory.slices.shape)
        chex.assert_trees_all_equal(one.slices.read_range(3, 90), memory.slices.read_range(3, 90))
        chex.assert_trees_all_equal(one.slices.read(np.array([7, 0, 7])), memory.slices.read(np.array([7, 0, 7])))
    order = np.random.default_rng(0).permutation(memory.slices.count)
    picked = np.array([5, 1, 2])
    for one in (memory, disk):
        twice = one.slices.reordered(order).reordered(order)
        chex.assert_trees_all_equal(twice.read(picked), memory.slices.read(order[order[picked]]))


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("devices", [1, 4])
def test_a_step_is_given_the_same_slices_from_everywhere(cohort, on_disk, devices, context):
    mesh = mesh_of(devices)
    whole = DeviceFeed(cohort, sampler, mesh, context=context)
    others = (
        DeviceFeed(cohort, sampler, mesh, context=context, divided=True),
        HostFeed(cohort, sampler, mesh, context=context),
        HostFeed(on_disk, sampler, mesh, context=context),
    )
    for step in (0, 1, 2, 7, 3):  # also out of order, as after a resume
        expected, indices = whole(step), sampler(step)
        assert expected.images.shape == (BATCH, 2 * context + 1, 64, 64, 3)
        np.testing.assert_array_equal(expected.images[:, context], cohort.slices.images[indices])
        np.testing.assert_array_equal(expected.target_bits, cohort.slices.target_bits[indices])
        for feed in others:
            drawn = feed(step)
            chex.assert_trees_all_equal(drawn, expected)
            assert drawn.images.sharding.is_equivalent_to(sharding.over_batch(mesh), 5)
    for feed in others:
        feed.close()


def test_divided_arrays_are_not_whole_on_a_device(cohort):
    feed = DeviceFeed(cohort, sampler, mesh_of(8), divided=True)
    assert {shard.data.shape[0] for shard in feed._cohort.images.addressable_shards} == {128 // 8}
    odd = dataclasses.replace(
        cohort, slices=cohort.slices.reordered(np.arange(125)), case_index=cohort.case_index[:125]
    )
    odd = dataclasses.replace(odd, shapes=(*odd.shapes[:-1], (13, *odd.shapes[-1][1:])))
    feed = DeviceFeed(odd, lambda step: np.array([124, 0, 123, 5], np.int32), mesh_of(4), divided=True)
    np.testing.assert_array_equal(feed(0).images[:, 0], cohort.slices.images[[124, 0, 123, 5]])


def test_losses_are_the_same_wherever_the_slices_are(dataset_folder, data_folder):
    load = partial(load_cohort, image_size=32, normalization="volume_zscore")
    memory, disk = load(dataset_folder), load(data_folder, slices=ON_DISK)
    with jax.numpy_dtype_promotion("standard"):
        expected = twenty_losses(memory, mesh_of(1), kind=REPLICATED)
        assert twenty_losses(memory, mesh_of(1), kind=HOST) == expected
        assert twenty_losses(disk, mesh_of(1), kind=DISK) == expected


def test_the_next_steps_are_read_while_one_runs(on_disk):
    asked, step_runs = [], threading.Event()

    def slow_sampler(step):
        asked.append(step)
        return sampler(step)

    feed = HostFeed(on_disk, slow_sampler, mesh_of(1))
    feed(4)
    deadline = time.monotonic() + 20
    while len(asked) <= AHEAD and time.monotonic() < deadline:
        step_runs.wait(0.01)
    assert not step_runs.wait(0.3)  # wait for more: memory must hold no further batches
    assert sorted(asked) == list(range(4, 5 + AHEAD))
    feed.close()


def damage(folder):
    path = folder / "slices.array_record"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm", [damage, lambda folder: (folder / "slices.array_record").unlink()], ids=["flipped bit", "file gone"]
)
def test_a_damaged_file_is_refused_with_its_name(on_disk, tmp_path, harm):
    folder = tmp_path / "store"
    shutil.copytree(store_of(on_disk), folder)
    harm(folder)
    slices = slice_store.SlicesOnDisk(folder, shape=(64, 64, 3), bits=np.dtype(np.uint8), count=128)
    with pytest.raises(InputError, match=r"store: damaged .*Delete this folder"):
        slices.read_range(0, 128)
    feed = HostFeed(
        dataclasses.replace(on_disk, slices=slices), lambda step: np.arange(128, dtype=np.int32), mesh_of(1)
    )
    with pytest.raises(InputError, match=r"store: damaged"):
        feed(0)
    feed.close()


def test_a_damaged_index_is_refused(on_disk, tmp_path):
    folder = tmp_path / "store"
    shutil.copytree(store_of(on_disk), folder)
    (folder / "cases.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"store: damaged .*Delete this folder"):
        slice_store.read_index(folder)
    assert slice_store.read_index(tmp_path / "nothing") is None


def test_an_index_of_something_else_is_refused(data_folder):
    load = partial(load_cohort, data_folder, image_size=48, normalization="volume_zscore", slices=ON_DISK)
    folder = store_of(load())
    np.savez(folder / "cases.npz", name=np.array(["a"]))
    for slices in (ON_DISK, NO_SLICES):
        with pytest.raises(InputError, match=r"48px.*: damaged .*Delete this folder"):
            load(slices=slices)
    shutil.rmtree(folder)
    cohort = load()
    shutil.copy(store_of(load(view="coronal")) / "slices.array_record", store_of(cohort))
    with pytest.raises(InputError, match=r"damaged \(2048 slices in slices\.array_record, 128 in cases\.npz"):
        cohort.slices.read_range(0, 2)


def test_other_content_has_another_file(data_folder, on_disk, monkeypatch):
    load = partial(load_cohort, data_folder, normalization="volume_zscore", slices=ON_DISK)
    assert store_of(load(image_size=64)) == store_of(on_disk)
    assert store_of(load(image_size=80, pixel_spacing=4.0)) != store_of(load(image_size=80, pixel_spacing=4.0000001))
    monkeypatch.setattr("brainseg_jax.data.load_cohort.FORMAT", 0)
    assert store_of(load(image_size=64)) != store_of(on_disk)


def test_the_file_is_in_the_requested_folder(data_folder, tmp_path):
    load = partial(load_cohort, data_folder, image_size=32, normalization="rescale", slices=ON_DISK)
    assert store_of(load()).parent == data_folder.parents[2] / "slices"
    assert store_of(load(slices_dir=tmp_path)).parent == tmp_path / "slices"


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path):
    folder = tmp_path / "slices" / "of_a_cohort"
    killed = folder.parent / "incomplete-killed"
    killed.mkdir(parents=True)
    (folder.parent / "incomplete-killed.lock").touch()
    (killed / "slices.array_record").write_bytes(b"half")
    seen = []

    def during():
        (own,) = (path for path in folder.parent.iterdir() if path.is_dir())  # that of the killed process is gone
        slice_store.write_slices(folder.with_name("other"), two_slices(), dict, expected_bytes=1)
        seen.append(own.exists())
        yield from two_slices()

    slice_store.write_slices(folder, during(), dict, expected_bytes=1)
    assert seen == [True]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["of_a_cohort", "other"]
    assert sorted(path.name for path in folder.iterdir()) == ["cases.npz", "slices.array_record"]


def test_a_file_system_without_locks_will_do(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(slice_store.fcntl, "flock", no_locks)
    (tmp_path / "slices" / "incomplete-other").mkdir(parents=True)  # perhaps of a process that writes it
    slice_store.write_slices(tmp_path / "slices" / "own", two_slices(), dict, expected_bytes=1)
    assert {"own", "incomplete-other"} <= {path.name for path in (tmp_path / "slices").iterdir()}


def two_slices():
    return iter([(np.zeros((2, 4, 4, 3), np.uint8), np.ones((2, 4, 4, 1), np.uint8))])


def test_of_two_that_write_the_second_uses_the_file_of_the_first(tmp_path):
    folder = tmp_path / "slices" / "of_a_cohort"

    def second():
        slice_store.write_slices(folder, two_slices(), lambda: {"by": np.array("first")}, expected_bytes=1)
        return {"by": np.array("second")}

    slice_store.write_slices(folder, two_slices(), second, expected_bytes=1)
    assert slice_store.read_index(folder)["by"] == "first"
    assert list(folder.parent.iterdir()) == [folder]


def test_nothing_is_left_of_what_could_not_be_written(tmp_path, monkeypatch):
    folder = tmp_path / "slices" / "of_a_cohort"
    with pytest.raises(InputError, match=r"of_a_cohort: .* need up to 1048576.00 GiB, but only .* are free; make room"):
        slice_store.write_slices(folder, two_slices(), dict, expected_bytes=2**50)

    def fails():
        yield from two_slices()
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"of_a_cohort: cannot be written to .*No space left"):
        slice_store.write_slices(folder, fails(), dict, expected_bytes=1)
    assert not folder.parent.exists()


def test_slices_too_large_are_listed_before_a_file_is_there(data_folder):
    load = partial(load_cohort, data_folder, image_size=16, normalization="rescale", pixel_spacing=1.0)
    for slices in (IN_MEMORY, ON_DISK, NO_SLICES):
        with pytest.raises(InputError, match=r"and 3 more are larger than data\.image_size=16 at 1 mm per pixel"):
            load(slices=slices)
    assert not list((data_folder.parents[2] / "slices").glob("*_16px_*"))
    assert not list((data_folder.parents[2] / "slices").glob("incomplete-*"))
