"""Scores of one volume against values by hand; interop/test_monai.py compares with other libraries."""

import numpy as np
import pytest

from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.surface import surface_scores
from brainseg_jax.evaluation.volumes import lesion_counts, score_volume

UNIT = (1.0, 1.0, 1.0)


def voxels(*places, shape=(4, 12, 30)):
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


def scores(predicted, truth, spacing=UNIT, tolerance=1.0):
    return surface_scores(predicted, truth, spacing=spacing, tolerance=tolerance)


def test_two_voxels_are_as_far_apart_as_their_centers():
    a, b = voxels((0, 2, 3)), voxels((2, 5, 7))  # 2 slices of 6, 3 rows of 4, 4 columns of 0.75: 12, 12 and 3
    distance = np.sqrt(12**2 + 12**2 + 3**2)
    for tolerance, near in ((distance - 1e-6, 0.0), (distance, 1.0)):
        found = scores(a, b, spacing=(6.0, 4.0, 0.75), tolerance=tolerance)
        assert found == {"hd95": pytest.approx(distance), "assd": pytest.approx(distance), "surface_dice": near}


def test_percentile_and_mean_of_both_directions():
    truth = voxels((1, 3, slice(0, 9)))  # a row of 9, all of it surface
    predicted = truth | voxels((1, 3, 18))  # and one voxel 10 columns on
    found = scores(predicted, truth)
    # From the prediction: nine times 0, once 10. The 95th percentile is 0.55 of the way from the 9th to the 10th.
    assert found["hd95"] == pytest.approx(5.5)
    assert found["assd"] == pytest.approx(10 / (10 + 9))
    assert found["surface_dice"] == pytest.approx(18 / 19)
    assert scores(truth, predicted) == found


def test_the_surface_is_what_has_a_face_outside():
    solid = voxels((slice(0, 3), slice(0, 5), slice(0, 5)))  # at the edge of the volume; beyond it is outside
    hollow = solid & ~voxels((1, 2, 2))  # its hole makes the 6 voxels around it surface too
    found = scores(hollow, solid, tolerance=0.0)
    # 9 of 75 voxels, the core of the middle slice, are inside; 2 of the hole's 6 neighbors are in the outer slices.
    surface_of_solid, surface_of_hollow = 66, 66 + 4
    assert found["surface_dice"] == pytest.approx((66 + surface_of_solid) / (surface_of_solid + surface_of_hollow))
    assert found["assd"] == pytest.approx(4 * 1.0 / (surface_of_solid + surface_of_hollow))
    assert found["hd95"] == pytest.approx(0.55)  # 66 times 0 and 4 times 1: 0.95 * 69 = 65.55, from 0


def test_lengths_that_are_no_binary_fractions():
    assert scores(voxels((0, 0, 0)), voxels((0, 0, 3)), spacing=(0.1, 0.1, 0.1), tolerance=0.3)["surface_dice"] == 1.0


def test_empty_masks():
    none, some = voxels(), voxels((1, 1, 1))
    assert scores(none, none) == {"hd95": 0.0, "assd": 0.0, "surface_dice": 1.0}
    for pair in ((none, some), (some, none)):
        assert scores(*pair) == {"hd95": None, "assd": None, "surface_dice": 0.0}


@pytest.mark.parametrize(
    ("predicted", "options", "words"),
    [
        (voxels(shape=(4, 12, 31)), {}, r"\(4, 12, 31\) and \(4, 12, 30\)"),
        (voxels(), {"spacing": (0.0, 1.0, 1.0)}, r"spacing \(0\.0, 1\.0, 1\.0\)"),
        (voxels(), {"tolerance": float("nan")}, "tolerance nan"),
        (voxels(), {"tolerance": -1.0}, "tolerance -1.0"),
    ],
)
def test_what_cannot_be_measured_is_refused(predicted, options, words):
    with pytest.raises(InputError, match=words):
        scores(predicted, voxels(), **options)


def test_volumes_in_ml_and_in_voxels():
    predicted, truth = voxels((1, 2, slice(0, 12))), voxels((1, 2, slice(0, 8)))
    in_mm = score_volume(predicted, truth, spacing=(5.0, 2.0, 2.0), tolerance=1.0)  # a voxel is 20 mm³, 0.02 mL
    assert (in_mm["unit"], in_mm["volume_true"], in_mm["volume_predicted"]) == (
        "mm",
        pytest.approx(0.16),
        pytest.approx(0.24),
    )
    assert in_mm["volume_error"] == in_mm["volume_error_absolute"] == pytest.approx(0.08)
    assert in_mm["volume_error_relative"] == pytest.approx(0.5)
    less = score_volume(truth, predicted, spacing=None, tolerance=1.0)
    assert (less["unit"], less["volume_true"], less["volume_error"], less["volume_error_absolute"]) == (
        "voxel",
        12,
        -4,
        4,
    )
    assert less["volume_error_relative"] == pytest.approx(-1 / 3)
    assert score_volume(predicted, voxels(), spacing=None, tolerance=1.0)["volume_error_relative"] is None


def test_overlap_and_slices_of_a_volume():
    truth = voxels((0, 0, slice(0, 4)), (1, 0, slice(0, 4)))
    predicted = voxels((0, 0, slice(2, 6)), (3, 5, 5))
    row = score_volume(predicted, truth, spacing=None, tolerance=1.0)
    # 2 voxels of 5 predicted and 8 true ones are both.
    assert (row["dice"], row["iou"]) == (pytest.approx(4 / 13), pytest.approx(2 / 11))
    assert (row["precision"], row["recall"]) == (pytest.approx(2 / 5), pytest.approx(2 / 8))
    assert [row[n] for n in ("slices", "tumor_slices", "found_slices", "false_positive_slices")] == [4, 2, 1, 1]


def test_lesions():
    truth = voxels((0, 0, 0), (1, 1, 1), (0, 5, 5), (3, 0, slice(0, 9)))  # the first two meet in a corner: 3 lesions
    predicted = voxels((1, 1, 1), (3, 0, 0), (3, 0, 8), (2, 10, 10), (0, 5, 7))
    assert lesion_counts(predicted, truth) == {"found_lesions": 2, "missed_lesions": 1, "false_lesions": 2}
    assert lesion_counts(voxels(), truth) == {"found_lesions": 0, "missed_lesions": 3, "false_lesions": 0}
    assert lesion_counts(truth, voxels()) == {"found_lesions": 0, "missed_lesions": 0, "false_lesions": 3}
