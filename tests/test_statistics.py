"""Intervals and paired tests against sums by hand, R's documented example and normal theory."""

import numpy as np
import pytest
from scipy import stats

from brainseg_jax.evaluation.statistics import compare_pairs, holm, mean_interval, median_interval


def test_ranks_by_hand():
    # |d| ranks: 0.1 -> 1, 0.2 twice -> 2.5 each, 0.4 -> 4; up 2.5 + 4, down 1 + 2.5, of 10.
    found = compare_pairs(np.array([0.4, -0.1, 0.2, 0.0, -0.2]))
    assert found.effect == pytest.approx((6.5 - 3.5) / 10)
    assert (found.increased, found.decreased) == (2, 2)


def test_six_that_all_rise():
    """All 2 ** 6 signs are equally likely, and two of them are this one-sided."""
    found = compare_pairs(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))
    assert (found.p, found.effect) == (pytest.approx(2 / 64), 1.0)
    assert compare_pairs(np.array([-0.1, -0.2, -0.3, -0.4, -0.5, -0.6])).effect == -1.0


def test_many_pairs_are_as_the_normal_approximation_says():
    change = np.random.default_rng(0).normal(0.02, 0.1, size=60)
    ranks = stats.rankdata(np.abs(change))
    smaller = min(ranks[change > 0].sum(), ranks[change < 0].sum())
    z = (smaller - 60 * 61 / 4) / np.sqrt(60 * 61 * 121 / 24)
    assert compare_pairs(change).p == pytest.approx(2 * stats.norm.cdf(z), abs=2e-3)


def test_pairs_that_do_not_differ():
    assert compare_pairs(np.zeros(5)) == (None, None, 0, 0)


def test_holm_by_hand():
    # In order 0.005 x 4, 0.01 x 3, 0.03 x 2, then 0.04 x 1, which may not be less than the 0.06 before it.
    assert holm([0.01, 0.04, 0.03, None, 0.005]) == pytest.approx([0.03, 0.06, 0.06, None, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == [] and holm([0.02]) == [0.02]


def test_the_interval_of_a_median_is_that_of_order_statistics():
    """By the binomial distribution the median of 400 values is between the 181st and the 220th with 95 %."""
    values = np.sort(np.random.default_rng(1).normal(size=400))
    assert median_interval(values) == pytest.approx([values[180], values[219]], abs=0.05)


@pytest.mark.parametrize("interval", [mean_interval, median_interval])
def test_too_few_or_all_alike(interval):
    assert interval(np.array([0.1, 0.2])) is None and interval(np.full(9, 0.5)) is None
