"""Loads a trained network from its run folder or from a stored network. The training data are not needed."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from brainseg_jax import sharding
from brainseg_jax.config import check_config, default_config
from brainseg_jax.errors import InputError
from brainseg_jax.inference.network import Network
from brainseg_jax.inference.postprocess import PostProcess, posts_from_json
from brainseg_jax.inference.quality import ExpectedDice
from brainseg_jax.inference.training_scans import FILE as TRAINING_SCANS
from brainseg_jax.inference.training_scans import TrainingScans
from brainseg_jax.runs.build import build_network, description_of, posts_of, shapes_of_variables
from brainseg_jax.runs.stored import NETWORK, is_stored, read_stored
from brainseg_jax.scans.description import Description

if TYPE_CHECKING:
    from brainseg_jax.training.state import TrainState

EXPECTED_DICE = "expected_dice.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A trained network and its settings.

    Attributes:
      folder: run folder or stored network.
      config: config of the run.
      network: network with the variables of the checkpoint that `train.keep` names.
      step: step of that checkpoint.
      posts: post-processing, one for each target; the one chosen on validation patients, if the run chose one.
      fingerprint: fingerprint of the training data; None if the weights were converted.
      results: see `read_results`; None if the run has not ended.
      expected_dice: model of the expected Dice of masks of this single run, with the mirroring of its config; None if
        unknown.
      training_scans: statistics of its training scans; None without such a file.
    """

    folder: Path
    config: ConfigDict
    network: Network
    step: int
    posts: tuple[PostProcess, ...]
    fingerprint: str | None
    results: dict | None
    expected_dice: ExpectedDice | None = None
    training_scans: TrainingScans | None = None

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.network.variables["params"]))

    @property
    def weights_digest(self) -> str:
        """Identifies the variables of the network, since the content of a folder can change."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.network.variables):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()[:12]


def load_trained(folder: Path) -> Trained:
    """Reads and checks a stored network, or the checkpoint that a run kept (`train.keep`). Does not change the folder.

    Raises:
      InputError: `folder` has no run or no checkpoint, or a config, network or format of another version.
      StorageError: a file differs from its checksums.
    """
    config, dataset = _read_config(folder)
    description = description_of(dataset)
    stored = is_stored(folder)
    step, variables = (_read_stored if stored else _read_checkpoint)(folder, config, description)
    results = read_results(folder)
    if results is None and config.eval.choose:
        why = "has no results.json, so the chosen post-processing is unknown" if stored else (
            "has not ended, so its post-processing is not chosen yet"
        )  # fmt: skip
        logging.warning("%s %s: using that of its config", folder, why)
    posts = posts_of(config, description) if results is None else _chosen_posts(results, folder, description)
    return Trained(
        folder=folder,
        config=config,
        network=build_network(config, description, variables),
        step=step,
        posts=posts,
        fingerprint=dataset["fingerprint"],
        results=results,
        # In the folder of an unfinished run this file is from fewer epochs.
        expected_dice=read_expected_dice(folder, description.names) if results or stored else None,
        training_scans=_read_training_scans(folder / TRAINING_SCANS, description),
    )


def _chosen_posts(results: dict, folder: Path, description: Description) -> tuple[PostProcess, ...]:
    """The post-processing that a run chose, from its `results.json`."""
    try:
        posts = posts_from_json(results["postprocess"], description)
        for post in posts:
            types = type(post.threshold), type(post.largest_component), type(post.min_voxels)
            if types not in ((float, bool, int), (int, bool, int)):
                raise ValueError(
                    f"{post._asdict()}: threshold must be a number, largest_component true or false, and min_voxels an "
                    "integer"
                )
            if not 0.0 <= post.threshold <= 1.0 or post.min_voxels < 0:
                raise ValueError(f"{post._asdict()} are out of range")
        return posts
    except (KeyError, TypeError, ValueError) as error:
        fault = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"{folder / 'results.json'}: no post-processing of {', '.join(description.names)} in it ({fault}); restore "
            "a complete copy of the folder, or delete this file: then the post-processing of the config is used, and "
            "there are no scores"
        ) from error


def _read_training_scans(path: Path, description: Description) -> TrainingScans | None:
    """Statistics of the training scans. None without such a file."""
    if not path.exists():
        return None
    training_scans, shown = TrainingScans.read(path), description.channels[description.shown]
    if training_scans.channel != shown:
        raise InputError(
            f"{path} describes the channel {training_scans.channel}, but the network shows {shown}; restore a "
            "complete copy, or delete it to predict without flags"
        )
    return training_scans


def _read_checkpoint(folder: Path, config: ConfigDict, description: Description) -> tuple[int, dict]:
    """Step and variables of the checkpoint that a run kept."""
    # Imported here: Orbax and the optimizer load slowly, and a stored network does not need them.
    from brainseg_jax.runs.checkpoint import saved_steps
    from brainseg_jax.runs.kept import read_kept

    if not saved_steps(folder / "checkpoints"):
        raise InputError(
            f"{folder}: has no checkpoint yet, and no {NETWORK}; train first, wait for the end of the first epoch, or "
            "restore a complete copy of the folder"
        )
    state = read_kept(folder, config, description)
    return int(state.step), state.variables


def _read_stored(folder: Path, config: ConfigDict, description: Description) -> tuple[int, dict]:
    """Step and variables of a stored network, on the devices."""
    stored = read_stored(folder)
    expected = shapes_of_variables(config, description)
    if lines := different_shapes(stored.variables, expected, "the file"):
        raise InputError(
            f"{folder / NETWORK} has another network than its config.json; restore a complete copy of the folder, or "
            "export the network again:\n" + "\n".join(lines)
        )
    replicated = sharding.replicated(sharding.data_mesh())
    return stored.step, jax.tree.map(lambda array: sharding.put(array, replicated), stored.variables)


def start_from(folder: Path, state: "TrainState") -> "TrainState":
    """The initial state of a training that starts from the weights and batch norm statistics of a run.

    Raises:
      InputError: see `load_trained`; or the run has another network.
    """
    trained = load_trained(folder)
    variables = trained.network.variables
    if lines := different_shapes(variables, state.variables, "that run"):
        keys = ("name", "features", "depth", "norm", "deep_supervision")
        settings = " ".join(f"--config.model.{key}={trained.config.model[key]}" for key in keys)
        raise InputError(
            f"train.init_from={folder} has another network than model.* describes; give {settings}, or another run:\n"
            + "\n".join(lines)
        )
    copied = jax.tree.map(jnp.copy, variables["params"])  # a donated state must not contain an array twice
    ema = None if state.ema_params is None else jax.tree.map(jnp.copy, variables["params"])
    return dataclasses.replace(state, params=copied, ema_params=ema, batch_stats=variables["batch_stats"])


def names_of(folders: list[Path]) -> list[str]:
    """The last components of each path, as many as needed to make all names different."""
    parts = [folder.absolute().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise InputError(f"--run={','.join(map(str, folders))}: the same folder twice; give each one once")
    length = 1
    while len({p[-length:] for p in parts}) < len(parts):
        length += 1
    return ["/".join(p[-length:]) for p in parts]


def cases_of_training(folder: Path) -> tuple[set[str], set[str]] | None:
    """Names of the training and of the validation cases of a run. Returns None without `split.json`.

    Raises:
      InputError: `split.json` cannot be read, or is not a split.
    """
    path = folder / "split.json"
    if not path.exists():
        return None
    split = read_json(path)
    for part in ("train", "val", "test"):
        names = split.get(part)
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            fault = "missing" if names is None else "not a list of names"
            raise InputError(f"{path}: {part!r} is {fault}; restore a complete copy of the folder")
    return set(split["train"]), set(split["val"])


def different_shapes(actual: dict, expected: dict, where: str) -> list[str]:
    """A line for each of the first ten arrays with different shapes; `where` describes the source of `actual`."""
    actual_shapes, expected_shapes = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (actual, expected)
    )
    lines = [
        f"  {path}: {actual_shapes.get(path, 'none')} in {where}, {expected_shapes.get(path, 'none')} expected"
        for path in sorted(actual_shapes.keys() | expected_shapes.keys())
        if actual_shapes.get(path) != expected_shapes.get(path)
    ]
    return lines[:10] + ([f"  and {len(lines) - 10} more"] if lines[10:] else [])


def _read_config(folder: Path) -> tuple[ConfigDict, dict]:
    """The config of a run and its `dataset`: `fingerprint` (may be None), and `description` if it is not LGG."""
    path = folder / "config.json"
    if not path.is_file():
        if is_stored(folder):
            raise InputError(f"{path} is missing; restore a complete copy of the folder, or export the network again")
        raise InputError(f"{folder}: not a run folder (no config.json); give the --workdir of a training")
    content = read_json(path)
    config = default_config()
    try:
        dataset = content.pop("dataset")
        if not isinstance(dataset.get("fingerprint"), str | None):
            raise TypeError(f"dataset.fingerprint={dataset['fingerprint']!r} is not a string")
        description_of({"fingerprint": None, **dataset})
        config.update(content)
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is from another version of this code ({error}); use that version") from error
    try:
        check_config(config)
    except InputError as error:
        raise InputError(f"{path}: {error}\nRestore a complete copy of the folder") from error
    return config, {"fingerprint": None, **dataset}


def read_results(folder: Path) -> dict | None:
    """The content of `results.json`; None if the run has not ended. Names of older versions are converted.

    Raises:
      InputError: the file cannot be read.
    """
    if not (folder / "results.json").exists():
        return None
    results = read_json(folder / "results.json")
    for former, name in (("best_epoch", "epoch"), ("best_step", "step")):  # former names of the keys
        if former in results:
            results[name] = results.pop(former)
    if "kept" not in results:
        results["kept"] = read_json(folder / "config.json").get("train", {}).get("keep", "best")
    return results


def read_expected_dice(folder: Path, targets: Sequence[str]) -> ExpectedDice | None:
    """The content of `expected_dice.json` of a run or stored network; None without this file.

    Args:
      folder: run folder or stored network.
      targets: names of the targets of the network.

    Raises:
      InputError: the file cannot be read.
    """
    path = folder / EXPECTED_DICE
    if not path.exists():
        return None
    try:
        expected_dice = ExpectedDice.from_json(read_json(path))
        if set(expected_dice.targets) != set(targets):
            raise ValueError(
                f"its targets are {', '.join(expected_dice.targets)}, those of the network {', '.join(targets)}"
            )
        return expected_dice
    except InputError:  # already names the file
        raise
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{path} is damaged or from another version of this code ({error}); restore a complete copy of the folder, "
            "or remove the file to predict without an expected Dice"
        ) from error


def read_json(path: Path) -> dict:
    """Reads a JSON file of a run folder. Raises InputError if it cannot be read or is not an object."""
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); restore a complete copy of the run folder") from error
    return content
