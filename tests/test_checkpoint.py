"""Checkpoints: the latest two and the best are kept, are restored on other devices, or are reported as damaged."""

import dataclasses
import json
import math
import shutil
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import fill
from jax.sharding import AxisType

from brainseg_jax import sharding
from brainseg_jax.errors import InputError, StorageError
from brainseg_jax.runs.checkpoint import DAMAGED, Checkpoints
from brainseg_jax.training.loop_state import LoopState
from brainseg_jax.training.state import TrainState

# After a failed read the garbage collector may later warn about Orbax's coroutines.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state_on(devices, step, fill, features=2):
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    rng = np.random.default_rng(step)
    state = TrainState(
        step=np.asarray(step, np.int32),
        params={"kernel": rng.normal(fill, size=(33, features)).astype(np.float32)},
        batch_stats={"mean": np.full(2, fill + 1, np.float32)},
        opt_state=(np.full(2, fill + 2, np.float32),),
        ema_params=None,
        learning_rate_scale=np.asarray(0.1, np.float32),
    )
    return jax.tree.map(lambda x: sharding.put(x, sharding.replicated(mesh)), state)


def save_all(folder, scores):
    checkpoints = Checkpoints(folder)
    for i, score in enumerate(scores, start=1):
        best = max(filter(lambda s: s is not None, scores[:i]), default=-1.0)
        loop = LoopState(epoch=i, best_dice=best, best_epoch=scores.index(best) + 1 if best in scores else 0)
        checkpoints.save(state_on(1, 10 * i, i), loop, score=score)
    checkpoints.close()
    return Checkpoints(folder)


@pytest.mark.parametrize(
    ("scores", "kept", "best"),
    [
        ([0.5, 0.9, 0.3, 0.2, 0.1], {20, 40, 50}, 20),  # falling
        ([0.1, 0.2, 0.3, 0.4, 0.5], {40, 50}, 50),  # rising
        ([0.7, 0.7, 0.7, 0.7, 0.7], {10, 40, 50}, 10),  # tied: the earliest
        ([0.0, 0.0, 0.0, 0.0, 0.0], {10, 40, 50}, 10),  # collapsed
        ([math.nan, 0.3, math.nan, 0.2, math.nan], {20, 40, 50}, 20),
        ([math.nan] * 5, {10, 40, 50}, 10),
        ([0.3, 0.2, 0.1, None, None], {10, 40, 50}, 10),  # saved off schedule: not scored
        ([None] * 3, {10, 20, 30}, 10),
    ],
)
def test_retention(tmp_path, scores, kept, best):
    checkpoints = save_all(tmp_path / "checkpoints", scores)
    assert {int(p.name) for p in (tmp_path / "checkpoints").iterdir()} == kept == set(checkpoints.steps())
    state, loop = checkpoints.recover(like=state_on(1, 0, 0.0))
    assert int(state.step) == 10 * len(scores) and loop.epoch == len(scores)
    assert checkpoints.best_step() == best  # read back from disk, not remembered
    checkpoints.close()


def test_records_of_older_runs_call_the_score_dice(tmp_path):
    save_all(tmp_path / "checkpoints", [0.2, 0.3, 0.9]).close()
    for path in (tmp_path / "checkpoints").glob("*/record/metadata"):
        record = json.loads(path.read_text())
        record["dice"] = record.pop("score")
        del record["crc32"]
        record["crc32"] = zlib.crc32(json.dumps(record, sort_keys=True).encode())
        path.write_text(json.dumps(record))
    state = Checkpoints(tmp_path / "checkpoints", read_only=True).restore_best(like=state_on(1, 0, 0.0))
    assert int(state.step) == 30


def test_round_trip_to_another_number_of_devices(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    loop = LoopState(epoch=3, best_dice=0.123456789, best_epoch=2, plateau_wait=1, losses=(0.1, 1 / 3))
    for step, there, back in ((1, 8, 1), (2, 1, 8)):
        saved = state_on(there, step, 0.1)
        checkpoints.save(saved, loop, score=0.5)
        checkpoints.wait()
        restored, loop_restored = checkpoints.restore(step, like=state_on(back, 0, 0.0))
        assert loop_restored == loop
        chex.assert_trees_all_equal(restored, saved)
        assert restored.params["kernel"].sharding.num_devices == back
    checkpoints.close()


def test_donating_right_after_a_save_spoils_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    state = state_on(1, 1, 2.0)
    expected = np.array(state.params["kernel"])
    checkpoints.save(state, LoopState(), score=0.5)
    jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0)(state)
    checkpoints.wait()
    restored, _ = checkpoints.restore(1, like=state_on(1, 0, 0.0))
    np.testing.assert_array_equal(restored.params["kernel"], expected)
    checkpoints.close()


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage", [flip_a_bit, truncate, lambda path: path.unlink(), lambda path: path.write_bytes(b"")]
)
def test_damage_to_any_file_of_the_newest_step(tmp_path, damage, caplog):
    """Damages each file in turn. The restored step is the newest, bit for bit, or the one before with a message."""
    whole = tmp_path / "whole"
    save_all(whole / "checkpoints", [0.1, 0.2, 0.3]).close()
    names = [p.relative_to(whole) for p in sorted((whole / "checkpoints" / "30").rglob("*")) if p.is_file()]
    found = {}
    for i, name in enumerate(names):
        run = tmp_path / str(i)
        shutil.copytree(whole, run)
        damage(run / name)
        caplog.clear()
        checkpoints = Checkpoints(run / "checkpoints")
        state, loop = checkpoints.recover(like=state_on(1, 0, 0.0))
        found[str(name)] = step = int(state.step)
        assert step in (20, 30) and loop.epoch == step // 10
        chex.assert_trees_all_equal(state, state_on(1, step, step / 10))
        assert (run / DAMAGED / "30.0").exists() == (step == 20)
        assert checkpoints.steps() == [20] if step == 20 else [20, 30]
        if step == 20:
            assert f"{run}/checkpoints/30 is damaged" in caplog.text and f"{run}/{DAMAGED}/30.0" in caplog.text
        checkpoints.save(state_on(1, 30, 3), dataclasses.replace(loop, epoch=3), score=0.3) if step == 20 else None
        checkpoints.close()
    assert sum(step == 20 for step in found.values()) >= 3, found  # not all files matter; those with the arrays do


def test_all_damaged_is_an_end_and_changes_nothing(tmp_path):
    checkpoints = save_all(tmp_path / "checkpoints", [0.1, 0.2])
    for step in (10, 20):
        shutil.rmtree(tmp_path / "checkpoints" / str(step) / "state")
    before = sorted(tmp_path.rglob("*"))
    for _ in range(2):  # the second start is no fresh start either
        with pytest.raises(
            StorageError, match=r"(?s)all checkpoints of this run are damaged.*20 is damaged.*10 is damaged.*--workdir"
        ):
            checkpoints.recover(like=state_on(1, 0, 0.0))
    assert sorted(tmp_path.rglob("*")) == before
    checkpoints.close()


def test_a_lost_best_is_reported_and_the_next_best_replaces_it(tmp_path, caplog):
    checkpoints = save_all(tmp_path / "checkpoints", [0.9, 0.2, 0.4, 0.3])
    shutil.rmtree(tmp_path / "checkpoints" / "10" / "state")
    state, loop = checkpoints.recover(like=state_on(1, 0, 0.0))
    assert int(state.step) == 40 and checkpoints.best_step() == 30
    assert (loop.best_dice, loop.best_epoch) == (0.4, 3)
    assert "best epoch, 1 (validation Dice 0.9000), is lost" in caplog.text
    checkpoints.close()


def test_arrays_of_another_network_are_refused_with_what_differs(tmp_path):
    checkpoints = save_all(tmp_path / "checkpoints", [0.1])
    words = (
        r"(?s)checkpoints/10 has another network.*'kernel'\]: float32 \[33, 2\] in the checkpoint, float32 \[33, 5\]"
    )
    with pytest.raises(InputError, match=words):
        checkpoints.recover(like=state_on(1, 0, 0.0, features=5))
    assert checkpoints.steps() == [10]
    checkpoints.close()


def test_a_full_disk_surfaces_also_on_the_last_save(small_disk):
    """Saves are asynchronous; after the last save no other one can meet the error."""
    checkpoints = save_all(small_disk / "checkpoints", [0.1])
    fill(small_disk)
    with pytest.raises(
        StorageError, match=rf"cannot be written in {small_disk}/checkpoints: .*Earlier steps are intact"
    ):
        checkpoints.save(state_on(1, 20, 2), LoopState(epoch=2), score=0.5)
        checkpoints.wait()
    (small_disk / "ballast").unlink()
    state, loop = Checkpoints(small_disk / "checkpoints").recover(like=state_on(1, 0, 0.0))
    assert (int(state.step), loop.epoch) == (10, 1)


def test_arrays_that_are_readable_but_not_those_that_were_written(tmp_path, caplog):
    """Orbax reads them without an error: here the arrays of another step."""
    checkpoints = save_all(tmp_path / "checkpoints", [0.1, 0.2])
    shutil.rmtree(tmp_path / "checkpoints" / "20" / "state")
    shutil.copytree(tmp_path / "checkpoints" / "10" / "state", tmp_path / "checkpoints" / "20" / "state")
    state, _ = checkpoints.recover(like=state_on(1, 0, 0.0))
    assert int(state.step) == 10
    assert "checkpoints/20 is damaged: .step, .params['kernel']" in caplog.text
    assert "differ from their checksums" in caplog.text
    checkpoints.close()
