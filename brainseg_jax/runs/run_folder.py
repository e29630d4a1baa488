"""Locks a run folder and records its config, data and split, so that a restart continues the same run."""

import dataclasses
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from brainseg_jax.config import default_config
from brainseg_jax.data.cohort import Cohort
from brainseg_jax.data.splits import Split, read_split, write_split
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.scores import write_json
from brainseg_jax.files import user_path
from brainseg_jax.runs.processes import on_first_process
from brainseg_jax.scans.description import LGG

# Only these keys may change when a run is resumed.
MAY_CHANGE = frozenset(
    (
        "compilation_cache",
        "data.dir",
        "data.residence",  # does not change the batches
        "data.source",  # the fingerprint of the data is compared instead
        "split.file",  # the split is compared instead
        "train.epochs",
        "train.early_stop_patience",
        "train.log_every",
        "train.skip_nonfinite",
        "eval.batch_size",
    )
)


@contextmanager
def lock_run_folder(workdir: Path) -> Iterator[None]:
    """Locks the run folder against other processes. Creates it if it is missing.

    The operating system holds the lock on `run.lock`, so it ends with the process. The file names the owner, for the
    error message of other processes. An owner that exits normally empties it.

    Raises:
      InputError: another process has the lock, or the folder cannot be written to.
    """
    path = workdir / "run.lock"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Unbuffered: on a full disk, closing a buffered file fails again with another message.
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise _unwritable(workdir, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().decode(errors="replace").strip() or "another process"
            raise InputError(
                f"{workdir} is in use by {owner}; wait for it, stop it, or give another --workdir"
            ) from None
        except OSError as error:
            logging.warning("%s cannot be locked (%s): make sure that no other process uses the folder", path, error)
        file.seek(0)
        if before := file.read().decode(errors="replace").strip():
            logging.warning("taking over %s from %s, which ended without releasing it", workdir, before)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}, started {started}\n".encode())
        except OSError as error:
            raise _unwritable(workdir, error) from error
        try:
            yield
        finally:
            with suppress(OSError):  # a missing disk must not hide why the run ended
                file.truncate(0)


def claim_run_folder(workdir: Path, config: ConfigDict, cohort: Cohort, split: Split) -> None:
    """Writes `config.json` and `split.json`, or compares them with those of the run to resume.

    Records absolute paths of the data, so that commands find them from any folder.

    Raises:
      InputError: the folder has a run of another config, data or split (the message lists the differences), or cannot
        be written to.
    """
    dataset: dict = {"fingerprint": cohort.fingerprint}
    if cohort.description != LGG:
        dataset["description"] = cohort.description.to_json()
    content = {**config.to_dict(), "dataset": dataset}
    content["data"]["dir"] = str(cohort.folder.absolute().parents[2])
    with suppress(InputError):  # the source is unreadable, but the data were found without it
        if (source := user_path(config.data.source, "--config.data.source")).exists():
            content["data"]["source"] = str(source.absolute())

    def claim() -> None:
        if (workdir / "config.json").exists():
            _compare(workdir, content, cohort, split)
        elif (workdir / "checkpoints").exists():
            raise InputError(f"{workdir} has checkpoints but no config.json to compare with; give a new --workdir")
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            write_split(workdir / "split.json", split)
            write_json(workdir / "config.json", content)
        except OSError as error:
            raise _unwritable(workdir, error) from error

    on_first_process("claim the run folder", claim)


def _unwritable(workdir: Path, error: OSError) -> InputError:
    return InputError(f"--workdir={workdir} cannot be written to ({error}); make room, or give another folder")


def _compare(workdir: Path, content: dict, cohort: Cohort, split: Split) -> None:
    path = workdir / "config.json"
    try:
        before, now = flatten(json.loads(path.read_text())), flatten(content)
        # Settings added to the code after the start of the run had their default value.
        before = flatten(default_config().to_dict()) | before
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({error}); give a new --workdir") from error
    # A cosine schedule depends on the number of epochs from the first step on.
    may_change = MAY_CHANGE - {"train.epochs"} if now["optimizer.schedule"] == "cosine" else MAY_CHANGE
    different = sorted(
        key for key in before.keys() | now.keys() if before.get(key) != now.get(key) and key not in may_change
    )
    if different:
        lines = [f"  {key}: {before.get(key)!r} before, {now.get(key)!r} now" for key in different]
        raise InputError(
            f"{workdir} has a run of another experiment; give a new --workdir, or the same settings:\n"
            + "\n".join(lines)
        )
    subsets, subsets_now = (
        {patient: part for part, patients in dataclasses.asdict(split).items() for patient in patients}
        for split in (read_split(workdir / "split.json", cohort.cases, cohort.patients), split)
    )
    if moved := [p for p in sorted(subsets | subsets_now) if subsets.get(p) != subsets_now.get(p)]:
        lines = [f"  {p}: {subsets.get(p, 'left out')} before, {subsets_now.get(p, 'left out')} now" for p in moved]
        raise InputError(
            f"{workdir}/split.json is not the split of this config; give a new --workdir:\n" + "\n".join(lines)
        )


def flatten(tree: dict, prefix: str = "") -> dict:
    """Flattens nested dicts; the keys of the levels are joined by dots. Tuples become lists, as in JSON."""
    flat: dict = {}
    for key, value in tree.items():
        value = list(value) if isinstance(value, tuple) else value
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
