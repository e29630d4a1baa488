"""What the benchmarks compute of their timings; the timings themselves are run by hand, see benchmarks/README.md."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from benchmarks.growth import exponent
from benchmarks.on_paper import all_reduce_seconds
from benchmarks.profile_step import operators
from brainseg_jax import ops


def test_exponent_of_growth():
    assert exponent(None, 64, 10.0) is None
    assert exponent((64, 10.0), 128, 40.0) == pytest.approx(2.0)  # twice as far, four times as long
    assert exponent((8, 12.0), 16, 12.0) == pytest.approx(0.0)


def test_all_reduce_over_eight_cards():
    # 450 MB at 450 GB/s is 1 ms; a ring of eight sends 14/8 of it; 2 norms and the loss are 5 small ones of 15 us.
    assert all_reduce_seconds(450e6, norms=2) == pytest.approx(1.75e-3 + 75e-6)


def compiled_operators(channels, features):
    def step(x, kernel):
        return jax.grad(lambda *given: jnp.sum(ops.conv3x3(*given) ** 2), (0, 1))(x, kernel)

    shapes = jnp.zeros((1, 8, 8, channels)), jnp.zeros((3, 3, channels, features))
    return operators(jax.jit(step, compiler_options=ops.compiler_options()).lower(*shapes).compile().as_text())


def test_convolutions_of_a_compiled_step_are_told_apart():
    wide = Counter(operator.kind for operator in compiled_operators(32, 40).values())
    assert [wide[kind] for kind in ("convolution", "input gradient", "kernel gradient")] == [6, 6, 1]
    found = compiled_operators(2, 3)
    kinds = Counter(operator.kind for operator in found.values())
    assert [kinds[kind] for kind in ("convolution", "input gradient", "kernel gradient")] == [1, 1, 1]
    (forward,) = (operator for operator in found.values() if operator.kind == "convolution")
    assert forward.moved == 4 * (8 * 8 * 2 + 3 * 3 * 2 * 3 + 8 * 8 * 3)
