"""The prepared data and the split of a run: those that its config names, or its own, found by their fingerprint."""

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
    """The folder of the prepared data; with many processes the first one prepares them.

    Args:
      config: `data` of a config.
      run: the folder of a run of this config, if there is one: its data are found by their fingerprint where
        `data.source` is gone.
      source_first: False where the data of the run are to be looked for first.

    Raises:
      InputError: see `prepare`; nor do the data of the run lie prepared anywhere.
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
                    f"{reason}; nor do the data of the run, fingerprint {fingerprint[:12]}, lie prepared in "
                    f"{folders}; prepare them there again, or name the folder "
                    "that holds them in the environment variable TFDS_DATA_DIR"
                ) from error
            logging.warning("%s; the run's own data, which lie prepared in %s, are used", reason, folder)
            return folder

    return on_first_process("prepare the data", find) or find(progress=False)


def data_at_hand(config: ConfigDict, run: Path) -> Path | None:
    """The folder of the prepared data of a run, recognized by their fingerprint; None where they lie nowhere known.

    Args:
      config: `data` of the config of the run.
      run: its folder.
    """
    return _data_of(recorded(run), config)


def choose_split(config: ConfigDict, cohort: Cohort, run: Path | None) -> Split:
    """The split that a config asks for.

    Args:
      config: `split` of a config.
      cohort: whose cases are dealt.
      run: a run folder, whose own `split.json` serves where `split.file` is gone; or None.

    Raises:
      InputError: see `splits`.
    """
    if config.file:
        own = run / "split.json" if run else None
        try:
            path = user_path(config.file, "--config.split.file")
            reason = None if path.exists() else f"split.file={path} is gone"
        except InputError as error:
            if own is None or not own.exists():
                raise
            reason = str(error)
        if reason and own and own.exists():
            logging.warning("%s; %s is used", reason, own)
            path = own
        return read_split(path, cohort.cases, cohort.patients, fold=config.fold)
    dealt = (cohort.cases, cohort.patients, cohort.groups)
    if config.folds:
        return split_by_folds(*dealt, folds=config.folds, fold=config.fold, seed=config.seed)
    return split_by_fractions(*dealt, val=config.val, test=config.test, seed=config.seed)


def recorded(run: Path | None) -> dict:
    """What `config.json` of a run holds; empty where there is none that can be read (`claim_run_folder` reports it)."""
    try:
        content = json.loads((run / "config.json").read_text()) if run else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _data_of(run: dict, config: ConfigDict) -> Path | None:
    """The data that a run was trained on, recognized by their fingerprint.

    Where they are gone they are prepared again from the source of the run.

    Args:
      run: of `recorded`.
      config: `data`, as it is given now.

    Returns:
      None where they are not found.
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
    """Whether a prepared set has the content and the description of a run's data."""
    try:
        description = description_of(run["dataset"])
    except (InputError, KeyError, TypeError, AttributeError):
        return False
    return (summary.fingerprint, summary.description) == (_fingerprint_of(run), description)


def _fingerprint_of(run: dict) -> str | None:
    return (run.get("dataset") or {}).get("fingerprint")


def _data_folders(run: dict, config: ConfigDict) -> list[Path]:
    """Where the data of a run may lie prepared: in the folder given now, in that of the run, in TFDS's own.

    A folder below a home folder that is not known is left out.
    """
    given = (config.dir, run.get("data", {}).get("dir"), tfds.core.constants.get_default_data_dir())
    folders = []
    for folder in filter(None, given):
        with contextlib.suppress(RuntimeError):
            folders.append(Path(folder).expanduser().absolute())
    return list(dict.fromkeys(folders))
