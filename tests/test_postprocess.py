"""Post-processing of predictions, against volumes by hand."""

import numpy as np

from brainseg_jax.data.canvas import Canvas
from brainseg_jax.inference.postprocess import Chooser, PostProcess, make_masks
from brainseg_jax.scans.description import Description, Target

LARGEST = PostProcess(largest_component=True)


def choose(volumes):
    chooser = Chooser()
    for index, (probability, truth) in enumerate(volumes):
        chooser.add(probability, truth, Canvas((20, 20), (256, 256), 128), patient=str(index))
    return chooser.best()


def test_the_part_with_most_voxels_stays_and_corners_connect():
    volume = np.zeros((4, 8, 8), bool)
    volume[0, 0, :5] = True  # 5 voxels in one slice
    volume[2, 4, 4] = volume[2, 5, 5] = volume[3, 6, 6] = volume[3, 6, 7] = True  # 2 + 2 that meet in corners: 4
    volume[3, 7, 7] = volume[3, 7, 6] = True  # and 2 more: 6
    kept = np.zeros_like(volume)
    kept[2:, 4:] = volume[2:, 4:]
    assert kept.sum() == 6
    np.testing.assert_array_equal(LARGEST.keep_components(volume), kept)


def test_parts_smaller_than_the_minimum_go():
    volume = np.zeros((3, 6, 6), bool)
    volume[0, 0, :3] = volume[2, 5, :2] = True
    three = np.zeros_like(volume)
    three[0, 0, :3] = True
    np.testing.assert_array_equal(PostProcess(min_voxels=3).keep_components(volume), three)
    np.testing.assert_array_equal(PostProcess(min_voxels=2).keep_components(volume), volume)
    assert not PostProcess(min_voxels=4).keep_components(volume).any()
    assert not PostProcess(min_voxels=4, largest_component=True).keep_components(volume).any()


def test_the_threshold_itself_counts_as_tumor():
    probability = np.array([[[0.29, 0.3, 0.31]]], np.float64)
    np.testing.assert_array_equal(PostProcess(threshold=0.3)(probability), [[[False, True, True]]])


def test_the_best_of_the_candidates_is_chosen_and_the_plainest_of_a_tie():
    truth = np.zeros((3, 20, 20), bool)
    truth[1, 4:14, 4:14] = True  # 100 voxels
    sure = np.where(truth, 0.95, 0.05)
    assert choose([(sure, truth)]) == (PostProcess(), 1.0)
    faint = np.where(truth, 0.35, 0.05)  # predicted only at thresholds up to 0.3
    assert choose([(faint, truth)]) == (PostProcess(threshold=0.3), 1.0)
    faint[0, 18, :10] = 0.99  # and a false part of 10 voxels, whatever the threshold
    assert choose([(faint, truth), (sure, truth)]) == (PostProcess(threshold=0.3, min_voxels=50), 1.0)


def test_one_part_and_none_stay_as_they_are():
    volume = np.zeros((2, 4, 4), bool)
    np.testing.assert_array_equal(LARGEST.keep_components(volume), volume)
    volume[:, 1:3, 1] = True
    np.testing.assert_array_equal(LARGEST.keep_components(volume), volume)


def test_nested_targets_are_what_their_label_map_holds():
    """A core voxel counts only inside the whole tumor; a voxel of only the whole tumor stays edema."""
    nested = Description(("T1",), (Target("whole", (2, 1)), Target("core", (1,))))
    probability = np.zeros((1, 1, 4, 2), np.float32)
    probability[0, 0, :, 0] = [0.9, 0.2, 0.7, 0.1]
    probability[0, 0, :, 1] = [0.8, 0.9, 0.1, 0.2]
    masks = make_masks(probability, (PostProcess(), PostProcess()), nested, Canvas((1, 4), (4, 4), 16))
    np.testing.assert_array_equal(masks[0, 0], [[True, True], [False, False], [True, False], [False, False]])
    np.testing.assert_array_equal(nested.label_map(masks)[0, 0], [1, 0, 2, 0])


def test_the_most_probable_of_exclusive_targets_wins():
    either = Description(("T1",), (Target("a", (1,)), Target("b", (2,))))
    probability = np.array([[[[0.6, 0.7], [0.45, 0.9], [0.9, 0.55], [0.3, 0.45]]]], np.float32)
    posts = (PostProcess(0.4), PostProcess(0.5))
    masks = make_masks(probability, posts, either, Canvas((1, 4), (4, 4), 16))
    np.testing.assert_array_equal(either.label_map(masks)[0, 0], [2, 2, 1, 0])
