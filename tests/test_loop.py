"""The loop's small decisions: what is best, when the learning rate falls, when to stop."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from brainseg_jax import sharding
from brainseg_jax.training import loop as story
from brainseg_jax.training.checkpoint import LoopState
from brainseg_jax.training.state import TrainState


class OnlyMesh:
    mesh = sharding.data_mesh()


def after(scores, patience=2, start=1e-4):
    """Learning rates and best epochs after each epoch's score, with the factor and floor of the Keras project."""
    config = ConfigDict(
        {
            "schedule": "plateau",
            "plateau_factor": 0.1,
            "plateau_patience": patience,
            "plateau_min": 1e-6,
            "learning_rate": start,
        }
    )
    one = sharding.put(np.ones((), np.float32), sharding.replicated(OnlyMesh.mesh))
    state = TrainState(one, {}, {}, (), None, learning_rate_scale=one)
    loop, rates, best = LoopState(), [], []
    for score in scores:
        loop = story._advance(loop, score)
        state, loop = story._lower_on_plateau(state, loop, config, OnlyMesh)
        rates.append(start * float(state.learning_rate_scale))
        best.append(loop.best_epoch)
    return rates, best


def test_the_rate_falls_on_a_plateau_and_no_further_than_its_floor():
    rates, best = after([0.5, 0.4, 0.5, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    expected = [1e-4, 1e-4, 1e-5, 1e-5, 1e-5, 1e-6, 1e-6, 1e-6, 1e-6, 1e-6]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert best == [1, 1, 1, 4, 4, 4, 4, 4, 4, 4]  # an equal score is not a better one


@pytest.mark.parametrize(
    ("epoch", "patience", "over"), [(17, 15, False), (18, 15, True), (18, 0, False), (20, 0, True), (20, 99, True)]
)
def test_the_end(epoch, patience, over):
    loop = LoopState(epoch=epoch, best_epoch=3)
    assert story._is_over(loop, ConfigDict({"epochs": 20, "early_stop_patience": patience})) is over


def test_other_schedules_are_left_alone():
    config = ConfigDict({"schedule": "cosine", "plateau_patience": 0})
    state, loop = object(), LoopState(plateau_wait=9)
    assert story._lower_on_plateau(state, loop, config, OnlyMesh) == (state, loop)
