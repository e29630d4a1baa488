"""Distances between the surfaces of two masks of one volume: numpy and scipy alone.

The surface of a mask is its voxels that have a face in common with a voxel outside of it; beyond the edge of the volume
is outside. A distance is from the center of a surface voxel to the nearest center of the other surface. So does MONAI,
whose figures these are (tests/interop/test_monai.py).

Empty masks: where both are empty they agree, so distances are 0 and surface Dice is 1. Where only one is, a distance
is undefined: it is None, never a number, and whoever averages says over how many patients (`scores.summarize`);
surface Dice is 0 then.
"""

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from brainseg_jax.errors import InputError


def surface_scores(
    predicted: np.ndarray, truth: np.ndarray, *, spacing: tuple[float, float, float], tolerance: float
) -> dict[str, float | None]:
    """Surface distances and surface Dice of one volume.

    Args:
      predicted: [S, H, W] bool.
      truth: [S, H, W] bool.
      spacing: of the voxels along the three axes, in the unit that the distances shall have.
      tolerance: up to which distance two surfaces are the same, in that unit.

    Returns:
      hd95: the larger of the two directions' 95th percentile of the distances (linear between neighbors).
      assd: average symmetric surface distance, the mean over the surface voxels of both masks.
      surface_dice: share of the surface voxels of both masks that lie within `tolerance` of the other surface
        (Nikolov et al. 2018, arxiv.org/abs/1809.04430, counted in voxels).

    Raises:
      InputError: the shapes differ or are not of three axes; spacing or tolerance is not a positive number.
    """
    if predicted.shape != truth.shape or predicted.ndim != 3:
        raise InputError(f"masks of shape {predicted.shape} and {truth.shape}: give two of one shape [S, H, W]")
    if not (np.isfinite([*spacing, tolerance]).all() and min(spacing) > 0.0 and tolerance >= 0.0):
        raise InputError(f"spacing {spacing}, tolerance {tolerance}: give lengths above 0, and a tolerance from 0")
    if not predicted.any() and not truth.any():
        return {"hd95": 0.0, "assd": 0.0, "surface_dice": 1.0}
    if not predicted.any() or not truth.any():
        return {"hd95": None, "assd": None, "surface_dice": 0.0}
    ours, theirs = (_surface_points(mask, spacing) for mask in (predicted, truth))
    to_truth, to_predicted = cKDTree(theirs).query(ours)[0], cKDTree(ours).query(theirs)[0]
    both = np.concatenate([to_truth, to_predicted])
    return {
        "hd95": float(max(np.percentile(to_truth, 95), np.percentile(to_predicted, 95))),
        "assd": float(both.mean()),
        # The tree's distances are rounded: 3 steps of 0.1 must lie within 0.3.
        "surface_dice": float(np.mean(both <= tolerance * (1.0 + 1e-9))),
    }


def _surface_points(mask: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Centers of the surface voxels, [n, 3], in the unit of `spacing`; only the mask's bounding box is eroded."""
    (box,) = ndimage.find_objects(mask.astype(np.int8))
    inside = ndimage.binary_erosion(mask[box])
    corner = [axis.start for axis in box]
    return (np.argwhere(mask[box] & ~inside) + corner) * np.asarray(spacing)
