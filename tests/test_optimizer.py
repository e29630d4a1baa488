"""Schedules and optimizers against values by hand and the formulas of their papers."""

import jax.numpy as jnp
import numpy as np
import pytest

from brainseg_jax.errors import InputError
from brainseg_jax.training.optimizer import build_optimizer, build_schedule

pytestmark = pytest.mark.usefixtures("optax_promotion")


def test_warmup_cosine():
    schedule = build_schedule("cosine", learning_rate=2.0, total_steps=50, warmup_steps=10)
    values = [float(schedule(step)) for step in (0, 5, 10, 30, 50)]
    np.testing.assert_allclose(values, [0.0, 1.0, 2.0, 1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("name", ["plateau", "constant"])
def test_constant(name):
    schedule = build_schedule(name, learning_rate=0.5, total_steps=10, warmup_steps=0)
    assert [float(schedule(step)) for step in (0, 9)] == [0.5, 0.5]


def adamw(params, gradients, *, rate, b2, decay, clip):
    """Loshchilov and Hutter 2019, algorithm 2, in float64, gradients clipped by global norm first."""
    first = second = 0.0
    for t, g in enumerate(gradients, start=1):
        g = g * min(1.0, clip / np.linalg.norm(g))
        first, second = 0.9 * first + 0.1 * g, b2 * second + (1 - b2) * g**2
        step = (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - b2**t)) + 1e-8)
        params = params - rate * (step + decay * params)
    return params


def test_adamw_with_clipping():
    start, gradients = np.array([[1.0, -2.0]]), [np.array([[0.3, 4.0]]), np.array([[-0.2, 0.1]])]
    optimizer = build_optimizer("adamw", lambda step: 0.1, b2=0.99, weight_decay=0.01, clip_norm=1.0)
    params = {"kernel": jnp.asarray(start)}
    state = optimizer.init(params)
    for g in gradients:
        updates, state = optimizer.update({"kernel": jnp.asarray(g)}, state, params)
        params = {"kernel": params["kernel"] + updates["kernel"]}
    expected = adamw(start, gradients, rate=0.1, b2=0.99, decay=0.01, clip=1.0)
    np.testing.assert_allclose(params["kernel"], expected, rtol=1e-5)


def test_biases_and_scales_do_not_decay():
    optimizer = build_optimizer("adamw", lambda step: 1.0, b2=0.99, weight_decay=0.5, clip_norm=0.0)
    params = {"bias": jnp.ones(3), "kernel": jnp.ones((3, 3))}
    zero = {"bias": jnp.zeros(3), "kernel": jnp.zeros((3, 3))}
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["bias"], 0.0)
    np.testing.assert_allclose(updates["kernel"], -0.5)


def test_mistakes():
    with pytest.raises(InputError, match=r"sgd.*adam, adamw"):
        build_optimizer("sgd", lambda step: 0.1, b2=0.99, weight_decay=0.0, clip_norm=0.0)
    with pytest.raises(InputError, match=r"weight_decay=0.1 has no effect with adam"):
        build_optimizer("adam", lambda step: 0.1, b2=0.99, weight_decay=0.1, clip_norm=0.0)
    with pytest.raises(InputError, match=r"adamw without weight decay"):
        build_optimizer("adamw", lambda step: 0.1, b2=0.99, weight_decay=0.0, clip_norm=0.0)
    with pytest.raises(InputError, match=r"linear.*plateau, cosine, constant"):
        build_schedule("linear", learning_rate=0.1, total_steps=10, warmup_steps=0)
