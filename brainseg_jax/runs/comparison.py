"""Finished runs scored anew, one or several side by side."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.case_pictures import CasePictures
from brainseg_jax.evaluation.records import CaseScores, Scoring, collect
from brainseg_jax.evaluation.views import Scored
from brainseg_jax.runs.evaluation import build_evaluation
from brainseg_jax.runs.facts import facts
from brainseg_jax.runs.journal import read_rows
from brainseg_jax.runs.trained import Trained, load_trained, read_json
from brainseg_jax.shards import WHOLE, Shard


def score_runs(folders: list[Path], *, part: str, tolerance: float) -> tuple[list[Scored], list[CasePictures]]:
    """Scores runs, and holds the pictures of all cases in memory; arguments and errors: see `begin_runs`.

    Returns:
      what a report needs of each run, and the pictures with an overlay of each.
    """
    return collect(begin_runs(folders, part=part, tolerance=tolerance))


def begin_runs(folders: list[Path], *, part: str, tolerance: float, shard: Shard = WHOLE) -> Iterator[Scoring]:
    """Prepares to score the checkpoints that runs kept (`train.keep`) on the patients of one part of their split.

    Args:
      folders: of the runs, one or more, all of the same data, targets and patients in this part.
      part: val or test.
      tolerance: of surface Dice, in mm, or in voxels where no spacing is known.
      shard: of the cases, which one is scored.

    Yields:
      one run after the other, so that memory holds the data of one.

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
    for run, name in zip(trained, names, strict=True):
        yield _begin_run(run, name, part, tolerance, shard)


def names_of(folders: list[Path]) -> list[str]:
    """The last parts of the paths, as many as tell all apart."""
    parts = [folder.absolute().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise InputError(f"--run={','.join(map(str, folders))}: a folder twice; give each once")
    length = 1
    while len({p[-length:] for p in parts}) < len(parts):
        length += 1
    return ["/".join(p[-length:]) for p in parts]


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


def _begin_run(trained: Trained, name: str, part: str, tolerance: float, shard: Shard) -> Scoring:
    folder = trained.folder
    config = read_json(folder / "config.json")
    trained.config.split.file = str(folder / "split.json")  # the run's own, whatever a seed would make today
    evaluation = build_evaluation(trained.config, folder)
    cohort = evaluation.cohort
    if cohort.fingerprint != trained.fingerprint:
        raise InputError(
            f"{folder} was trained on data of fingerprint {trained.fingerprint[:12]}, and {cohort.folder} has "
            f"{cohort.fingerprint[:12]}; prepare the data of the run again"
        )
    cases = tuple(sorted(getattr(evaluation.split, part)))
    assessed = evaluation.assessor.assess_each(
        trained.network, shard.of(cases), trained.posts, tolerance=tolerance, report=cases
    )
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
    scores = (CaseScores(one.name, one.rows, one.calibrations, one.pictures) for one in assessed)
    leaves = jax.tree.leaves(trained.network.variables)
    weights = zlib.crc32(b"".join(np.asarray(leaf).tobytes() for leaf in leaves))
    return Scoring(scored, cases, f"data {cohort.fingerprint}, step {trained.step}, weights {weights}", scores)
