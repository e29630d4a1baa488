"""Scores a folder of predicted masks against a folder of reference masks."""

import math
from collections import defaultdict
from pathlib import Path

from absl import logging

from brainseg_jax.data.source import CASE_NAME
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.case_pictures import CasePictures, Overlay, outlines, slice_step
from brainseg_jax.evaluation.targets import describe_masks, find_naming
from brainseg_jax.evaluation.views import Scored
from brainseg_jax.evaluation.volumes import score_targets
from brainseg_jax.scans.masks import Mask, read_masks


def score_folders(
    predictions: Path, truth: Path, *, tolerance: float, targets: str = ""
) -> tuple[Scored, list[CasePictures]]:
    """Scores every case of two folders that hold the same cases.

    Distances are in mm where the spacing of every case is known, else in voxels for all, as one mean is made of them.

    Args:
      predictions: see `read_masks`.
      truth: see `read_masks`.
      tolerance: of surface Dice, in mm or in voxels.
      targets: names and labels, see `targets.parse_targets`; "": those of a `dataset.json` or of the values.

    Returns:
      what a report needs, and the cases with outlines but no scan.

    Raises:
      InputError: a folder or the targets cannot be used; or cases are missing in one, hold labels that are not known,
        or differ in shape, slices or spacing: all are listed.
    """
    naming = find_naming(truth, targets)
    predicted, true = read_masks(predictions), read_masks(truth)
    _report_notes([*predicted.values(), *true.values()])
    description, unknown = describe_masks(true, predicted, naming)
    faults = [f"  {case}: in {truth} only" for case in sorted(true.keys() - predicted.keys())]
    faults += [f"  {case}: in {predictions} only" for case in sorted(predicted.keys() - true.keys())]
    faults += _bring_together(predicted, true) + [f"  {fault}" for fault in unknown]
    if faults:
        labels = " or with the same labels" if unknown else ""
        raise InputError(
            f"--predictions={predictions} and --truth={truth} do not hold masks of the same cases on the same grid"
            f"{labels}; correct or take away:\n" + "\n".join(faults)
        )
    without = [case for case, mask in true.items() if mask.spacing is None]
    if without and len(without) < len(true):
        logging.warning("no spacing is known of %s, so distances are in voxels for all cases", ", ".join(without))
    rows, cases = [], []
    step = slice_step(sum(len(mask.labels) for mask in true.values()))
    named = all(CASE_NAME.fullmatch(case) for case in true)
    for case, mask in true.items():
        known = {"patient": case} | ({"institution": case.split("_")[1]} if named else {})
        ours, theirs = description.masks(predicted[case].labels), description.masks(mask.labels)
        counted = description.counted(mask.labels)
        scores = score_targets(
            ours,
            theirs,
            description.names,
            spacing=None if without else mask.spacing,
            tolerance=tolerance,
            counted=counted,
        )
        rows += [known | row for row in scores]
        cases.append(
            CasePictures(
                name=case,
                size=mask.labels.shape[1:],
                numbers=list(mask.numbers or range(1, len(mask.labels) + 1))[::step],
                scan=None,
                truth=outlines(theirs[::step]),
                overlays=[Overlay(outlines((ours if counted is None else ours & counted[..., None])[::step]))],
                step=step,
            )
        )
    facts = {"Predicted masks": str(predictions), "True masks": str(truth)}
    if naming:
        facts["Targets named by"] = naming.source
    if description.ignore is not None:
        facts["Not scored"] = f"voxels of label {description.ignore}"
    return Scored(predictions.absolute().name, rows, facts, description=description), cases


def _report_notes(masks: list[Mask]) -> None:
    """Logs what a user must know of the files, once for all files with the same note."""
    noted: dict[str, list[str]] = defaultdict(list)
    for mask in masks:
        for note in mask.notes:
            noted[note].append(str(mask.sources[0]))
    for note, files in noted.items():
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        logging.warning("%s%s: %s", files[0], more, note)


def _bring_together(predicted: dict[str, Mask], true: dict[str, Mask]) -> list[str]:
    """Brings the masks of each case onto one grid, in place; returns what keeps them apart, a line each."""
    faults = []
    for case in sorted(true.keys() & predicted.keys()):
        if predicted[case].grid and true[case].grid:
            grids = predicted[case].grid, true[case].grid
            predicted[case], true[case] = predicted[case].widened(grids[1]), true[case].widened(grids[0])
        if words := _differences(predicted[case], true[case]):
            faults += [f"  {case}: {difference}" for difference in words]
        elif true[case].grid:
            predicted[case] = predicted[case].on(true[case].grid)
    return faults


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
