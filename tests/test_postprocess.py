"""What is kept of a prediction, against volumes drawn by hand."""

import numpy as np

from brainseg_jax.evaluation.postprocess import keep_largest_component


def test_the_part_with_most_voxels_stays_and_corners_connect():
    volume = np.zeros((4, 8, 8), bool)
    volume[0, 0, :5] = True  # 5 voxels in one slice
    volume[2, 4, 4] = volume[2, 5, 5] = volume[3, 6, 6] = volume[3, 6, 7] = True  # 2 + 2 that meet in corners: 4
    volume[3, 7, 7] = volume[3, 7, 6] = True  # and 2 more: 6
    kept = np.zeros_like(volume)
    kept[2:, 4:] = volume[2:, 4:]
    assert kept.sum() == 6
    np.testing.assert_array_equal(keep_largest_component(volume), kept)


def test_one_part_and_none_stay_as_they_are():
    volume = np.zeros((2, 4, 4), bool)
    np.testing.assert_array_equal(keep_largest_component(volume), volume)
    volume[:, 1:3, 1] = True
    np.testing.assert_array_equal(keep_largest_component(volume), volume)
