"""What a run folder was made for, so that a run started again there is the same run."""

import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from brainseg_jax.data.splits import read_split, write_split
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.scores import write_json
from brainseg_jax.training.experiment import Experiment, wait_for_all

# A run that is started again may differ from its first start in these keys only.
MAY_CHANGE = (
    "data.dir",
    "data.source",  # the fingerprint of the data is compared in its place
    "split.file",  # and so is the split
    "train.epochs",
    "train.early_stop_patience",
    "train.log_every",
    "eval.batch_size",
)


def claim_run_folder(workdir: Path, config: ConfigDict, experiment: Experiment) -> None:
    """Writes `config.json` and `split.json`, or compares with those of the run that is gone on with.

    Raises:
      InputError: where the folder holds a run of another config, data or split, with what differs.
    """
    content = {**config.to_dict(), "dataset": {"fingerprint": experiment.cohort.fingerprint}}
    path = workdir / "config.json"
    if path.exists():
        try:
            before, now = _flat(json.loads(path.read_text())), _flat(content)
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{path} cannot be read ({error}); give a new --workdir") from error
        different = sorted(
            key for key in before.keys() | now.keys() if before.get(key) != now.get(key) and key not in MAY_CHANGE
        )
        if different:
            lines = [f"  {key}: {before.get(key)!r} before, {now.get(key)!r} now" for key in different]
            raise InputError(
                f"{workdir} holds a run of another experiment; give a new --workdir, or the same settings:\n"
                + "\n".join(lines)
            )
        if read_split(workdir / "split.json", experiment.cohort.patients) != experiment.split:
            raise InputError(f"{workdir}/split.json is not the split that this config makes; give a new --workdir")
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        write_split(workdir / "split.json", experiment.split)
        write_json(path, content)
    wait_for_all("run folder")


def _flat(tree: dict, prefix: str = "") -> dict:
    out: dict = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out
