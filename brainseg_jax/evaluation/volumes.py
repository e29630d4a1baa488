"""Everything that is scored on one case: predicted against reference mask of a volume, on the host."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from brainseg_jax.evaluation.surface import surface_scores
from brainseg_jax.inference.postprocess import NEIGHBORS
from brainseg_jax.metrics import patient_scores, volume_sums

TOLERANCE = 2.0  # of surface Dice where none is given: mm, or voxels where the spacing is not known
VOXEL, MILLIMETER = "voxel", "mm"  # the column `unit`; volumes are in voxels and in mL then


def score_targets(
    predicted: np.ndarray,
    truth: np.ndarray,
    names: Sequence[str],
    *,
    spacing: tuple[float, float, float] | None,
    tolerance: float,
    counted: np.ndarray | None = None,
) -> list[dict]:
    """The scores of one case, a row a target with the column "target" in front; of one target a row without it.

    Args:
      predicted: [S, H, W, K] bool.
      truth: [S, H, W, K] bool.
      names: of the K targets.
      spacing: see `score_volume`.
      tolerance: see `score_volume`.
      counted: see `score_volume`.
    """
    options = {"spacing": spacing, "tolerance": tolerance, "counted": counted}
    rows = [score_volume(predicted[..., k], truth[..., k], **options) for k in range(len(names))]
    return rows if len(names) == 1 else [{"target": name} | row for name, row in zip(names, rows, strict=True)]


def score_volume(
    predicted: np.ndarray,
    truth: np.ndarray,
    *,
    spacing: tuple[float, float, float] | None,
    tolerance: float,
    counted: np.ndarray | None = None,
) -> dict[str, float | int | str | None]:
    """The scores of one case and one target, in the order of the columns of `per_patient.csv`.

    Args:
      predicted: [S, H, W] bool.
      truth: [S, H, W] bool.
      spacing: of slices, rows and columns in mm; None where it is not known: then a step along each axis counts 1,
        also from slice to slice, where it is longer in truth.
      tolerance: of surface Dice, in mm, or in voxels where there is no spacing.
      counted: [S, H, W] bool, False for voxels of an `ignore` label, which are taken out of both masks and so count in
        no score; None where all count.

    Returns:
      dice, iou, precision, recall: 3-D, see `metrics` for empty masks.
      slices, tumor_slices, found_slices, false_positive_slices: see `metrics.PatientSums`.
      hd95, assd, surface_dice: see `surface`; None is undefined.
      volume_true, volume_predicted: in mL, or voxels without spacing.
      volume_error: predicted less true volume; volume_error_absolute: without its sign; volume_error_relative: as
        a share of the true volume, None where that is 0.
      found_lesions, missed_lesions, false_lesions: see `lesion_counts`.
      unit: of distances, "mm" or "voxel".

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
    true, found = float(sums.actual * voxel), float(sums.predicted * voxel)
    row |= {"volume_true": true, "volume_predicted": found}
    row |= {"volume_error": found - true, "volume_error_absolute": abs(found - true)}
    row["volume_error_relative"] = (found - true) / true if true else None
    return row | lesion_counts(predicted, truth) | {"unit": MILLIMETER if spacing else VOXEL}


def lesion_counts(predicted: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """Detection by lesion: a lesion is a connected component of the reference mask (26 neighbors).

    Args:
      predicted: [S, H, W] bool.
      truth: [S, H, W] bool.

    Returns:
      found_lesions: which the prediction meets in one voxel at least; missed_lesions: the others; false_lesions:
      connected components of the prediction that meet no voxel of the reference.
    """
    true_parts, lesions = ndimage.label(truth, NEIGHBORS)
    predicted_parts, parts = ndimage.label(predicted, NEIGHBORS)
    met = predicted & truth
    found = len(np.unique(true_parts[met]))
    return {
        "found_lesions": found,
        "missed_lesions": lesions - found,
        "false_lesions": parts - len(np.unique(predicted_parts[met])),
    }
