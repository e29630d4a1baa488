"""Scores by patient against MONAI, SciPy and scikit-image, on random and on hand-made masks.

`python -m pytest -s tests/interop/test_monai.py` prints the largest differences.
"""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import distance

from brainseg_jax.evaluation.volumes import lesion_counts, score_volume

torch = pytest.importorskip("torch")
metrics = pytest.importorskip("monai.metrics")
# MONAI warns of empty masks, and of an argument of its own that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:monai", "ignore::FutureWarning:monai")
SPACINGS = [None, (1.0, 1.0, 1.0), (5.0, 0.9, 1.1), (0.7, 2.0, 0.3)]
TOLERANCES = [0.0, 1.0, 2.0, 3.7]


def blobs(seed, shape=(9, 40, 36), share=0.12):
    """Smooth random parts, some of which touch the edge of the volume."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), (0.8, 2.5, 2.5))
    return noise > np.quantile(noise, 1.0 - share)


def hand_made():
    box, moved, one, corner, ring, full = (np.zeros((6, 16, 16), bool) for _ in range(6))
    box[2:4, 4:10, 5:12] = True
    moved[3:5, 6:12, 5:12] = True
    one[0, 0, 0] = True
    corner[-1, -1, -1] = True
    ring[2, 3:13, 3:13] = True
    ring[2, 5:11, 5:11] = False
    full[:] = True
    masks = (box, moved, one, corner, ring, full)
    return [(a, b) for a in masks for b in masks]


PAIRS = {
    "random": [(blobs(seed), blobs(seed + 100, share=0.05 + 0.02 * seed)) for seed in range(8)],
    "random, alike": [(blobs(seed), blobs(seed) ^ (blobs(seed + 50, share=0.03))) for seed in range(4)],
    "scattered": [tuple(np.random.default_rng(s).random((2, 5, 20, 20)) < 0.05) for s in range(4)],
    "hand-made": hand_made(),
}


def by_monai(predicted, truth, spacing, tolerance):
    y_pred, y = (torch.from_numpy(x[None, None].astype(np.float64)) for x in (predicted, truth))
    options = {"include_background": True, "spacing": spacing or (1.0, 1.0, 1.0)}
    return {
        "dice": metrics.compute_dice(y_pred, y).item(),
        "iou": metrics.compute_iou(y_pred, y).item(),
        "hd95": metrics.compute_hausdorff_distance(y_pred, y, percentile=95, **options).item(),
        "assd": metrics.compute_average_surface_distance(y_pred, y, symmetric=True, **options).item(),
        "surface_dice": metrics.compute_surface_dice(y_pred, y, class_thresholds=[tolerance], **options).item(),
        **dict(
            zip(
                ("precision", "recall"),
                (
                    metrics.compute_confusion_matrix_metric(
                        name, metrics.get_confusion_matrix(y_pred, y, include_background=True)
                    ).item()
                    for name in ("precision", "sensitivity")
                ),
                strict=True,
            )
        ),
    }


def by_scipy(predicted, truth, spacing, tolerance):
    """Every distance of every pair of surface voxels."""
    del tolerance
    spacing = np.asarray(spacing or (1.0, 1.0, 1.0))
    points = [np.argwhere(m & ~ndimage.binary_erosion(m)) * spacing for m in (predicted, truth)]
    apart = distance.cdist(*points)
    there, back = apart.min(axis=1), apart.min(axis=0)
    return {
        "hd95": max(np.quantile(there, 0.95), np.quantile(back, 0.95)),
        "assd": (there.sum() + back.sum()) / (len(there) + len(back)),
        "dice": 1.0 - distance.dice(predicted.ravel(), truth.ravel()),
        "iou": 1.0 - distance.jaccard(predicted.ravel(), truth.ravel()),
    }


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("reference", [by_monai, by_scipy])
def test_scores_agree(reference, kind):
    largest: dict[str, float] = {}
    for k, (predicted, truth) in enumerate(PAIRS[kind]):
        spacing, tolerance = SPACINGS[k % len(SPACINGS)], TOLERANCES[k // 2 % len(TOLERANCES)]
        ours = score_volume(predicted, truth, spacing=spacing, tolerance=tolerance)
        for name, value in reference(predicted, truth, spacing, tolerance).items():
            # MONAI keeps distances in single precision: relative to the value, where that is above 1.
            largest[name] = max(largest.get(name, 0.0), abs(ours[name] - value) / max(1.0, abs(value)))
    print(
        f"\n{reference.__name__[3:]}, {len(PAIRS[kind])} pairs, {kind}:", *(f"{n} {d:.1e}" for n, d in largest.items())
    )
    assert all(difference <= 1e-6 for difference in largest.values()), largest


def test_the_furthest_distance_is_that_of_scikit_image():
    """Its Hausdorff distance is the 100th percentile, of given points: here those of the surfaces."""
    reference = pytest.importorskip("skimage.metrics")
    for seed in range(5):
        surfaces = [m & ~ndimage.binary_erosion(m) for m in (blobs(seed), blobs(seed + 9))]
        solid = [blobs(seed), blobs(seed + 9)]
        score = score_volume(*solid, spacing=None, tolerance=1.0)
        furthest = reference.hausdorff_distance(*surfaces)
        assert score["hd95"] <= furthest + 1e-9
        # The tolerance at which every surface voxel is near: just this distance, not less.
        assert score_volume(*solid, spacing=None, tolerance=furthest)["surface_dice"] == 1.0
        assert score_volume(*solid, spacing=None, tolerance=furthest - 1e-6)["surface_dice"] < 1.0


def test_lesions_are_those_of_scikit_image():
    reference = pytest.importorskip("skimage.measure")
    for predicted, truth in PAIRS["scattered"] + PAIRS["random"]:
        truth_parts, predicted_parts = (reference.label(m, connectivity=3) for m in (truth, predicted))
        met = [bool((predicted & (truth_parts == k)).any()) for k in range(1, truth_parts.max() + 1)]
        false = [not (truth & (predicted_parts == k)).any() for k in range(1, predicted_parts.max() + 1)]
        assert lesion_counts(predicted, truth) == {
            "found_lesions": sum(met),
            "missed_lesions": len(met) - sum(met),
            "false_lesions": sum(false),
        }


def test_where_monai_says_undefined_so_do_we():
    """It gives nan or inf, never a number; where both are empty ours are those of agreement instead."""
    empty, full = np.zeros((3, 8, 8), bool), np.ones((3, 8, 8), bool)
    for predicted, truth in [(empty, full), (full, empty)]:
        theirs = by_monai(predicted, truth, None, 1.0)
        ours = score_volume(predicted, truth, spacing=None, tolerance=1.0)
        assert not np.isfinite(theirs["hd95"]) and ours["hd95"] is None
        assert not np.isfinite(theirs["assd"]) and ours["assd"] is None
        assert theirs["surface_dice"] == ours["surface_dice"] == 0.0
    assert not np.isfinite(by_monai(empty, empty, None, 1.0)["hd95"])
    assert score_volume(empty, empty, spacing=None, tolerance=1.0)["hd95"] == 0.0
