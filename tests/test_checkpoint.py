"""Latest and best are kept whatever the scores do, and come back whole on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from brainseg_jax import sharding
from brainseg_jax.training.checkpoint import Checkpoints, LoopState
from brainseg_jax.training.state import TrainState


def state_on(devices, step, fill):
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    state = TrainState(
        step=np.asarray(step, np.int32),
        params={"kernel": np.full((3, 2), fill, np.float32)},
        batch_stats={"mean": np.full(2, fill + 1, np.float32)},
        opt_state=(np.full(2, fill + 2, np.float32),),
        ema_params=None,
        learning_rate_scale=np.asarray(0.1, np.float32),
    )
    return jax.tree.map(lambda x: sharding.put(x, sharding.replicated(mesh)), state)


@pytest.mark.parametrize(
    ("scores", "kept", "best"),
    [
        ([0.5, 0.9, 0.3, 0.2], {20, 40}, 20),  # falling
        ([0.1, 0.2, 0.3, 0.4], {40}, 40),  # rising
        ([0.7, 0.7, 0.7, 0.7], {10, 40}, 10),  # tied: the earliest
        ([0.0, 0.0, 0.0, 0.0], {10, 40}, 10),  # collapsed
    ],
)
def test_retention(tmp_path, scores, kept, best):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for i, score in enumerate(scores, start=1):
        checkpoints.save(state_on(1, 10 * i, i), LoopState(epoch=i), dice=score)
    checkpoints.wait()
    assert {int(p.name) for p in (tmp_path / "checkpoints").iterdir()} == kept
    assert (checkpoints.latest_step(), checkpoints.best_step()) == (40, best)
    checkpoints.close()


def test_round_trip_to_another_number_of_devices(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    saved, loop = state_on(8, 7, 0.1), LoopState(epoch=3, best_dice=0.123456789, best_epoch=2, plateau_wait=1)
    checkpoints.save(saved, loop, dice=0.5)
    checkpoints.close()
    restored, loop_restored = Checkpoints(tmp_path / "checkpoints").restore(7, like=state_on(1, 0, 0.0))
    assert loop_restored == loop
    jax.tree.map(np.testing.assert_array_equal, restored, saved)
    assert restored.params["kernel"].sharding.num_devices == 1


def test_donating_right_after_a_save_spoils_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    state = state_on(1, 1, 2.0)
    checkpoints.save(state, LoopState(), dice=0.5)
    jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0)(state)
    checkpoints.wait()
    restored, _ = checkpoints.restore(1, like=state_on(1, 0, 0.0))
    np.testing.assert_array_equal(restored.params["kernel"], 2.0)
    checkpoints.close()
