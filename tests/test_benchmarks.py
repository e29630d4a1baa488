"""What the benchmarks compute of their timings; the timings themselves are run by hand, see benchmarks/README.md."""

import pytest

from benchmarks.growth import exponent
from benchmarks.on_paper import all_reduce_seconds


def test_exponent_of_growth():
    assert exponent(None, 64, 10.0) is None
    assert exponent((64, 10.0), 128, 40.0) == pytest.approx(2.0)  # twice as far, four times as long
    assert exponent((8, 12.0), 16, 12.0) == pytest.approx(0.0)


def test_all_reduce_over_eight_cards():
    # 450 MB at 450 GB/s is 1 ms; a ring of eight sends 14/8 of it; 2 norms and the loss are 5 small ones of 15 us.
    assert all_reduce_seconds(450e6, norms=2) == pytest.approx(1.75e-3 + 75e-6)
