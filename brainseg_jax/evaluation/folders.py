"""Scores a folder of predicted masks against a folder of reference masks."""

import hashlib
import math
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

from absl import logging

from brainseg_jax.data.ahead import map_ahead
from brainseg_jax.data.source import CASE_NAME
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.case_pictures import draw_case, slice_step
from brainseg_jax.evaluation.records import CaseScores, Scoring, Work
from brainseg_jax.evaluation.targets import Meaning, describe_masks, find_naming
from brainseg_jax.evaluation.views import Scored
from brainseg_jax.evaluation.volumes import score_targets
from brainseg_jax.scans.masks import Mask, MaskFiles, MaskInfo, describe_faults, find_masks


class _Survey(NamedTuple):
    """What the first reading of a case finds; the voxels are let go.

    Attributes:
      case: its name.
      predicted: of the predicted mask; None where there is none, or none that can be read.
      true: of the reference mask, in the same way.
      unusable: why the one and the other cannot be read; "" where they can.
      faults: what keeps the two apart, a line each.
      slices: how many there are on the grid of both.
    """

    case: str
    predicted: MaskInfo | None
    true: MaskInfo | None
    unusable: tuple[str, str]
    faults: list[str]
    slices: int


def begin_folders(predictions: Path, truth: Path, *, tolerance: float, targets: str = "") -> Work:
    """Reads every case of two folders that hold the same cases once, and prepares to score them one by one.

    Distances are in mm where the spacing of every case is known, else in voxels for all, as one mean is made of them.
    So every shard of an evaluation reads all masks once before it scores its own cases. Memory holds a case at a time:
    each is read again when it is scored.

    Args:
      predictions: see `find_masks`.
      truth: see `find_masks`.
      tolerance: of surface Dice, in mm or in voxels.
      targets: names and labels, see `targets.parse_targets`; "": those of a `dataset.json` or of the values.

    Raises:
      InputError: a folder or the targets cannot be used; or cases are missing in one, hold labels that are not known,
        or differ in shape, slices or spacing: all are listed.
    """
    naming = find_naming(truth, targets)
    files = find_masks(predictions), find_masks(truth)
    surveys = list(map_ahead(partial(_survey, *files), sorted(files[0].keys() | files[1].keys())))
    _check_readable(surveys, predictions, truth)
    predicted = {one.case: one.predicted for one in surveys if one.predicted}
    true = {one.case: one.true for one in surveys if one.true}
    _report_notes([*predicted.values(), *true.values()])
    meaning = describe_masks(true, predicted, naming)
    _check(surveys, meaning, predictions, truth)
    without = [case for case, mask in true.items() if mask.spacing is None]
    if without and len(without) < len(true):
        logging.warning("no spacing is known of %s, so distances are in voxels for all cases", ", ".join(without))
    facts = {"Predicted masks": str(predictions), "True masks": str(truth)}
    if naming:
        facts["Targets named by"] = naming.source
    if meaning.description.ignore is not None:
        facts["Not scored"] = f"voxels of label {meaning.description.ignore}"
    score_case = partial(
        _score,
        meaning=meaning,
        in_mm=not without,
        tolerance=tolerance,
        step=slice_step(sum(one.slices for one in surveys)),
        named=all(CASE_NAME.fullmatch(case) for case in true),
    )
    of_case = {one.case: one for one in surveys}
    scoring = Scoring(
        run=Scored(predictions.absolute().name, [], facts, description=meaning.description),
        cases=tuple(true),
        score=lambda cases: (score_case(of_case[case], *_read_again(of_case[case], *files)) for case in cases),
    )
    version = {
        "masks": {case: _digest(predicted[case], true[case]) for case in true},
        "meaning of the labels": meaning.description.to_json(),
    }
    return Work(version, iter([scoring]))


def _check_readable(surveys: list[_Survey], *folders: Path) -> None:
    """Raises InputError where a mask of one of the folders cannot be read; all are listed."""
    words = []
    for k, folder in enumerate(folders):
        if faults := [one.unusable[k] for one in surveys if one.unusable[k]]:
            words.append(describe_faults(folder, faults))
    if words:
        raise InputError("\n".join(words))


def _check(surveys: list[_Survey], meaning: Meaning, predictions: Path, truth: Path) -> None:
    """Raises InputError where the folders cannot be compared, with everything that is in the way."""
    faults = [f"  {one.case}: in {truth} only" for one in surveys if not one.predicted]
    faults += [f"  {one.case}: in {predictions} only" for one in surveys if not one.true]
    faults += [f"  {one.case}: {fault}" for one in surveys for fault in one.faults]
    faults += [f"  {fault}" for fault in meaning.faults]
    if faults:
        labels = " or with the same labels" if meaning.faults else ""
        raise InputError(
            f"--predictions={predictions} and --truth={truth} do not hold masks of the same cases on the same grid"
            f"{labels}; correct or take away:\n" + "\n".join(faults)
        )


def _survey(predictions: dict[str, MaskFiles], truth: dict[str, MaskFiles], case: str) -> _Survey:
    """Reads the masks of a case, and forgets their voxels."""
    masks: list[Mask | None] = []
    unusable = []
    for files in (predictions, truth):
        try:
            masks.append(files[case].read() if case in files else None)
            unusable.append("")
        except InputError as error:
            masks.append(None)
            unusable.append(str(error))
    infos = [mask and mask.info for mask in masks]
    if not all(masks):
        return _Survey(case, *infos, tuple(unusable), [], 0)
    _, true, faults = _bring_together(*masks)
    return _Survey(case, *infos, tuple(unusable), faults, len(true.labels))


def _read_again(one: _Survey, predictions: dict[str, MaskFiles], truth: dict[str, MaskFiles]) -> tuple[Mask, Mask]:
    """The masks of a case on one grid.

    Raises:
      InputError: a file is not what it was when all cases were looked at.
    """
    masks = [files[one.case].read() for files in (predictions, truth)]
    for mask, info in zip(masks, (one.predicted, one.true), strict=True):
        if mask.checksum != info.checksum:
            raise InputError(f"{info.source}: it was changed while the masks were scored; score all again")
    predicted, true, _ = _bring_together(*masks)
    return predicted, true


def _score(
    one: _Survey,
    predicted: Mask,
    true: Mask,
    *,
    meaning: Meaning,
    in_mm: bool,
    tolerance: float,
    step: int,
    named: bool,
) -> CaseScores:
    """The scores and outlines of a case.

    Args:
      one: of the case.
      predicted: on the grid of `true`.
      true: the reference mask.
      meaning: of the labels.
      in_mm: whether the spacing of all cases is known.
      tolerance: of surface Dice.
      step: every how many slices the report shows.
      named: whether the names of all cases hold the institution, as in the LGG set.
    """
    description = meaning.description
    theirs = meaning.labels_of(true, one.true)
    counted = description.counted(theirs)
    ours, theirs = description.masks(meaning.labels_of(predicted, one.predicted)), description.masks(theirs)
    known = {"patient": one.case} | ({"institution": one.case.split("_")[1]} if named else {})
    spacing = true.spacing if in_mm else None
    rows = score_targets(ours, theirs, description.names, spacing=spacing, tolerance=tolerance, counted=counted)
    numbers = list(true.numbers or range(1, len(theirs) + 1))
    ours = ours if counted is None else ours & counted[..., None]
    pictures = draw_case(one.case, numbers, scan=None, truth=theirs, masks=ours, step=step)
    return CaseScores(one.case, [known | row for row in rows], {}, pictures)


def _digest(predicted: MaskInfo, true: MaskInfo) -> str:
    """Identifies the masks of a case: another voxel or spacing gives another one."""
    known = [(mask.spacing, mask.checksum) for mask in (predicted, true)]
    return hashlib.sha256(repr(known).encode()).hexdigest()[:12]


def _report_notes(masks: list[MaskInfo]) -> None:
    """Logs what a user must know of the files, once for all files with the same note."""
    noted: dict[str, list[str]] = defaultdict(list)
    for mask in masks:
        for note in mask.notes:
            noted[note].append(str(mask.source))
    for note, files in noted.items():
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        logging.warning("%s%s: %s", files[0], more, note)


def _bring_together(predicted: Mask, true: Mask) -> tuple[Mask, Mask, list[str]]:
    """The masks of a case on one grid, and what keeps them apart, in words."""
    if predicted.grid and true.grid:
        predicted, true = predicted.widened(true.grid), true.widened(predicted.grid)
    faults = _differences(predicted, true)
    if not faults and true.grid:
        predicted = predicted.on(true.grid)
    return predicted, true, faults


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
