"""Finished runs scored anew, one or several side by side."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import logging

from brainseg_jax.data.load_cohort import NO_SLICES, load_cohort
from brainseg_jax.data.prepare_source import prepare
from brainseg_jax.data.prepared import read_summary
from brainseg_jax.data.splits import Split
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.quality import with_expected
from brainseg_jax.evaluation.records import CaseScores, Scoring, Work
from brainseg_jax.evaluation.views import Scored
from brainseg_jax.runs.data import find_data
from brainseg_jax.runs.evaluation import Evaluation, build_evaluation, evaluation_of, read_cohort
from brainseg_jax.runs.facts import facts
from brainseg_jax.runs.journal import read_rows
from brainseg_jax.runs.trained import Trained, cases_of_training, load_trained, names_of, read_json
from brainseg_jax.scans.description import Description


def begin_runs(folders: list[Path], *, part: str, tolerance: float, source: str = "") -> Work:
    """Prepares to score networks on the patients of one part of their split, or on other labelled scans.

    The data of all runs are looked for here, so that none is missed after others are scored.

    Args:
      folders: of the runs, one or more, all of the same data, targets and patients in this part.
      part: val or test.
      tolerance: of surface Dice, in mm, or in voxels where no spacing is known.
      source: labelled scans of the same channels and targets, as `data.source` names them, whose cases are scored but
        for those that one of the runs was trained on or chosen by; "": the runs' own data.

    Raises:
      InputError: a folder cannot be used, its data are not there, or the runs have other data, targets or patients.
      StorageError: a checkpoint is damaged.
    """
    names = names_of(folders)
    trained = [load_trained(folder) for folder in folders]
    if source:
        return _begin_elsewhere(trained, names, source, tolerance)
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


def _begin_elsewhere(trained: list[Trained], names: list[str], source: str, tolerance: float) -> Work:
    _check_targets(trained)
    folder = prepare(source, trained[0].config.data.dir or None)
    summary = read_summary(folder)
    for run in trained:
        if run.network.description != summary.description:
            raise InputError(
                f"--source={source} has {_channels_and_targets(summary.description)}, and {run.folder} was trained on "
                f"{_channels_and_targets(run.network.description)}; give scans of the same, or "
                "rename them in a cohort.toml"
            )
    known: set[str] = set().union(*(set().union(*cases_of_training(run.folder)) for run in trained))
    version: dict = {
        f"run {name}": {"weights": run.weights_digest, "post-processing": [post._asdict() for post in run.posts]}
        for name, run in zip(names, trained, strict=True)
    }
    version["source"] = summary.fingerprint
    scorings = (
        _begin_run_elsewhere(run, name, folder, known, source, tolerance, warns=number == 0)
        for number, (name, run) in enumerate(zip(names, trained, strict=True))
    )
    return Work(version, scorings)


def _begin_run_elsewhere(
    trained: Trained, name: str, folder: Path, known: set[str], source: str, tolerance: float, *, warns: bool
) -> Scoring:
    cohort = read_cohort(trained.config, folder, load_cohort, slices=NO_SLICES)
    test = tuple(sorted(set(cohort.cases) - known))
    left_out = sorted(set(cohort.cases) & known)
    if not test:
        raise InputError(
            f"--source={source}: the network was trained on or chosen by all of its {len(left_out)} cases, so a score "
            "on them would be too good; give other scans"
        )
    if left_out and warns:
        shown = ", ".join(left_out[:5]) + (", ..." if left_out[5:] else "")
        logging.warning("%d cases are left out, since the network was trained on them: %s", len(left_out), shown)
    evaluation = evaluation_of(trained.config, cohort, Split((), (), test))
    scoring = _scoring(trained, name, evaluation, test, "test", tolerance)
    scoring.run.facts["Split"] = f"all {len(test)} cases of {source} that the network was not trained on"
    return scoring


def _channels_and_targets(description: Description) -> str:
    return f"channels {', '.join(description.channels)} and targets {_targets_of(description)}"


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
            f"{run.folder} was trained on data of fingerprint {(run.fingerprint or 'unknown')[:12]}, and {folder} has "
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
    _check_targets(trained)
    for run in trained[1:]:
        if different := sorted(patients[first] ^ patients[run.folder]):
            raise InputError(
                f"--run: {first} and {run.folder} do not have the same {part} patients, so they cannot be compared "
                f"patient by patient; only one of them has {', '.join(different)}"
            )


def _check_targets(trained: list[Trained]) -> None:
    first, *others = ((run.folder, run.network.description) for run in trained)
    for folder, description in others:
        if (description.targets, description.ignore) != (first[1].targets, first[1].ignore):
            raise InputError(
                f"--run: {first[0]} and {folder} do not have the same targets ({_targets_of(first[1])}; "
                f"{_targets_of(description)}); compare runs that do"
            )


def _targets_of(description: Description) -> str:
    targets = ", ".join(f"{target.name} {list(target.labels)}" for target in description.targets)
    return targets + ("" if description.ignore is None else f", label {description.ignore} ignored")


def _begin_run(trained: Trained, name: str, part: str, tolerance: float) -> Scoring:
    folder = trained.folder
    trained.config.split.file = str(folder / "split.json")  # the run's own, whatever a seed would make today
    evaluation = build_evaluation(trained.config, folder)
    cohort = evaluation.cohort
    _check_fingerprint(trained, cohort.fingerprint, cohort.folder)
    cases = tuple(sorted(getattr(evaluation.split, part)))
    return _scoring(trained, name, evaluation, cases, part, tolerance)


def _scoring(
    trained: Trained, name: str, evaluation: Evaluation, cases: tuple[str, ...], part: str, tolerance: float
) -> Scoring:
    config, cohort, folder = read_json(trained.folder / "config.json"), evaluation.cohort, trained.folder
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
