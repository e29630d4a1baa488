"""A folder of predicted masks against a folder of true ones, whoever made them."""

import math
from collections import defaultdict
from pathlib import Path

from absl import logging

from brainseg_jax.data.source import CASE_NAME
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.case_pictures import Case, Overlay, outline
from brainseg_jax.evaluation.report import Scored
from brainseg_jax.evaluation.volumes import score_volume
from brainseg_jax.scans.masks import Mask, read_masks


def score_folders(predictions: Path, truth: Path, *, tolerance: float) -> tuple[Scored, list[Case]]:
    """Scores every case of two folders that hold the same cases.

    Distances are in mm where the spacing of every case is known, else in voxels for all, as one mean is made of them.

    Args:
      predictions: see `read_masks`.
      truth: see `read_masks`.
      tolerance: of surface Dice, in mm or in voxels.

    Returns:
      what a report needs, and the cases with outlines but no scan.

    Raises:
      InputError: a folder cannot be used; or cases are missing in one, or differ in shape, slices or spacing: all are
        listed.
    """
    predicted, true = read_masks(predictions), read_masks(truth)
    noted: dict[str, list[str]] = defaultdict(list)
    for mask in [*predicted.values(), *true.values()]:
        for note in mask.notes:
            noted[note].append(str(mask.sources[0]))
    for note, files in noted.items():
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        logging.warning("%s%s: %s", files[0], more, note)
    faults = [f"  {case}: in {truth} only" for case in sorted(true.keys() - predicted.keys())]
    faults += [f"  {case}: in {predictions} only" for case in sorted(predicted.keys() - true.keys())]
    for case in sorted(true.keys() & predicted.keys()):
        if predicted[case].grid and true[case].grid:
            grids = predicted[case].grid, true[case].grid
            predicted[case], true[case] = predicted[case].widened(grids[1]), true[case].widened(grids[0])
        if words := _differences(predicted[case], true[case]):
            faults += [f"  {case}: {difference}" for difference in words]
        elif true[case].grid:
            predicted[case] = predicted[case].on(true[case].grid)
    if faults:
        raise InputError(
            f"--predictions={predictions} and --truth={truth} do not hold masks of the same cases on the same grid; "
            "correct or take away:\n" + "\n".join(faults)
        )
    without = [case for case, mask in true.items() if mask.spacing is None]
    if without and len(without) < len(true):
        logging.warning("no spacing is known of %s, so distances are in voxels for all cases", ", ".join(without))
    rows, cases = [], []
    named = [CASE_NAME.fullmatch(case) for case in true]
    for case, mask in true.items():
        row: dict = {"patient": case}
        if all(named):
            row["institution"] = case.split("_")[1]
        spacing = None if without else mask.spacing
        rows.append(row | score_volume(predicted[case].voxels, mask.voxels, spacing=spacing, tolerance=tolerance))
        cases.append(
            Case(
                patient=case,
                size=mask.voxels.shape[1:],
                numbers=list(mask.numbers or range(1, len(mask.voxels) + 1)),
                flair=None,
                truth=outline(mask.voxels),
                overlays=[Overlay(outline(predicted[case].voxels))],
            )
        )
    told = {"Predicted masks": str(predictions), "True masks": str(truth)}
    return Scored(predictions.absolute().name, rows, told), cases


def _differences(predicted: Mask, true: Mask) -> list[str]:
    """What keeps two masks of a case from being compared voxel by voxel, in words."""
    if (predicted.spacing is None) != (true.spacing is None):
        files = ", ".join(str(mask.sources[0]) for mask in (predicted, true))
        return [f"a volume with a spacing against single slices: {files}"]
    if predicted.grid and true.grid:
        try:
            predicted.on(true.grid)
            return []
        except InputError as error:
            elsewhere = f"predicted on another grid than true: {error}"
    words = []
    if predicted.voxels.shape != true.voxels.shape:
        words.append(f"predicted {_times(predicted.voxels.shape)} voxels, true {_times(true.voxels.shape)}")
    elif predicted.numbers and true.numbers and predicted.numbers != true.numbers:
        words.append(f"predicted from slice {predicted.numbers[0]} on, true from slice {true.numbers[0]}")
    spacings = (predicted.spacing, true.spacing)
    if all(spacings) and not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(*spacings, strict=True)):
        words.append(f"predicted spacing {_times(spacings[0])} mm, true {_times(spacings[1])}")
    if predicted.grid and not words:
        words.append(elsewhere)
    return words


def _times(numbers: tuple[float, ...]) -> str:
    return " x ".join(f"{number:.6g}" for number in numbers)
