"""Calibration against counts made by hand."""

import numpy as np
import pytest

from brainseg_jax.evaluation.calibration import BINS, THRESHOLDS, calibrate


def one_slice(probability, truth, flair):
    arrays = (np.asarray(probability, np.float32), np.asarray(truth, bool), np.asarray(flair, np.uint8))
    return calibrate(*(array[None, None] for array in arrays))


def test_error_and_bins_by_hand():
    # Eight voxels in the head, two in the dark, which is left out.
    probability = [0.0, 0.0, 0.02, 0.06, 0.9, 0.9, 0.9, 0.9, 0.5, 0.5]
    truth = [0, 0, 0, 1, 1, 1, 0, 0, 1, 1]
    found = one_slice(probability, truth, [100] * 8 + [10] * 2)
    assert found.voxels.tolist() == [4] + [0] * 12 + [4, 0]  # 0.9 lies in [13/15, 14/15)
    assert found.tumor.tolist() == [1] + [0] * 12 + [2, 0]
    assert found.probability[[0, 13]] == pytest.approx([0.08, 3.6])
    # Of each bin |mean probability - share|: |0.02 - 0.25| and |0.9 - 0.5|, half of the voxels in each.
    assert found.error == pytest.approx((0.23 + 0.4) / 2)
    summary = found.summary()
    assert summary["bins"]["tumor_share"][13] == 0.5 and summary["bins"]["tumor_share"][5] is None


def test_a_probability_of_one_is_in_the_last_bin():
    found = one_slice([1.0, 1.0], [1, 1], [9, 9])
    assert found.voxels[BINS - 1] == 2 and found.error == 0.0


def test_dice_by_threshold_counts_every_voxel_and_the_threshold_itself():
    found = one_slice([0.1, 0.5, 0.5, 0.8], [0, 1, 0, 1], [9, 9, 9, 0])
    expected = []
    for threshold in THRESHOLDS:
        predicted = np.float32([0.1, 0.5, 0.5, 0.8]) >= np.float32(threshold)
        expected.append(2 * predicted[[1, 3]].sum() / (predicted.sum() + 2))
    np.testing.assert_allclose(found.dice, [expected])
    assert found.dice[0, THRESHOLDS.tolist().index(0.5)] == pytest.approx(4 / 5)
    assert one_slice([0.0, 0.0], [0, 0], [9, 9]).dice.tolist() == [[1.0] * len(THRESHOLDS)]  # both empty


def test_patients_add_up():
    a, b = one_slice([0.2, 0.9], [0, 1], [9, 9]), one_slice([0.7], [0], [9])
    both = a + b
    assert both.voxels.sum() == 3 and both.dice.shape == (2, len(THRESHOLDS))
    assert both.error == pytest.approx((0.2 + 0.1 + 0.7) / 3)
