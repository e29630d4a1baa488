"""What a sample of patients can say: bootstrap intervals, a paired test with its effect size, many tests at once."""

from typing import NamedTuple

import numpy as np
import scipy  # whose parts are loaded where they are first asked for

RESAMPLES = 10_000
_VALUES_AT_ONCE = 1_000_000  # of all resamples, so that memory does not grow with the patients; no figure depends on it


def mean_interval(values: np.ndarray) -> list[float] | None:
    """95 % bootstrap interval of the mean (BCa; Efron 1987), fixed seed.

    Args:
      values: [n], one a patient.

    Returns:
      [low, high]; None for fewer than 3 values or where all are alike.
    """
    return _interval(values, np.mean, "BCa")


def median_interval(values: np.ndarray) -> list[float] | None:
    """As `mean_interval`, of the median.

    It is the percentile interval: the jackknife on which BCa rests is not consistent for a median (Efron and
    Tibshirani 1993, section 11.6).
    """
    return _interval(values, np.median, "percentile")


def _interval(values: np.ndarray, statistic: np.ufunc, method: str) -> list[float] | None:
    if len(values) < 3 or np.ptp(values) == 0.0:
        return None
    found = scipy.stats.bootstrap(
        (values,),
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, _VALUES_AT_ONCE // len(values)),
        method=method,
        rng=np.random.default_rng(0),
    ).confidence_interval
    ends = [float(found.low), float(found.high)]
    return ends if np.isfinite(ends).all() else None  # of a few values that are nearly alike


class Paired(NamedTuple):
    """A paired comparison.

    Attributes:
      p: two-sided, of the Wilcoxon signed-rank test; None where no pair differs.
      effect: matched-pairs rank-biserial correlation (Kerby 2014, doi.org/10.2466/11.IT.3.1): the share of the ranks
        that speaks for an increase less the share that speaks against it, -1 to 1; None where no pair differs.
      increased: pairs in which the value rose.
      decreased: pairs in which it fell.
    """

    p: float | None
    effect: float | None
    increased: int
    decreased: int


def compare_pairs(change: np.ndarray) -> Paired:
    """Wilcoxon signed-rank test on the differences of pairs; pairs that do not differ are left out, as Wilcoxon did.

    Args:
      change: [n] finite differences, one a patient.
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
    """Adjusts the p-values of a family of tests, so that the chance of one false finding or more keeps to the level.

    Holm 1979, "A simple sequentially rejective multiple test procedure": the k-th smallest of m is multiplied by
    m - k + 1, is no less than the ones before it, and at most 1.

    Args:
      p_values: in [0, 1]; None, a test that could not be made, does not count.

    Returns:
      the adjusted ones, in the same order.
    """
    tests = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for k, (p, i) in enumerate(tests):
        least = max(least, min(1.0, p * (len(tests) - k)))
        adjusted[i] = least
    return adjusted
