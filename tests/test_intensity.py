"""Intensities of a volume: outliers, padding and holes do not change the other values."""

import numpy as np
import pytest
from scipy import ndimage

from brainseg_jax.errors import InputError
from brainseg_jax.scans.intensity import to_8_bits

SHAPE = (16, 16, 6)
CORNER = (0, 0, 0)


def head():
    """Air of 0 around a box of integers from 1 to 255, with many voxels each."""
    volume = np.zeros(SHAPE, np.int16)
    volume[3:13, 3:13] = np.resize(np.arange(1, 256), (10, 10, 6))
    return volume


def scanner():
    """The same on a scanner's scale, 0 to 2550; its 99.9th percentile is that of `head`, times 10."""
    return head().astype(np.float32) * 10


def expected(volume):
    return np.rint(volume * (255.0 / np.percentile(volume, 99.9))).clip(0, 255).astype(np.uint8)


def test_whole_numbers_are_taken_as_they_are():
    for kind in (np.uint8, np.int16, np.float64):
        found, note = to_8_bits(head().astype(kind))
        np.testing.assert_array_equal(found, head())
        assert note is None
    high = head()
    high[high == 0] = 30  # no voxel holds 0
    np.testing.assert_array_equal(to_8_bits(high)[0], high)


@pytest.mark.parametrize("value", [-1, -300, -1000, -32768])
def test_a_low_voxel_in_air_moves_nothing(value):
    whole, scaled = head(), scanner()
    whole[CORNER] = scaled[CORNER] = value
    found, note = to_8_bits(whole)
    np.testing.assert_array_equal(found, head())
    assert note == f"1 voxels below 0, down to {value}, set to 0"
    found, note = to_8_bits(scaled)
    np.testing.assert_array_equal(found, expected(scanner()))
    assert note.startswith("values 0 to 25") and ("1 voxels below" in note) == (value < -255)


def test_ringing_around_zero_leaves_zero_black():
    """A tenth of the values, as after resampling at the edge of a head."""
    rings = scanner()
    rings[2, :, :] = -40.0
    found, note = to_8_bits(rings)
    np.testing.assert_array_equal(found, expected(scanner()))
    assert note.startswith("values 0 to 25")


def circle():
    rows, columns = np.ogrid[:16, :16]
    return np.broadcast_to(((rows - 7.5) ** 2 + (columns - 7.5) ** 2 > 64)[..., None], SHAPE)


@pytest.mark.parametrize("value", [-2000, -32768, 32767])
def test_padding_outside_of_a_circle_is_background(value):
    for make, clean in ((head, head()), (scanner, expected(scanner()))):
        volume = make()
        volume[circle()] = value
        found, note = to_8_bits(volume)
        np.testing.assert_array_equal(found[circle()], 0)
        np.testing.assert_array_equal(found[~circle()], clean[~circle()])
        assert f"{circle().sum()} voxels of {value}, far from all others, count as padding" in note


AIR = np.s_[0, 0, :4]  # 4 of 1 536 voxels: 0.26 %, more than the percentiles leave out


@pytest.mark.parametrize("value", [-1000, 1e6, 32767, 65535])
def test_a_few_voxels_of_padding_are_background(value):
    """The rest is `scanner`; after a z-score the background is its black."""
    for volume in (scanner(), (scanner() - 1000) / 700):
        clean, _ = to_8_bits(volume)
        volume[AIR] = value
        found, note = to_8_bits(volume)
        assert found[AIR].max() == 0 and f"4 voxels of {value:g}, far from all others, count as padding" in note
        np.testing.assert_allclose(found, clean, atol=1)  # 4 voxels less in the percentiles of the second


def test_outliers_that_differ_do_not_count():
    """The 99th percentile is about 2 500; three times beyond it are 10 000."""
    volume = scanner()
    volume[AIR] = 20000, 30000, 40000, 50000
    found, note = to_8_bits(volume)
    rest = np.delete(volume.ravel(), np.arange(4))  # the four come first
    clean = np.rint(volume * (255.0 / np.percentile(rest, 99.9))).clip(0, 255)
    np.testing.assert_array_equal(found, clean)
    assert note.endswith("; 6 voxels above, up to 50000, set to 255")  # with two of 2 550, as in any scan
    low = (scanner() - 1000) / 700
    low[AIR] = -100, -200, -300, -400
    found, note = to_8_bits(low)
    np.testing.assert_allclose(found, to_8_bits((scanner() - 1000) / 700)[0], atol=1)
    assert note.endswith("; 4 voxels below, down to -400, set to 0")


def test_bright_vessels_stay_in_the_range():
    """1 % of the voxels, from 2 to 3 times the brightest of the others, keep distinct values."""
    volume = scanner()
    volume[5:7, 5:13, 2] = np.linspace(2, 3, 16).reshape(2, 8) * 2550
    found, note = to_8_bits(volume)
    np.testing.assert_array_equal(found, expected(volume))
    assert note.startswith("values 0 to 7") and ";" not in note
    assert np.unique(found[5:7, 5:13, 2]).size >= 15 and 80 <= found[found < 160].max() <= 90  # 255 / 3


def test_padding_that_was_interpolated_leaves_zero_black():
    """Gaussian weights: the rim of the circle has all values in between; 4 of 10 other values are positive."""
    volume = scanner()
    volume[circle()] = -8000
    volume = ndimage.gaussian_filter(volume, (0.5, 0.5, 0))
    assert np.unique(volume[volume < 0]).size > 20 and (volume > 0).sum() < 2 * (volume < 0).sum()
    found, note = to_8_bits(volume)
    np.testing.assert_array_equal(found, expected(volume.clip(0)))
    assert note.startswith("values 0 to 2") and "voxels below, down to -8000, set to 0" in note


def test_a_scan_from_minus_1_to_1_uses_its_whole_range():
    """Air of -1, brain of equally many positive and negative values: -1 is black and 0 amid the gray values."""
    volume = np.resize(np.linspace(-1, 1, 1001), SHAPE)
    found, note = to_8_bits(volume)
    assert note.startswith("values -0.99") and abs(int(found.ravel()[500]) - 127.5) <= 1


def test_background_is_the_same_whatever_marks_it():
    """A box without air: no value is below 1 000, and with a background of 0 the 0.1th percentile is 0."""
    brain = head()[3:13, 3:13].astype(np.float32) * 10 + 1000
    clean = np.zeros(SHAPE, np.float32)
    clean[3:13, 3:13] = brain
    for value in (0, np.nan, -2000, 32767):
        volume = np.full(SHAPE, value, np.float32)
        volume[3:13, 3:13] = brain
        found, note = to_8_bits(volume)
        np.testing.assert_array_equal(found, expected(clean))
        assert "values 0 to 35" in note


def test_what_is_not_finite_outside_of_the_head_is_background():
    volume = scanner()
    volume[:3], volume[13:, :, 2] = np.nan, np.inf
    clean = np.where(np.isfinite(volume), volume, 0)
    found, note = to_8_bits(volume)
    np.testing.assert_array_equal(found, expected(clean))  # the percentile is that of the volume with 0 there
    assert note.startswith("336 voxels that are NaN or infinite count as background; values 0 to")
    volume[8, 8, 3] = np.nan  # one of 1 536 inside
    assert to_8_bits(volume)[1].startswith("337 voxels")
    volume[8, 8, 2:4] = np.nan
    with pytest.raises(InputError, match="338 voxels are NaN or infinite, 2 of them inside the volume; replace"):
        to_8_bits(volume)
    with pytest.raises(InputError, match="4 voxels are NaN or infinite, 4 of them inside"):
        one = scanner()[:, :, 2:3]  # a single slice: every voxel is at an end of the third axis
        one[6:8, 6:8] = np.nan
        to_8_bits(one)
    with pytest.raises(InputError, match="1536 voxels are NaN or infinite"):
        to_8_bits(np.full(SHAPE, np.nan))


def test_a_scan_around_zero_uses_its_whole_range():
    """As after a z-score: the mean is 0, and no voxel is background."""
    volume = (scanner() - 1000) / 700
    found, note = to_8_bits(volume)
    assert found[head() == 0].max() == 0 and found.max() == 255 and note.startswith("values -1.42857 to 2.2")
    volume[:2] = np.nan  # background is black, and not the 0 amid the values
    found, _ = to_8_bits(volume)
    assert found[:2].max() == 0 and found.max() == 255


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0,), "has only the values 0: a mask, or an empty volume; give a scan"),
        ((0, 1), "has only the values 0 and 1: a mask"),
        ((0, 1, 2, 4), "has only the values 0, 1, 2, 4: a label map, or an empty volume; give a scan"),
        (tuple(range(10)), "a label map"),
    ],
)
def test_labels_are_no_scan(values, words):
    for kind in (np.uint8, np.float32):
        with pytest.raises(InputError, match=words):
            to_8_bits(np.resize(values, SHAPE).astype(kind))
    assert to_8_bits(np.resize(np.arange(11), SHAPE))[1] is None
    assert to_8_bits(np.resize((0, 1, 2, 4), (4, 4, 2)))[1] is None  # a handful of voxels may be anything
    assert to_8_bits(np.resize((0.0, 0.5, 1.0), SHAPE))[1] is not None


def test_a_range_that_no_scan_has():
    volume = np.linspace(-1.0, 1.0, 1536).reshape(SHAPE) * 1.7e308
    with pytest.raises(InputError, match="an impossible range for a scan"):
        to_8_bits(volume)
