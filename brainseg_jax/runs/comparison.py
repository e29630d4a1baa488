"""Finished runs scored anew, one or several side by side."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from brainseg_jax.data.prepared import read_summary
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.quality import with_expected
from brainseg_jax.evaluation.records import CaseScores, Scoring, Work
from brainseg_jax.evaluation.views import Scored
from brainseg_jax.runs.data import find_data
from brainseg_jax.runs.evaluation import build_evaluation
from brainseg_jax.runs.facts import facts
from brainseg_jax.runs.journal import read_rows
from brainseg_jax.runs.trained import Trained, load_trained, names_of, read_json


def begin_runs(folders: list[Path], *, part: str, tolerance: float) -> Work:
    """Prepares to score the checkpoints that runs kept (`train.keep`) on the patients of one part of their split.

    The data of all runs are looked for here, so that none is missed after others are scored.

    Args:
      folders: of the runs, one or more, all of the same data, targets and patients in this part.
      part: val or test.
      tolerance: of surface Dice, in mm, or in voxels where no spacing is known.

    Raises:
      InputError: a folder cannot be used, its data are not there, or the runs have other data, targets or patients.
      StorageError: a checkpoint is damaged.
    """
    names = names_of(folders)
    trained = [load_trained(folder) for folder in folders]
    for run in trained:
        if run.fingerprint is None:
            raise InputError(
                f"{run.folder} holds converted weights: it has no split, and whom they were trained on is not known. "
                "Use predict with it, and score the masks by evaluate --predictions=FOLDER --truth=FOLDER"
            )
    _check_comparable(trained, part)
    for run in trained[1:]:  # those of the first are read before anything is scored
        data = find_data(run.config.data, run.folder, source_first=False)
        _check_fingerprint(run, read_summary(data).fingerprint, data)
    version = {f"run {name}": _version(run, part) for name, run in zip(names, trained, strict=True)}
    scorings = (_begin_run(run, name, part, tolerance) for name, run in zip(names, trained, strict=True))
    return Work(version, scorings)


def _version(run: Trained, part: str) -> dict:
    """Identifies what the scores of a run rest on."""
    files = (run.folder / name for name in ("config.json", "split.json"))
    config, split = (hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in files)
    return {
        "data": run.fingerprint,
        "weights": run.weights_digest,
        "step": run.step,
        "post-processing": [post._asdict() for post in run.posts],
        "expected Dice": run.expected_dice and run.expected_dice.digest,
        "config.json": config,
        "split.json": split,
    }


def _check_fingerprint(run: Trained, fingerprint: str, folder: Path) -> None:
    if fingerprint != run.fingerprint:
        raise InputError(
            f"{run.folder} was trained on data of fingerprint {run.fingerprint[:12]}, and {folder} has "
            f"{fingerprint[:12]}; prepare the data of the run again"
        )


def _check_comparable(trained: list[Trained], part: str) -> None:
    first = trained[0].folder
    patients = {run.folder: set(read_json(run.folder / "split.json").get(part, ())) for run in trained}
    for run in trained[1:]:
        if run.fingerprint != trained[0].fingerprint:
            raise InputError(
                f"--run: {first} and {run.folder} were trained on different data; compare runs of the same"
            )
        if _scored_by(run) != _scored_by(trained[0]):
            raise InputError(
                f"--run: {first} and {run.folder} do not have the same targets ({_targets(trained[0])}; "
                f"{_targets(run)}); compare runs that do"
            )
        if different := sorted(patients[first] ^ patients[run.folder]):
            raise InputError(
                f"--run: {first} and {run.folder} do not have the same {part} patients, so they cannot be compared "
                f"patient by patient; only one of them has {', '.join(different)}"
            )


def _scored_by(run: Trained) -> tuple:
    description = run.network.description
    return description.targets, description.ignore


def _targets(run: Trained) -> str:
    description = run.network.description
    targets = ", ".join(f"{target.name} {list(target.labels)}" for target in description.targets)
    return targets + ("" if description.ignore is None else f", label {description.ignore} ignored")


def _begin_run(trained: Trained, name: str, part: str, tolerance: float) -> Scoring:
    folder = trained.folder
    config = read_json(folder / "config.json")
    trained.config.split.file = str(folder / "split.json")  # the run's own, whatever a seed would make today
    evaluation = build_evaluation(trained.config, folder)
    cohort = evaluation.cohort
    _check_fingerprint(trained, cohort.fingerprint, cohort.folder)
    cases = tuple(sorted(getattr(evaluation.split, part)))
    rests_on = facts(
        config,
        evaluation,
        part=part,
        posts=trained.posts,
        chose_posts=trained.config.eval.choose and trained.results is not None,
        parameters=trained.parameters,
        step=trained.step,
    )
    thresholds = dict(zip(cohort.description.names, (post.threshold for post in trained.posts), strict=True))
    scored = Scored(
        name,
        [],
        rests_on,
        read_rows(folder / "metrics.jsonl"),
        thresholds=thresholds,
        config=config,
        kept=evaluation.kept,
        description=cohort.description,
    )

    def score(some: Sequence[str]) -> Iterator[CaseScores]:
        assessed = evaluation.assessor.assess_each(
            trained.network, some, trained.posts, tolerance=tolerance, report=cases
        )
        for one in assessed:
            rows = with_expected(one.rows, trained.expected_dice, cohort.description.names)
            yield CaseScores(one.name, rows, one.calibrations, one.pictures)

    return Scoring(scored, cases, score)
