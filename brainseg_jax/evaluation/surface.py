"""Distances between the surfaces of two masks of one volume; needs only numpy and scipy.

The surface of a mask is its voxels that share a face with a voxel outside the mask. Voxels beyond the edge of the
volume are outside. A distance goes from the center of a surface voxel to the nearest center of the other surface. The
values match those of MONAI (tests/interop/test_monai.py).

Empty masks: if both are empty, distances are 0 and surface Dice is 1. If only one is empty, distances are undefined
(None) and surface Dice is 0. Averages report their number of patients (`scores.summarize`).
"""

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from brainseg_jax.errors import InputError


def surface_scores(
    predicted: np.ndarray, truth: np.ndarray, *, spacing: tuple[float, float, float], tolerance: float
) -> dict[str, float | None]:
    """Returns surface distances and surface Dice of one volume.

    Args:
      predicted: [S, H, W] bool.
      truth: [S, H, W] bool.
      spacing: voxel size along the three axes; distances have the same unit.
      tolerance: maximum distance at which two surfaces count as equal, in that unit.

    Returns:
      hd95: the 95th percentile of the distances (linear interpolation), the larger of the two directions.
      assd: average symmetric surface distance, the mean over the surface voxels of both masks.
      surface_dice: fraction of the surface voxels of both masks within `tolerance` of the other surface (Nikolov et al.
        2018, arxiv.org/abs/1809.04430, counted in voxels).

    Raises:
      InputError: the shapes differ or do not have three axes, or spacing or tolerance is invalid.
    """
    if predicted.shape != truth.shape or predicted.ndim != 3:
        raise InputError(f"masks of shape {predicted.shape} and {truth.shape}: give two of the same shape [S, H, W]")
    if not (np.isfinite([*spacing, tolerance]).all() and min(spacing) > 0.0 and tolerance >= 0.0):
        raise InputError(f"spacing {spacing}, tolerance {tolerance}: give lengths > 0 and a tolerance >= 0")
    if not predicted.any() and not truth.any():
        return {"hd95": 0.0, "assd": 0.0, "surface_dice": 1.0}
    if not predicted.any() or not truth.any():
        return {"hd95": None, "assd": None, "surface_dice": 0.0}
    predicted_points, truth_points = (_surface_points(mask, spacing) for mask in (predicted, truth))
    to_truth, to_predicted = (
        cKDTree(truth_points).query(predicted_points)[0],
        cKDTree(predicted_points).query(truth_points)[0],
    )
    both = np.concatenate([to_truth, to_predicted])
    return {
        "hd95": float(max(np.percentile(to_truth, 95), np.percentile(to_predicted, 95))),
        "assd": float(both.mean()),
        # The distances are rounded: 3 steps of 0.1 must be within 0.3.
        "surface_dice": float(np.mean(both <= tolerance * (1.0 + 1e-9))),
    }


def _surface_points(mask: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Returns centers of the surface voxels, [n, 3], in the unit of `spacing`; only the bounding box is eroded."""
    (box,) = ndimage.find_objects(mask.astype(np.int8))
    inside = ndimage.binary_erosion(mask[box])
    corner = [axis.start for axis in box]
    return (np.argwhere(mask[box] & ~inside) + corner) * np.asarray(spacing)
