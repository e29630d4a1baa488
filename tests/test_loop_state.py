"""The decisions of the training loop: best score, learning rate on a plateau, early stop."""

import numpy as np
import pytest

from brainseg_jax import sharding
from brainseg_jax.training.loop_state import LoopState, add_time, advance, is_over, lower_on_plateau
from brainseg_jax.training.state import TrainState

MESH = sharding.data_mesh()


def after(scores, patience=2, start=1e-4):
    """Learning rates and best epochs after each score, with the factor and floor of the Keras project."""
    one = sharding.put(np.ones((), np.float32), sharding.replicated(MESH))
    state = TrainState(one, {}, {}, (), None, learning_rate_scale=one)
    loop, rates, best = LoopState(), [], []
    for score in scores:
        loop = advance(loop, score)
        state, loop = lower_on_plateau(state, loop, patience=patience, factor=0.1, minimum=1e-6 / start, mesh=MESH)
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
    assert is_over(loop, epochs=20, early_stop_patience=patience) is over


def test_epochs_without_a_right_pixel_are_counted_in_a_row():
    loop, counts = LoopState(losses=(1.0,)), []
    for score in [0.0, 0.0, 0.1, 0.0, 0.0, 0.0]:
        loop = advance(loop, score)
        counts.append(loop.zero_epochs)
    assert counts == [1, 2, 0, 1, 2, 3] and loop.losses == ()


def test_a_cosine_falls_by_the_time_that_is_gone_and_leaves_room_for_a_validation():
    one = sharding.put(np.ones((), np.float32), sharding.replicated(MESH))
    state = TrainState(one, {}, {}, (), None, learning_rate_scale=one)
    loop, seen = LoopState(validation_seconds=20.0), []
    for seconds in (0.0, 20.0, 20.0, 39.0, 1.0):  # of 100, 80 of them for training
        state, loop = add_time(state, loop, seconds, limit=100.0, cosine=True, mesh=MESH)
        seen.append((round(float(state.learning_rate_scale), 4), loop.out_of_time))
    assert seen[:3] == [(1.0, False), (0.8536, False), (0.5, False)]  # (1 + cos(pi / 4)) / 2, (1 + cos(pi / 2)) / 2
    assert 0 < seen[3][0] < 1e-3 and not seen[3][1]
    assert seen[4] == (0.0, True) and is_over(loop, epochs=99, early_stop_patience=0)
