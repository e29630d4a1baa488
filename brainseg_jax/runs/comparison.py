"""Scores finished runs again, one or several side by side."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import logging

from brainseg_jax.data.load_cohort import NO_SLICES, load_cohort
from brainseg_jax.data.prepare_source import prepare
from brainseg_jax.data.prepared import read_summary
from brainseg_jax.data.splits import Split, cases_sharing_patients
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.quality import with_expected
from brainseg_jax.evaluation.records import CaseScores, Scoring, Work
from brainseg_jax.evaluation.views import Scored
from brainseg_jax.files import network_path
from brainseg_jax.runs.data import data_at_hand, find_data
from brainseg_jax.runs.evaluation import Evaluation, build_evaluation, evaluation_of, read_cohort
from brainseg_jax.runs.facts import facts
from brainseg_jax.runs.metrics_log import read_rows
from brainseg_jax.runs.trained import Trained, cases_of_training, load_trained, names_of, read_json
from brainseg_jax.scans.description import LGG, Description


def begin_runs(folders: list[Path], *, part: str, tolerance: float, source: str = "") -> Work:
    """Prepares to score networks on the patients of one subset of their split, or on other labelled scans.

    Looks for the data of all runs first, so that a missing data set is an error before any run is scored.

    Args:
      folders: run folders, one or more. All have the same data, targets and patients in this subset.
      part: val or test.
      tolerance: of surface Dice, in mm, or in voxels if the spacing is unknown.
      source: labelled scans of the same channels and targets, written as in `data.source`. Cases of patients that a run
        used for training or validation are left out. "": the data of the runs.

    Raises:
      InputError: a folder or its data cannot be used, or the runs differ in data, targets or patients.
      StorageError: a checkpoint is damaged.
    """
    names = names_of(folders)
    trained = [load_trained(folder) for folder in folders]
    if source:
        return _begin_elsewhere(trained, names, source, tolerance)
    for run in trained:
        if run.fingerprint is None:
            raise InputError(
                f"{run.folder} has converted weights: no split, and the training patients are unknown. "
                "Run predict with it, then score the masks with evaluate --predictions=FOLDER --truth=FOLDER"
            )
    _check_comparable(trained, part)
    for run in trained[1:]:  # the data of the first run are read before scoring starts
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
                f"{_channels_and_targets(run.network.description)}; give scans with the same names, "
                "or rename them in a cohort.toml"
            )
    known_cases, unknown = _known_cases(trained)
    for message in unknown:
        logging.warning("%s; cases of its patients are not left out, and scores on them are too good", message)
    version: dict = {
        f"run {name}": {
            "weights": run.weights_digest,
            "post-processing": [post._asdict() for post in run.posts],
            "expected Dice": run.expected_dice and run.expected_dice.digest,
            "config.json": _digest_of(run.folder / "config.json"),
        }
        for name, run in zip(names, trained, strict=True)
    }
    version |= {
        "source": summary.fingerprint,
        "known cases": hashlib.sha256(repr(sorted(known_cases)).encode()).hexdigest(),
    }
    scorings = (
        _begin_run_elsewhere(run, name, folder, known_cases, source, tolerance, unknown=unknown, warns=number == 0)
        for number, (name, run) in enumerate(zip(names, trained, strict=True))
    )
    return Work(version, scorings)


def _known_cases(trained: list[Trained]) -> tuple[set[str], list[str]]:
    """Names of cases and patients that the runs, and the runs they started from, used for training or validation.

    Returns:
      The names, and a message for each network whose training cases are unknown.

    Raises:
      InputError: `split.json` cannot be used, or is missing in a run that was not converted.
    """
    known: set[str] = set()
    messages: list[str] = []
    for run in trained:
        cases = cases_of_training(run.folder)
        if cases is None and run.fingerprint is not None:
            raise InputError(
                f"{run.folder / 'split.json'} is missing, so the training patients are unknown; "
                "restore a complete copy of the folder"
            )
        if cases is None:
            messages.append(f"{run.folder} has converted weights, and their training patients are unknown")
        else:
            known |= set().union(*cases) | _patients_of(run, set().union(*cases))
        started_from, folders = run.config.train.init_from, {run.folder.resolve()}
        while started_from:
            folder = network_path(started_from, "train.init_from").resolve()
            if folder in folders:
                break
            folders.add(folder)
            if not (folder / "config.json").exists() or (cases := cases_of_training(folder)) is None:
                messages.append(f"{run.folder} started from {started_from}, and its training patients are unknown")
                break
            known |= set().union(*cases)
            train = read_json(folder / "config.json").get("train")
            started_from = train.get("init_from") if isinstance(train, dict) else None
    return known, messages


def _patients_of(run: Trained, cases: set[str]) -> set[str]:
    """Patients of the given cases, if the prepared data of the run exist. LGG needs none: its cases are patients."""
    if run.network.description == LGG or (folder := data_at_hand(run.config.data, run.folder)) is None:
        return set()
    cohort = read_cohort(run.config, folder, load_cohort, slices=NO_SLICES)
    return {patient for case, patient in zip(cohort.cases, cohort.patients, strict=True) if case in cases}


def _begin_run_elsewhere(
    trained: Trained,
    name: str,
    folder: Path,
    known_cases: set[str],
    source: str,
    tolerance: float,
    *,
    unknown: list[str],
    warns: bool,
) -> Scoring:
    cohort = read_cohort(trained.config, folder, load_cohort, slices=NO_SLICES)
    left_out = cases_sharing_patients(cohort.cases, cohort.patients, known_cases)
    test = tuple(sorted(set(cohort.cases) - left_out))
    if not test:
        raise InputError(
            f"--source={source}: the network used the patients of all {len(left_out)} cases for training or "
            "validation, so scores on them would be too good; give other scans"
        )
    if left_out and warns:
        logging.warning(
            "left out %d cases, since the network used them or other scans of their patients for training or "
            "validation: %s",
            len(left_out),
            ", ".join(sorted(left_out)),
        )
    evaluation = evaluation_of(trained.config, cohort, Split((), (), test))
    scoring = _scoring(trained, name, evaluation, test, "test", tolerance)
    scored = f"{len(test)} cases of {source}, no training patients among them; {len(left_out)} left out"
    if unknown:
        scored = f"{len(test)} cases of {source}, {len(left_out)} left out. Unknown: {'; '.join(unknown)}"
        scoring.run.facts["Scored"] = "cases that may be in the training data of the network"
    scoring.run.facts["Split"] = scored
    return scoring


def _channels_and_targets(description: Description) -> str:
    return f"channels {', '.join(description.channels)} and targets {_targets_of(description)}"


def _version(run: Trained, part: str) -> dict:
    """Identifies everything that the scores of a run depend on."""
    config, split = (_digest_of(run.folder / name) for name in ("config.json", "split.json"))
    return {
        "data": run.fingerprint,
        "weights": run.weights_digest,
        "step": run.step,
        "post-processing": [post._asdict() for post in run.posts],
        "expected Dice": run.expected_dice and run.expected_dice.digest,
        "config.json": config,
        "split.json": split,
    }


def _digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _check_fingerprint(run: Trained, fingerprint: str, folder: Path) -> None:
    if fingerprint != run.fingerprint:
        raise InputError(
            f"{run.folder} was trained on data of fingerprint {(run.fingerprint or 'unknown')[:12]}, and {folder} has "
            f"{fingerprint[:12]}; prepare the data of the run again"
        )


def _check_comparable(trained: list[Trained], part: str) -> None:
    first = trained[0].folder
    patients = {run.folder: set(names) for run in trained for names in [_part_of(run.folder / "split.json", part)]}
    for run in trained[1:]:
        if run.fingerprint != trained[0].fingerprint:
            raise InputError(
                f"--run: {first} and {run.folder} were trained on different data; compare runs on the same data"
            )
    _check_targets(trained)
    for run in trained[1:]:
        if different := sorted(patients[first] ^ patients[run.folder]):
            raise InputError(
                f"--run: {first} and {run.folder} do not have the same {part} patients, so they cannot be compared "
                f"patient by patient; only one of them has {', '.join(different)}"
            )


def _part_of(path: Path, part: str) -> list[str]:
    """The names in a subset of a split. `read_split` checks the rest."""
    names = read_json(path).get(part)
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InputError(f"{path}: {part!r} is missing or not a list of names; restore a complete copy of the folder")
    return names


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
    trained.config.split.file = str(folder / "split.json")  # not a new split from the seed
    evaluation = build_evaluation(trained.config, folder)
    cohort = evaluation.cohort
    _check_fingerprint(trained, cohort.fingerprint, cohort.folder)
    cases = tuple(sorted(getattr(evaluation.split, part)))
    return _scoring(trained, name, evaluation, cases, part, tolerance)


def _scoring(
    trained: Trained, name: str, evaluation: Evaluation, cases: tuple[str, ...], part: str, tolerance: float
) -> Scoring:
    config, cohort, folder = read_json(trained.folder / "config.json"), evaluation.cohort, trained.folder
    run_facts = facts(
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
        run_facts,
        read_rows(folder / "metrics.jsonl"),
        thresholds=thresholds,
        config=config,
        kept=evaluation.kept,
        description=cohort.description,
    )

    def score(batch: Sequence[str]) -> Iterator[CaseScores]:
        assessed = evaluation.assessor.assess_each(
            trained.network, batch, trained.posts, tolerance=tolerance, report_cases=cases
        )
        for assessed_case in assessed:
            rows = with_expected(assessed_case.rows, trained.expected_dice, cohort.description.names)
            yield CaseScores(assessed_case.name, rows, assessed_case.calibrations, assessed_case.pictures)

    return Scoring(scored, cases, score)
