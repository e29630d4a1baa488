"""The stream of training slices: each once a pass, from any step, with the share of tumor asked for."""

import numpy as np
import pytest

from brainseg_jax.data.sampling import BatchSampler
from brainseg_jax.errors import InputError

SLICES = np.arange(100, 123)
HAS_TUMOR = np.arange(23) % 4 == 0  # six of them


def sampler(**options):
    return BatchSampler(**{"slices": SLICES, "has_tumor": HAS_TUMOR, "batch_size": 5, "seed": 3} | options)


def test_each_slice_once_a_pass():
    stream = np.concatenate([sampler()(step) for step in range(23)])  # 115 draws: five passes of 23
    passes = stream.reshape(5, 23)
    for one in passes:
        assert sorted(one) == SLICES.tolist()
    assert len({tuple(one) for one in passes}) == 5  # each in another order


def test_a_step_does_not_depend_on_the_ones_before():
    in_order = [sampler()(step) for step in range(12)]
    for step in (11, 0, 7):
        np.testing.assert_array_equal(sampler()(step), in_order[step])


def test_seeds_differ():
    assert not np.array_equal(sampler()(0), sampler(seed=4)(0))


def test_tumor_share():
    draws = sampler(tumor_share=0.4)
    tumor = set(SLICES[HAS_TUMOR])
    batches = [draws(step) for step in range(3)]
    assert [sum(i in tumor for i in batch) for batch in batches] == [2, 2, 2]
    assert {i for batch in batches for i in batch if i in tumor} == tumor  # six draws: one whole pass


def test_a_share_that_cannot_be_drawn():
    with pytest.raises(InputError, match=r"with tumor.*tumor_sampling=0"):
        sampler(has_tumor=np.zeros(23, bool), tumor_share=0.5)
    with pytest.raises(InputError, match=r"1\.5 must lie in \[0, 1\]"):
        sampler(tumor_share=1.5)


def test_the_order_is_fixed_for_good():
    """Raw Philox output, computed with another implementation of it: the order may never change under a saved run."""

    def philox(key, counter):
        mask, low, high = (1 << 64) - 1, key & ((1 << 64) - 1), 0
        a, b, c, d = counter
        for _ in range(10):
            first, second = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
            a, b, c, d = (second >> 64) ^ b ^ low, second & mask, (first >> 64) ^ d ^ high, first & mask
            low, high = (low + 0x9E3779B97F4A7C15) & mask, (high + 0xBB67AE8584CAA73B) & mask
        return [a, b, c, d]

    words = [w for block in range(6) for w in philox(3, [block + 1, 0, 0, 0])][:23]  # numpy counts up before it draws
    order = sorted(range(23), key=lambda i: words[i])
    np.testing.assert_array_equal(sampler()(0), SLICES[order[:5]])
