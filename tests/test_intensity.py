"""What becomes of the values of a volume: outliers, padding and holes move nothing of the rest."""

import numpy as np
import pytest

from brainseg_jax.errors import InputError
from brainseg_jax.scans.intensity import to_8_bits

SHAPE = (16, 16, 6)
CORNER = (0, 0, 0)


def head():
    """Air of 0 around a box of whole numbers from 1 to 255, each of them often."""
    volume = np.zeros(SHAPE, np.int16)
    volume[3:13, 3:13] = np.resize(np.arange(1, 256), (10, 10, 6))
    return volume


def scanner():
    """The same on a scanner's scale, 0 to 2550, whose 99.9th percentile is that of `head`, times 10."""
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
    assert note == f"1 voxels below 0, down to {value}, taken as 0"
    found, note = to_8_bits(scaled)
    np.testing.assert_array_equal(found, expected(scanner()))
    assert note.startswith("values 0 to 25") and ("1 voxels below" in note) == (value < -255)


def test_ringing_around_zero_leaves_zero_black():
    """A tenth of the values, as resampling leaves them at the edge of a head."""
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
        # The air that is left is less than all: the percentile is that of the other voxels.
        np.testing.assert_allclose(found[~circle()], clean[~circle()], atol=1)
        assert f"{circle().sum()} voxels of {value}, far from all others, taken as padding" in note


def test_what_is_not_finite_outside_of_the_head_is_background():
    volume = scanner()
    volume[:3], volume[13:, :, 2] = np.nan, np.inf
    clean = np.where(np.isfinite(volume), volume, 0)
    found, note = to_8_bits(volume)
    np.testing.assert_array_equal(
        found, np.rint(clean * (255 / np.percentile(clean[np.isfinite(volume)], 99.9))).clip(0, 255)
    )
    assert note.startswith("336 voxels that are NaN or infinite taken as background; values 0 to")
    volume[8, 8, 3] = np.nan  # one of 1 536 inside
    assert to_8_bits(volume)[1].startswith("337 voxels")
    volume[8, 8, 2:4] = np.nan
    with pytest.raises(InputError, match="338 voxels are NaN or infinite, 2 of them inside of the volume; replace"):
        to_8_bits(volume)
    with pytest.raises(InputError, match="4 voxels are NaN or infinite, 4 of them inside"):
        one = scanner()[:, :, 2:3]  # a single slice, of which every voxel is at an end of the third axis
        one[6:8, 6:8] = np.nan
        to_8_bits(one)
    with pytest.raises(InputError, match="1536 voxels are NaN or infinite"):
        to_8_bits(np.full(SHAPE, np.nan))


def test_a_scan_around_zero_uses_its_whole_range():
    """As a z-score leaves it: the mean is 0, and no voxel is background."""
    volume = (scanner() - 1000) / 700
    found, note = to_8_bits(volume)
    assert found[head() == 0].max() == 0 and found.max() == 255 and note.startswith("values -1.42857 to 2.2")
    volume[:2] = np.nan  # background is black, and not the 0 amid the values
    found, _ = to_8_bits(volume)
    assert found[:2].max() == 0 and found.max() == 255


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0,), "holds no other values than 0: a mask, or an empty volume; give a scan"),
        ((0, 1), "holds no other values than 0 and 1: a mask"),
        ((0, 1, 2, 4), "holds no other values than 0, 1, 2, 4: a label map, or an empty volume; give a scan"),
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
    with pytest.raises(InputError, match="a range that no scan has"):
        to_8_bits(volume)
