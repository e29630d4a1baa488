"""The prepared data and the split of a run: those in its config, or the run's data found by their fingerprint."""

import contextlib
import json
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging
from ml_collections import ConfigDict

from brainseg_jax.data import prepared
from brainseg_jax.data.cohort import Cohort
from brainseg_jax.data.prepare_source import prepare
from brainseg_jax.data.splits import Split, read_split, split_by_folds, split_by_fractions
from brainseg_jax.errors import InputError
from brainseg_jax.files import user_path
from brainseg_jax.runs.build import description_of
from brainseg_jax.runs.processes import on_first_process


def find_data(config: ConfigDict, run: Path | None, *, source_first: bool) -> Path:
    """The folder of the prepared data. With several processes, the first one prepares them.

    Args:
      config: `data` of a config.
      run: the folder of a run of this config, if it exists. If `data.source` is missing, its data are found by their
        fingerprint.
      source_first: False to look for the data of the run before `data.source`.

    Raises:
      InputError: see `prepare`; the data of the run are not found either.
    """
    before = recorded(run)

    def find(*, progress: bool = True) -> Path:
        if not source_first and (folder := _data_of(before, config)):
            return folder
        try:
            return prepare(config.source, config.dir or None, progress=progress)
        except InputError as error:
            reason, fingerprint = str(error).splitlines()[0].split(". ")[0], _fingerprint_of(before)
            if not fingerprint:
                raise
            if (folder := _data_of(before, config)) is None:
                folders = ", ".join(map(str, _data_folders(before, config))) or "a known folder"
                raise InputError(
                    f"{reason}; the data of the run, fingerprint {fingerprint[:12]}, are not in {folders} either; "
                    "prepare them there again, or set the environment variable TFDS_DATA_DIR to their folder"
                ) from error
            logging.warning("%s; using the prepared data of the run in %s", reason, folder)
            return folder

    return on_first_process("prepare the data", find) or find(progress=False)


def data_at_hand(config: ConfigDict, run: Path) -> Path | None:
    """The folder of the prepared data of a run, found by their fingerprint. Returns None if it is not found.

    Args:
      config: `data` of the config of the run.
      run: folder of the run.
    """
    return _data_of(recorded(run), config)


def choose_split(config: ConfigDict, cohort: Cohort, run: Path | None) -> Split:
    """The split that a config describes.

    Args:
      config: `split` of a config.
      cohort: the cases to split.
      run: a run folder, or None. If `split.file` is missing, `split.json` of the run replaces it.

    Raises:
      InputError: see `splits`.
    """
    if config.file:
        stored_split = run / "split.json" if run else None
        try:
            path = user_path(config.file, "--config.split.file")
            reason = None if path.exists() else f"split.file={path} is missing"
        except InputError as error:
            if stored_split is None or not stored_split.exists():
                raise
            reason = str(error)
        if reason and stored_split and stored_split.exists():
            logging.warning("%s; using %s", reason, stored_split)
            path = stored_split
        return read_split(path, cohort.cases, cohort.patients, fold=config.fold)
    arguments = (cohort.cases, cohort.patients, cohort.groups)
    if config.folds:
        return split_by_folds(*arguments, folds=config.folds, fold=config.fold, seed=config.seed)
    return split_by_fractions(*arguments, val=config.val, test=config.test, seed=config.seed)


def recorded(run: Path | None) -> dict:
    """The content of `config.json` of a run. Empty if it cannot be read; `claim_run_folder` reports that."""
    try:
        content = json.loads((run / "config.json").read_text()) if run else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _data_of(run: dict, config: ConfigDict) -> Path | None:
    """The data that a run was trained on, found by their fingerprint; otherwise prepared again from its source.

    Args:
      run: result of `recorded`.
      config: the current `data`.

    Returns:
      The folder, or None if it is not found.
    """
    fingerprint, before = _fingerprint_of(run), run.get("data", {})
    if not fingerprint:
        return None
    for root in _data_folders(run, config):
        for folder, summary in prepared.list_prepared(root).items():
            if _is_of(run, summary):
                return folder
    if config.source == before.get("source"):
        return None
    try:
        folder = prepare(before["source"], config.dir or before.get("dir") or None, progress=False)
    except (InputError, KeyError):
        return None
    return folder if _is_of(run, prepared.read_summary(folder)) else None


def _is_of(run: dict, summary: prepared.Summary) -> bool:
    """Whether a prepared data set has the fingerprint and the description of a run's data."""
    try:
        description = description_of(run["dataset"])
    except (InputError, KeyError, TypeError, AttributeError):
        return False
    return (summary.fingerprint, summary.description) == (_fingerprint_of(run), description)


def _fingerprint_of(run: dict) -> str | None:
    return (run.get("dataset") or {}).get("fingerprint")


def _data_folders(run: dict, config: ConfigDict) -> list[Path]:
    """Folders that may contain the prepared data of a run.

    They are the configured folder, that of the run, and the default of TFDS. A folder with `~` is left out if the home
    folder is unknown.
    """
    candidates = (config.dir, run.get("data", {}).get("dir"), tfds.core.constants.get_default_data_dir())
    folders = []
    for folder in filter(None, candidates):
        with contextlib.suppress(RuntimeError):
            folders.append(Path(folder).expanduser().absolute())
    return list(dict.fromkeys(folders))
