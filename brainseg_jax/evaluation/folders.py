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
    """The result of the first reading of a case, without voxels.

    Attributes:
      case: name of the case.
      predicted: info of the predicted mask; None if it is missing or unreadable.
      true: info of the reference mask; None if it is missing or unreadable.
      unusable: why each of the two is unreadable; "" if it is readable.
      faults: why the two cannot be compared, one line each.
      slices: number of slices on the common grid.
    """

    case: str
    predicted: MaskInfo | None
    true: MaskInfo | None
    unusable: tuple[str, str]
    faults: list[str]
    slices: int


def begin_folders(predictions: Path, truth: Path, *, tolerance: float, targets: str = "") -> Work:
    """Reads and checks all cases of two folders once; the cases are scored later, one by one.

    Distances are in mm if the spacing of every case is known; otherwise they are in voxels for all cases, because they
    are averaged. Therefore every shard reads all masks once before it scores its cases. Each case is read again when it
    is scored, so memory holds one case at a time.

    Args:
      predictions: see `find_masks`.
      truth: see `find_masks`.
      tolerance: tolerance of surface Dice, in mm or in voxels.
      targets: names and labels, see `targets.parse_targets`; "": from a `dataset.json` or from the values.

    Raises:
      InputError: a folder or the targets cannot be used, cases are missing in one folder, labels are unknown, or
        shapes, slices or spacings differ. The message lists all faults.
    """
    naming = find_naming(truth, targets)
    files = find_masks(predictions), find_masks(truth)
    surveys = list(map_ahead(partial(_survey, *files), sorted(files[0].keys() | files[1].keys())))
    _check_readable(surveys, predictions, truth)
    predicted = {survey.case: survey.predicted for survey in surveys if survey.predicted}
    true = {survey.case: survey.true for survey in surveys if survey.true}
    _report_notes([*predicted.values(), *true.values()])
    meaning = describe_masks(true, predicted, naming)
    _check(surveys, meaning, predictions, truth)
    without_spacing = [case for case, mask in true.items() if mask.spacing is None]
    if without_spacing and len(without_spacing) < len(true):
        logging.warning(
            "the spacing of %s is unknown, so distances are in voxels for all cases", ", ".join(without_spacing)
        )
    facts = {"Predicted masks": str(predictions), "Reference masks": str(truth)}
    if naming:
        facts["Targets named by"] = naming.source
    if meaning.description.ignore is not None:
        facts["Not scored"] = f"voxels of label {meaning.description.ignore}"
    score_case = partial(
        _score,
        meaning=meaning,
        in_mm=not without_spacing,
        tolerance=tolerance,
        step=slice_step(sum(survey.slices for survey in surveys)),
        named=all(CASE_NAME.fullmatch(case) for case in true),
    )
    survey_of = {survey.case: survey for survey in surveys}
    scoring = Scoring(
        run=Scored(predictions.absolute().name, [], facts, description=meaning.description),
        cases=tuple(true),
        score=lambda cases: (score_case(survey_of[case], *_read_again(survey_of[case], *files)) for case in cases),
    )
    version = {
        "masks": {case: _digest(predicted[case], true[case]) for case in true},
        "meaning of the labels": meaning.description.to_json(),
    }
    return Work(version, iter([scoring]))


def _check_readable(surveys: list[_Survey], *folders: Path) -> None:
    """Raises InputError that lists all unreadable masks of both folders."""
    messages = []
    for k, folder in enumerate(folders):
        if faults := [survey.unusable[k] for survey in surveys if survey.unusable[k]]:
            messages.append(describe_faults(folder, faults))
    if messages:
        raise InputError("\n".join(messages))


def _check(surveys: list[_Survey], meaning: Meaning, predictions: Path, truth: Path) -> None:
    """Raises InputError that lists every reason why the folders cannot be compared."""
    faults = [f"  {survey.case}: in {truth} only" for survey in surveys if not survey.predicted]
    faults += [f"  {survey.case}: in {predictions} only" for survey in surveys if not survey.true]
    faults += [f"  {survey.case}: {fault}" for survey in surveys for fault in survey.faults]
    faults += [f"  {fault}" for fault in meaning.faults]
    if faults:
        labels = " or with the same labels" if meaning.faults else ""
        raise InputError(
            f"--predictions={predictions} and --truth={truth} do not hold masks of the same cases on the same grid"
            f"{labels}; correct or remove:\n" + "\n".join(faults)
        )


def _survey(predictions: dict[str, MaskFiles], truth: dict[str, MaskFiles], case: str) -> _Survey:
    """Reads the masks of a case and drops their voxels."""
    predicted, unusable_predicted = _read(predictions, case)
    true, unusable_true = _read(truth, case)
    survey = _Survey(
        case,
        predicted=None if predicted is None else predicted.info,
        true=None if true is None else true.info,
        unusable=(unusable_predicted, unusable_true),
        faults=[],
        slices=0,
    )
    if predicted is None or true is None:
        return survey
    _, true, faults = _to_common_grid(predicted, true)
    return survey._replace(faults=faults, slices=len(true.labels))


def _read(files: dict[str, MaskFiles], case: str) -> tuple[Mask | None, str]:
    """Returns the mask, None if it is missing or unreadable, and why it is unreadable, as in `_Survey`."""
    try:
        return files[case].read() if case in files else None, ""
    except InputError as error:
        return None, str(error)


def _read_again(survey: _Survey, predictions: dict[str, MaskFiles], truth: dict[str, MaskFiles]) -> tuple[Mask, Mask]:
    """Returns the masks of a case on a common grid.

    Raises:
      InputError: a file has changed since the first reading.
    """
    masks = [files[survey.case].read() for files in (predictions, truth)]
    for mask, info in zip(masks, (survey.predicted, survey.true), strict=True):
        assert info is not None  # only readable masks are scored
        if mask.checksum != info.checksum:
            raise InputError(f"{info.source}: it changed while the masks were scored; score all masks again")
    predicted, true, _ = _to_common_grid(*masks)
    return predicted, true


def _score(
    survey: _Survey,
    predicted: Mask,
    true: Mask,
    *,
    meaning: Meaning,
    in_mm: bool,
    tolerance: float,
    step: int,
    named: bool,
) -> CaseScores:
    """Returns the scores and outlines of a case.

    Args:
      survey: survey of the case.
      predicted: predicted mask, on the grid of `true`.
      true: the reference mask.
      meaning: meaning of the labels.
      in_mm: whether the spacing of all cases is known.
      tolerance: tolerance of surface Dice.
      step: distance between the slices that the report shows.
      named: whether all case names contain the institution, as in the LGG set.
    """
    assert survey.predicted is not None and survey.true is not None  # only readable masks are scored
    description = meaning.description
    reference = meaning.labels_of(true, survey.true)
    counted = description.counted(reference)
    prediction, reference = (
        description.masks(meaning.labels_of(predicted, survey.predicted)),
        description.masks(reference),
    )
    identity = {"patient": survey.case} | ({"institution": survey.case.split("_")[1]} if named else {})
    spacing = true.spacing if in_mm else None
    rows = score_targets(
        prediction, reference, description.names, spacing=spacing, tolerance=tolerance, counted=counted
    )
    numbers = list(true.numbers or range(1, len(reference) + 1))
    prediction = prediction if counted is None else prediction & counted[..., None]
    pictures = draw_case(survey.case, numbers, scan=None, truth=reference, masks=prediction, step=step)
    return CaseScores(survey.case, [identity | row for row in rows], {}, pictures)


def _digest(predicted: MaskInfo, true: MaskInfo) -> str:
    """Returns an identifier of the masks of a case; it changes with any voxel or spacing."""
    content = [(mask.spacing, mask.checksum) for mask in (predicted, true)]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:12]


def _report_notes(masks: list[MaskInfo]) -> None:
    """Logs each note about the files once, with the number of files."""
    files_of: dict[str, list[str]] = defaultdict(list)
    for mask in masks:
        for note in mask.notes:
            files_of[note].append(str(mask.source))
    for note, files in files_of.items():
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        logging.warning("%s%s: %s", files[0], more, note)


def _to_common_grid(predicted: Mask, true: Mask) -> tuple[Mask, Mask, list[str]]:
    """Returns the masks of a case on a common grid, and the reasons why they cannot be compared."""
    predicted_grid, true_grid = predicted.grid, true.grid
    if predicted_grid and true_grid:
        predicted, true = predicted.widened(true_grid), true.widened(predicted_grid)
    faults = _differences(predicted, true)
    if not faults and true.grid:
        predicted = predicted.on(true.grid)
    return predicted, true, faults


def _differences(predicted: Mask, true: Mask) -> list[str]:
    """Returns the reasons why two masks cannot be compared voxel by voxel."""
    if (predicted.spacing is None) != (true.spacing is None):
        files = ", ".join(str(mask.sources[0]) for mask in (predicted, true))
        return [f"one is a volume with a spacing, the other single slices: {files}"]
    if predicted.grid and true.grid:
        try:
            predicted.on(true.grid)
            return []
        except InputError as error:
            grid_fault = f"prediction and reference have different grids: {error}"
    faults = []
    if predicted.voxels.shape != true.voxels.shape:
        faults.append(
            f"prediction has {_lengths(predicted.voxels.shape)} voxels, reference {_lengths(true.voxels.shape)}"
        )
    elif predicted.numbers and true.numbers and predicted.numbers != true.numbers:
        faults.append(f"prediction starts at slice {predicted.numbers[0]}, reference at slice {true.numbers[0]}")
    spacing, true_spacing = predicted.spacing, true.spacing
    if (
        spacing
        and true_spacing
        and not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(spacing, true_spacing, strict=True))
    ):
        faults.append(f"spacing of the prediction {_lengths(spacing)} mm, of the reference {_lengths(true_spacing)} mm")
    if predicted.grid and not faults:
        faults.append(grid_fault)
    return faults


def _lengths(numbers: tuple[float, ...]) -> str:
    return " x ".join(f"{number:.6g}" for number in numbers)
