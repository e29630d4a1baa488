"""Calibration against counts by hand."""

import numpy as np
import pytest

from brainseg_jax.evaluation.calibration import BINS, THRESHOLDS, calibrate, combine, summarize_targets


def one_slice(probability, truth, shown):
    arrays = (np.asarray(probability, np.float32), np.asarray(truth, bool), np.asarray(shown, np.uint8))
    return calibrate(*(array[None, None] for array in arrays))


def test_error_and_bins_by_hand():
    # Eight voxels in the head, two in the dark, which is left out.
    probability = [0.0, 0.0, 0.02, 0.06, 0.9, 0.9, 0.9, 0.9, 0.5, 0.5]
    truth = [0, 0, 0, 1, 1, 1, 0, 0, 1, 1]
    found = one_slice(probability, truth, [100] * 8 + [10] * 2)
    assert found.voxels.tolist() == [4] + [0] * 12 + [4, 0]  # 0.9 is in [13/15, 14/15)
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


def test_voxels_that_do_not_count():
    arrays = [np.array([[values]]) for values in (np.float32([0.2, 0.9, 0.9]), np.array([False, True, False]))]
    shown, counted = np.full((1, 1, 3), 9, np.uint8), np.array([[[True, True, False]]])
    found = calibrate(*arrays, shown, counted=counted)
    assert found.voxels.sum() == 2 and found.tumor.sum() == 1
    assert found.dice[0, THRESHOLDS.tolist().index(0.5)] == 1.0  # 2 / 3 with the last voxel


def test_dice_of_a_patient_is_the_mean_over_the_cases():
    """At 0.5 the Dice of the cases is 1, 0 and 1; the last two are of one patient."""
    cases = [one_slice([0.9], [1], [9]), one_slice([0.1, 0.9], [1, 0], [9, 9]), one_slice([0.8], [1], [9])]
    found = combine(cases, ["b", "a", "a"])
    at = THRESHOLDS.tolist().index(0.5)
    assert found.dice[:, at].tolist() == [1.0, 0.5] and found.voxels.sum() == 4
    assert found.summary()["dice_by_threshold"]["0.5"] == 0.75


def test_targets_and_their_mean():
    a, b = one_slice([0.2, 0.9], [0, 1], [9, 9]), one_slice([0.7], [0], [9])
    both = summarize_targets({"a": a, "b": b})
    assert both["targets"] == {"a": a.summary(), "b": b.summary()}
    assert both["mean"]["expected_calibration_error"] == pytest.approx((0.15 + 0.7) / 2)
    assert both["mean"]["dice_by_threshold"]["0.5"] == 0.5
    assert summarize_targets({"a": a}) == a.summary()
