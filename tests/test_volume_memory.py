"""Operations on one volume take a bounded multiple of its memory and give the values of the plain formula."""

import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from brainseg_jax.data.canvas import Canvas
from brainseg_jax.data.normalization import fit
from brainseg_jax.inference.ensemble import Member, combine
from brainseg_jax.inference.postprocess import PostProcess, make_masks
from brainseg_jax.scans import nifti_file
from brainseg_jax.scans.description import LGG, Description, Target
from brainseg_jax.scans.intensity import BLACKEST, WHITEST, to_8_bits
from brainseg_jax.scans.nifti_file import open_nifti

SHAPE = (64, 96, 96)
VOXELS = 64 * 96 * 96
RNG = np.random.default_rng(0)
CANVAS = Canvas(SHAPE[1:], SHAPE[1:], 24)


def peak(call):
    """The maximum number of bytes per voxel that a call allocates, including its result; and the result."""
    call()  # what is loaded or cached once does not count
    tracemalloc.start()
    try:
        result = call()
        return tracemalloc.get_traced_memory()[1] / VOXELS, result
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["<i2", ">i2", "<f4", ">f8"])
def test_values_to_8_bits(kind):
    """Memory for a copy of the values and for 1-byte masks: background and comparisons."""
    volume = RNG.normal(900, 300, SHAPE).clip(0).astype(kind)
    used, (found, _) = peak(lambda: to_8_bits(volume))
    assert used < volume.dtype.itemsize + 4.2
    low, high = np.percentile(volume.astype(np.float64), (BLACKEST, WHITEST))
    inner = volume[(volume >= low - 1e9) & (volume <= high + 1e9)]
    assert inner.size == VOXELS  # no outliers
    expected = np.rint((volume.astype(np.float64) - low) * (255 / (high - low))).clip(0, 255)
    np.testing.assert_array_equal(found, expected)


def test_constants_of_a_volume():
    voxels = RNG.integers(0, 256, (*SHAPE, 3), np.uint8)
    used, constants = peak(lambda: fit(voxels, "volume_zscore"))
    assert used < 0.5
    np.testing.assert_array_equal(constants.lower, np.percentile(voxels, 10, axis=(0, 1, 2)))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_file(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(nifti_file, "_AT_ONCE", 2**14)  # as small beside this volume as a MiB is beside a real one
    values = RNG.integers(0, 4000, SHAPE).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / f"a{suffix}")
    used, nifti = peak(lambda: open_nifti(tmp_path / f"a{suffix}"))
    assert used < 3.0  # its bytes, and buffers: of gzip 128 KiB from Python 3.12 on; twice its bytes would be 4
    np.testing.assert_array_equal(nifti.values, values)


@pytest.mark.parametrize(("members", "uncertainty", "most"), [(1, False, 4), (3, False, 4), (3, True, 8)])
def test_probabilities_of_members(members, uncertainty, most):
    """A float32 for the mean, one for the deviation, and blocks of 16 slices."""
    maps = [RNG.random((SHAPE[0], 24, 24, 1), np.float32) for _ in range(members)]
    given = [Member(one, CANVAS) for one in maps]
    used, found = peak(lambda: combine(given, uncertainty=uncertainty))
    assert used < most + 5 * 4 * 16 / SHAPE[0]
    of_members = np.stack([CANVAS.from_network(one) for one in maps])
    np.testing.assert_allclose(found.probability, of_members.mean(axis=0), atol=1e-6)
    assert (found.uncertainty is None) is not uncertainty
    if uncertainty:
        np.testing.assert_allclose(found.uncertainty, of_members.std(axis=0), atol=1e-6)


def test_masks_of_probabilities():
    """Two 1-byte masks, and 4 bytes per voxel of the prediction's bounding box for component numbers."""
    probability = np.zeros((*SHAPE, 1), np.float32)
    probability[10:30, 20:50, 30:60] = probability[40:42, 20:23, 30:33] = 1
    used, masks = peak(lambda: make_masks(probability, [PostProcess(largest_component=True)], LGG, CANVAS))
    assert used < 3.5
    expected = np.zeros_like(masks)
    expected[10:30, 20:50, 30:60] = True
    np.testing.assert_array_equal(masks, expected)


def test_masks_of_several_targets():
    description = Description(("a",), (Target("x", (1,)), Target("y", (2,)), Target("z", (3,))))
    probability = RNG.random((*SHAPE, 3), np.float32)
    used, masks = peak(lambda: make_masks(probability, [PostProcess()] * 3, description, CANVAS))
    assert used < 3 + 1 + 0.5
    highest = np.argmax(probability, axis=-1)[..., None] == np.arange(3)
    np.testing.assert_array_equal(masks, highest & (probability >= 0.5))
