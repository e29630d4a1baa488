"""Statistics over patients: bootstrap intervals, a paired test with effect size, and a correction for many tests."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy  # loads its submodules on first use

RESAMPLES = 10_000
_VALUES_AT_ONCE = 1_000_000  # per batch of resamples; bounds the memory and does not change results


def mean_interval(values: np.ndarray) -> list[float] | None:
    """Returns the 95 % bootstrap interval of the mean (BCa; Efron 1987), with a fixed seed.

    Args:
      values: [n], one per patient.

    Returns:
      [low, high]; None for fewer than 3 values, if all are equal, or for a few nearly equal values.
    """
    return _interval(values, np.mean, "BCa")


def median_interval(values: np.ndarray) -> list[float] | None:
    """Like `mean_interval`, for the median.

    It is the percentile interval: BCa uses the jackknife, which is not consistent for a median (Efron and Tibshirani
    1993, section 11.6).
    """
    return _interval(values, np.median, "percentile")


def _interval(
    values: np.ndarray, statistic: Callable[..., np.ndarray | np.floating], method: str
) -> list[float] | None:
    if len(values) < 3 or np.ptp(values) == 0.0:
        return None
    interval = scipy.stats.bootstrap(
        (values,),
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, _VALUES_AT_ONCE // len(values)),
        method=method,
        rng=np.random.default_rng(0),
    ).confidence_interval
    ends = [float(interval.low), float(interval.high)]
    return ends if np.isfinite(ends).all() else None  # not finite for a few nearly equal values


class Paired(NamedTuple):
    """A paired comparison.

    Attributes:
      p: two-sided p-value of the Wilcoxon signed-rank test; None if no pair differs.
      effect: matched-pairs rank-biserial correlation (Kerby 2014, doi.org/10.2466/11.IT.3.1), -1 to 1: the fraction of
        the ranks with an increase minus the fraction with a decrease. None if no pair differs.
      increased: number of pairs with an increase.
      decreased: number of pairs with a decrease.
    """

    p: float | None
    effect: float | None
    increased: int
    decreased: int


def compare_pairs(change: np.ndarray) -> Paired:
    """Applies the Wilcoxon signed-rank test to differences of pairs; zero differences are dropped, as Wilcoxon did.

    Args:
      change: [n] finite differences, one per patient.
    """
    change = np.asarray(change, np.float64)
    differs = change[change != 0.0]
    up, down = int((differs > 0).sum()), int((differs < 0).sum())
    if not len(differs):
        return Paired(None, None, up, down)
    ranks = scipy.stats.rankdata(np.abs(differs))
    effect = float(ranks @ np.sign(differs) / ranks.sum())
    return Paired(float(scipy.stats.wilcoxon(differs).pvalue), effect, up, down)


def holm(p_values: list[float | None]) -> list[float | None]:
    """Adjusts the p-values of a family of tests, to control the probability of one or more false positives.

    Holm 1979, "A simple sequentially rejective multiple test procedure". The k-th smallest of m p-values is multiplied
    by m - k + 1. It is at least as large as the adjusted ones before it, and at most 1.

    Args:
      p_values: in [0, 1]; None (a test that was not possible) does not count.

    Returns:
      the adjusted p-values in the same order.
    """
    tests = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    minimum = 0.0
    for k, (p, i) in enumerate(tests):
        minimum = max(minimum, min(1.0, p * (len(tests) - k)))
        adjusted[i] = minimum
    return adjusted
