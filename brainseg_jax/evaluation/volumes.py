"""All scores of one case: predicted against reference mask of a volume, on the host."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from brainseg_jax.evaluation.surface import surface_scores
from brainseg_jax.inference.postprocess import NEIGHBORS
from brainseg_jax.metrics import patient_scores, volume_sums

TOLERANCE = 2.0  # default for surface Dice: mm, or voxels if the spacing is unknown
VOXEL, MILLIMETER = "voxel", "mm"  # values of the column `unit`; volumes are in voxels and mL respectively


def score_targets(
    predicted: np.ndarray,
    truth: np.ndarray,
    names: Sequence[str],
    *,
    spacing: tuple[float, float, float] | None,
    tolerance: float,
    counted: np.ndarray | None = None,
) -> list[dict]:
    """Returns the scores of one case: one row per target, with the column "target" first if there are several.

    Args:
      predicted: [S, H, W, K] bool.
      truth: [S, H, W, K] bool.
      names: names of the K targets.
      spacing: see `score_volume`.
      tolerance: see `score_volume`.
      counted: see `score_volume`.
    """
    rows = [
        score_volume(predicted[..., k], truth[..., k], spacing=spacing, tolerance=tolerance, counted=counted)
        for k in range(len(names))
    ]
    return rows if len(names) == 1 else [{"target": name} | row for name, row in zip(names, rows, strict=True)]


def score_volume(
    predicted: np.ndarray,
    truth: np.ndarray,
    *,
    spacing: tuple[float, float, float] | None,
    tolerance: float,
    counted: np.ndarray | None = None,
) -> dict[str, float | int | str | None]:
    """Returns the scores of one case and one target, in the order of the columns of `per_patient.csv`.

    Args:
      predicted: [S, H, W] bool.
      truth: [S, H, W] bool.
      spacing: distance of slices, rows and columns in mm. None if unknown: every step counts 1, also between slices,
        although slices are usually further apart than pixels.
      tolerance: tolerance of surface Dice, in mm, or in voxels without spacing.
      counted: [S, H, W] bool, False for voxels of an `ignore` label. They are removed from both masks, so they count in
        no score. None: all count.

    Returns:
      dice, iou, precision, recall: 3-D, see `metrics` for empty masks.
      slices, tumor_slices, found_slices, false_positive_slices: see `metrics.PatientSums`.
      hd95, assd, surface_dice: see `surface`; None is undefined.
      volume_true, volume_predicted: in mL, or in voxels without spacing.
      volume_error: predicted minus reference volume.
      volume_error_absolute: its absolute value.
      volume_error_relative: divided by the reference volume, None if that is 0.
      found_lesions, missed_lesions, false_lesions: see `lesion_counts`.
      unit: unit of distances, "mm" or "voxel".

    Raises:
      InputError: see `surface_scores`.
    """
    if counted is not None:
        predicted, truth = predicted & counted, truth & counted
    sums = volume_sums(predicted, truth)
    row: dict = {name: float(value) for name, value in patient_scores(sums).items()}
    row |= {name: getattr(sums, name) for name in ("slices", "tumor_slices")}
    row |= {name: getattr(sums, name) for name in ("found_slices", "false_positive_slices")}
    row |= surface_scores(predicted, truth, spacing=spacing or (1.0, 1.0, 1.0), tolerance=tolerance)
    voxel = float(np.prod(spacing)) / 1000.0 if spacing else 1.0  # mm³ to mL
    reference_volume, predicted_volume = float(sums.actual * voxel), float(sums.predicted * voxel)
    row |= {"volume_true": reference_volume, "volume_predicted": predicted_volume}
    row |= {
        "volume_error": predicted_volume - reference_volume,
        "volume_error_absolute": abs(predicted_volume - reference_volume),
    }
    row["volume_error_relative"] = (
        (predicted_volume - reference_volume) / reference_volume if reference_volume else None
    )
    return row | lesion_counts(predicted, truth) | {"unit": MILLIMETER if spacing else VOXEL}


def lesion_counts(predicted: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """Counts lesions; a lesion is a connected component of the reference mask (26 neighbors).

    Args:
      predicted: [S, H, W] bool.
      truth: [S, H, W] bool.

    Returns:
      found_lesions: lesions that overlap with the prediction in at least one voxel.
      missed_lesions: all other lesions.
      false_lesions: connected components of the prediction without a voxel of the reference.
    """
    true_components, lesions = ndimage.label(truth, NEIGHBORS)
    predicted_components, components = ndimage.label(predicted, NEIGHBORS)
    overlap = predicted & truth
    detected = len(np.unique(true_components[overlap]))
    return {
        "found_lesions": detected,
        "missed_lesions": lesions - detected,
        "false_lesions": components - len(np.unique(predicted_components[overlap])),
    }
