"""What a run folder was made for, so that a run started again there is the same run."""

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

# A run that is started again may differ from its first start in these keys only.
MAY_CHANGE = frozenset(
    (
        "compilation_cache",
        "data.dir",
        "data.residence",  # batches are the same wherever they come from
        "data.source",  # the fingerprint of the data is compared in its place
        "split.file",  # and so is the split
        "train.epochs",
        "train.early_stop_patience",
        "train.log_every",
        "train.skip_nonfinite",
        "eval.batch_size",
    )
)


@contextmanager
def own_run_folder(workdir: Path) -> Iterator[None]:
    """Keeps other processes out of the run folder, which is made where it is missing.

    The lock is the operating system's on `run.lock`, so it ends with its process however that ends. The file holds who
    the owner is, for the message to others; an owner that ended in order has emptied it.

    Raises:
      InputError: another process has it, or the folder cannot be written to.
    """
    path = workdir / "run.lock"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Without a buffer: on a full disk one would fail again, and in other words, when it is closed.
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
            logging.warning("%s cannot be locked (%s): see to it that no second process uses the folder", path, error)
        file.seek(0)
        if before := file.read().decode(errors="replace").strip():
            logging.warning("taking over %s from %s, which ended without letting go of it", workdir, before)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}, started {started}\n".encode())
        except OSError as error:
            raise _unwritable(workdir, error) from error
        try:
            yield
        finally:
            with suppress(OSError):  # of a disk that is gone: it must not hide why the run ended
                file.truncate(0)


def claim_run_folder(workdir: Path, config: ConfigDict, cohort: Cohort, split: Split) -> None:
    """Writes `config.json` and `split.json`, or compares with those of the run that is gone on with.

    The places of the data are written whole, so that the run finds them from another folder too.

    Raises:
      InputError: where the folder holds a run of another config, data or split, with what differs; where it cannot be
        written to.
    """
    dataset: dict = {"fingerprint": cohort.fingerprint}
    if cohort.description != LGG:
        dataset["description"] = cohort.description.to_json()
    content = {**config.to_dict(), "dataset": dataset}
    content["data"]["dir"] = str(cohort.folder.absolute().parents[2])
    with suppress(InputError):  # of a source that cannot be looked up: the data were found without it
        if (source := user_path(config.data.source, "--config.data.source")).exists():
            content["data"]["source"] = str(source.absolute())

    def claim() -> None:
        if (workdir / "config.json").exists():
            _compare(workdir, content, cohort, split)
        elif (workdir / "checkpoints").exists():
            raise InputError(f"{workdir} holds checkpoints but no config.json to compare with; give a new --workdir")
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
        # A setting that came after the run was made had no other value then than its default.
        before = flatten(default_config().to_dict()) | before
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({error}); give a new --workdir") from error
    # A cosine ends with the last epoch: another number of epochs is another schedule from the first step on.
    may_change = MAY_CHANGE - {"train.epochs"} if now["optimizer.schedule"] == "cosine" else MAY_CHANGE
    different = sorted(
        key for key in before.keys() | now.keys() if before.get(key) != now.get(key) and key not in may_change
    )
    if different:
        lines = [f"  {key}: {before.get(key)!r} before, {now.get(key)!r} now" for key in different]
        raise InputError(
            f"{workdir} holds a run of another experiment; give a new --workdir, or the same settings:\n"
            + "\n".join(lines)
        )
    parts, parts_now = (
        {patient: part for part, patients in dataclasses.asdict(split).items() for patient in patients}
        for split in (read_split(workdir / "split.json", cohort.cases, cohort.patients), split)
    )
    if moved := [p for p in sorted(parts | parts_now) if parts.get(p) != parts_now.get(p)]:
        lines = [f"  {p}: {parts.get(p, 'left out')} before, {parts_now.get(p, 'left out')} now" for p in moved]
        raise InputError(
            f"{workdir}/split.json is not the split that this config makes; give a new --workdir:\n" + "\n".join(lines)
        )


def flatten(tree: dict, prefix: str = "") -> dict:
    """A tree of dicts as one, with a dot between the keys of the levels; tuples become lists, as in JSON."""
    out: dict = {}
    for key, value in tree.items():
        value = list(value) if isinstance(value, tuple) else value
        out |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out
