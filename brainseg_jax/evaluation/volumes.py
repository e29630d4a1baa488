"""Everything that is scored on one patient: predicted against true mask of a volume, on the host."""

import numpy as np
from scipy import ndimage

from brainseg_jax.evaluation.postprocess import NEIGHBORS
from brainseg_jax.evaluation.surface import surface_scores
from brainseg_jax.metrics import PatientSums, patient_scores

TOLERANCE = 2.0  # of surface Dice where none is given: mm, or voxels where the spacing is not known
VOXEL, MILLIMETER = "voxel", "mm"  # the column `unit`; volumes are in voxels and in mL then


def score_volume(
    predicted: np.ndarray, truth: np.ndarray, *, spacing: tuple[float, float, float] | None, tolerance: float
) -> dict[str, float | int | str | None]:
    """The scores of one patient, in the order of the columns of `per_patient.csv`.

    Args:
      predicted: [S, H, W] bool.
      truth: [S, H, W] bool.
      spacing: of slices, rows and columns in mm; None where it is not known: then a step along each axis counts 1,
        also from slice to slice, where it is longer in truth.
      tolerance: of surface Dice, in mm, or in voxels where there is no spacing.

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
    sums = _sums(predicted, truth)
    row: dict = {name: float(values[0]) for name, values in patient_scores(sums).items()}
    row |= {name: int(getattr(sums, name)[0]) for name in ("slices", "tumor_slices")}
    row |= {name: int(getattr(sums, name)[0]) for name in ("found_slices", "false_positive_slices")}
    row |= surface_scores(predicted, truth, spacing=spacing or (1.0, 1.0, 1.0), tolerance=tolerance)
    voxel = float(np.prod(spacing)) / 1000.0 if spacing else 1.0  # mm³ to mL
    true, found = float(sums.actual[0] * voxel), float(sums.predicted[0] * voxel)
    row |= {"volume_true": true, "volume_predicted": found}
    row |= {"volume_error": found - true, "volume_error_absolute": abs(found - true)}
    row["volume_error_relative"] = (found - true) / true if true else None
    return row | lesion_counts(predicted, truth) | {"unit": MILLIMETER if spacing else VOXEL}


def lesion_counts(predicted: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """Detection by lesion: a lesion is a part of the true mask connected through faces, edges or corners.

    Args:
      predicted: [S, H, W] bool.
      truth: [S, H, W] bool.

    Returns:
      found_lesions: which the prediction meets in one voxel at least; missed_lesions: the others; false_lesions:
      connected parts of the prediction that meet no true voxel.
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


def _sums(predicted: np.ndarray, truth: np.ndarray) -> PatientSums:
    """As `metrics.patient_sums`, of one volume of any shape without compiling; arrays of [1]."""
    overlap, n_predicted, n_actual = (x.sum(axis=(1, 2), dtype=np.int64) for x in (predicted & truth, predicted, truth))
    by_slice = PatientSums(
        overlap=overlap,
        predicted=n_predicted,
        actual=n_actual,
        slices=np.ones_like(overlap),
        tumor_slices=n_actual > 0,
        found_slices=overlap > 0,
        false_positive_slices=(n_actual == 0) & (n_predicted > 0),
    )
    return PatientSums(*(values.sum(keepdims=True, dtype=np.int64) for values in by_slice))
