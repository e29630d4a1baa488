"""A trained network taken from its run folder or from a stored network, to be used away from its training data."""

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
    """What a run made.

    Attributes:
      folder: of the run.
      config: of the run.
      network: with the variables of the checkpoint that `train.keep` names.
      step: of that checkpoint.
      posts: what makes masks of probabilities, one for each target; chosen on validation where the run did so.
      fingerprint: of the data it was trained on; None where the weights were converted from those of others.
      results: of `read_results`; None for a run that has not ended.
      expected_dice: of masks that the run makes alone, with mirror images as its config has them; None where it is
        not known.
      training_scans: what the scans it was trained on look like; None where there is no such file.
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
        """How many the network has."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.network.variables["params"]))

    @property
    def weights_digest(self) -> str:
        """Identifies the variables of the network; a folder can hold those of another training tomorrow."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.network.variables):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()[:12]


def load_trained(folder: Path) -> Trained:
    """Reads a stored network, or the checkpoint that a run kept (`train.keep`), checked; nothing in the folder changes.

    Raises:
      InputError: `folder` holds no run, no checkpoint, or a network of another version of config, network or format.
      StorageError: what it holds differs from its checksums.
    """
    config, dataset = _read_config(folder)
    description = description_of(dataset)
    stored = is_stored(folder)
    step, variables = (_read_stored if stored else _read_checkpoint)(folder, config, description)
    results = read_results(folder)
    if results is None and config.eval.choose:
        why = "has no results.json, so which post-processing was chosen is not known" if stored else (
            "has not ended, so its post-processing is not chosen yet"
        )  # fmt: skip
        logging.warning("%s %s: that of its config is used", folder, why)
    posts = posts_of(config, description) if results is None else _chosen_posts(results, folder, description)
    return Trained(
        folder=folder,
        config=config,
        network=build_network(config, description, variables),
        step=step,
        posts=posts,
        fingerprint=dataset["fingerprint"],
        results=results,
        # In the folder of an unfinished run it is that of fewer epochs.
        expected_dice=read_expected_dice(folder, description.names) if results or stored else None,
        training_scans=_read_training_scans(folder / TRAINING_SCANS, description),
    )


def _chosen_posts(results: dict, folder: Path, description: Description) -> tuple[PostProcess, ...]:
    """The post-processing that a run chose, by its `results.json`."""
    try:
        posts = posts_from_json(results["postprocess"], description)
        for post in posts:
            if type(post.threshold) not in (int, float) or (type(post[1]), type(post[2])) != (bool, int):
                raise ValueError(f"{post._asdict()} have other types than a number, true or false, and a whole number")
            if not 0.0 <= post.threshold <= 1.0 or post.min_voxels < 0:
                raise ValueError(f"{post._asdict()} are out of range")
        return posts
    except (KeyError, TypeError, ValueError) as error:
        words = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"{folder / 'results.json'}: no post-processing of {', '.join(description.names)} in it ({words}); put "
            "back a whole copy of the folder, or delete this file to use the network as one without scores"
        ) from error


def _read_training_scans(path: Path, description: Description) -> TrainingScans | None:
    """What the training scans look like; None where there is no such file."""
    if not path.exists():
        return None
    found, shown = TrainingScans.read(path), description.channels[description.shown]
    if found.channel != shown:
        raise InputError(
            f"{path} is of the channel {found.channel}, and the network shows {shown}; put back a whole copy, or "
            "delete it to predict without flags"
        )
    return found


def _read_checkpoint(folder: Path, config: ConfigDict, description: Description) -> tuple[int, dict]:
    """Step and variables of the checkpoint that a run kept."""
    # Here, as Orbax and the optimizer are slow to load, and a stored network does without.
    from brainseg_jax.runs.checkpoint import saved_steps
    from brainseg_jax.runs.kept import read_kept

    if not saved_steps(folder / "checkpoints"):
        raise InputError(
            f"{folder}: no checkpoint in it yet, nor a {NETWORK}; train first, wait for the end of the first epoch, or "
            "put back a whole copy of the folder"
        )
    state = read_kept(folder, config, description)
    return int(state.step), state.variables


def _read_stored(folder: Path, config: ConfigDict, description: Description) -> tuple[int, dict]:
    """Step and variables of a stored network, on the devices."""
    stored = read_stored(folder)
    wanted = shapes_of_variables(config, description)
    if lines := different_shapes(stored.variables, wanted, "the file"):
        raise InputError(
            f"{folder / NETWORK} is of another network than its config.json; put back a whole copy of the folder, or "
            "export the network again:\n" + "\n".join(lines)
        )
    everywhere = sharding.replicated(sharding.data_mesh())
    return stored.step, jax.tree.map(lambda array: sharding.put(array, everywhere), stored.variables)


def start_from(folder: Path, state: "TrainState") -> "TrainState":
    """The state before the first step of a training that starts from the weights and statistics of a run.

    Raises:
      InputError: see `load_trained`; or the run is of another network.
    """
    trained = load_trained(folder)
    variables = trained.network.variables
    if lines := different_shapes(variables, state.variables, "that run"):
        keys = ("name", "features", "depth", "norm", "deep_supervision")
        settings = " ".join(f"--config.model.{key}={trained.config.model[key]}" for key in keys)
        raise InputError(
            f"train.init_from={folder} is of another network than model.* asks for; give {settings}, or another run:\n"
            + "\n".join(lines)
        )
    copied = jax.tree.map(jnp.copy, variables["params"])  # the state is donated: no array may be in it twice
    ema = None if state.ema_params is None else jax.tree.map(jnp.copy, variables["params"])
    return dataclasses.replace(state, params=copied, ema_params=ema, batch_stats=variables["batch_stats"])


def names_of(folders: list[Path]) -> list[str]:
    """The last parts of the paths, as many as tell all apart."""
    parts = [folder.absolute().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise InputError(f"--run={','.join(map(str, folders))}: a folder twice; give each once")
    length = 1
    while len({p[-length:] for p in parts}) < len(parts):
        length += 1
    return ["/".join(p[-length:]) for p in parts]


def cases_of_training(folder: Path) -> tuple[set[str], set[str]] | None:
    """Names of the cases that a run was trained on and chosen by; None where the folder has no `split.json`.

    Raises:
      InputError: `split.json` cannot be read, or is no split.
    """
    path = folder / "split.json"
    if not path.exists():
        return None
    split = read_json(path)
    for part in ("train", "val", "test"):
        names = split.get(part)
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            found = "missing" if names is None else "no list of names"
            raise InputError(f"{path}: part {part!r} is {found}; put back a whole copy of the folder")
    return set(split["train"]), set(split["val"])


def different_shapes(found: dict, wanted: dict, where: str) -> list[str]:
    """A line for each of the first ten arrays of two trees whose shapes differ; `where` found, in words."""
    ours, theirs = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (found, wanted)
    )
    lines = [
        f"  {path}: {ours.get(path, 'none')} in {where}, {theirs.get(path, 'none')} wanted"
        for path in sorted(ours.keys() | theirs.keys())
        if ours.get(path) != theirs.get(path)
    ]
    return lines[:10] + ([f"  and {len(lines) - 10} more"] if lines[10:] else [])


def _read_config(folder: Path) -> tuple[ConfigDict, dict]:
    """The config of a run, and what it says of its data: `fingerprint`, and `description` where they are not LGG."""
    path = folder / "config.json"
    if not path.is_file():
        if is_stored(folder):
            raise InputError(f"{path} is missing; put back a whole copy of the folder, or export the network again")
        raise InputError(f"{folder}: no run in it (no config.json); give the --workdir of a training")
    content = read_json(path)
    config = default_config()
    try:
        dataset = content.pop("dataset")
        if not isinstance(dataset.get("fingerprint"), str | None):
            raise TypeError(f"dataset.fingerprint={dataset['fingerprint']!r} is no text")
        description_of({"fingerprint": None, **dataset})
        config.update(content)
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is of another version of this code ({error}); use that version") from error
    try:
        check_config(config)
    except InputError as error:
        raise InputError(f"{path}: {error}\nPut back a whole copy of the folder") from error
    return config, {"fingerprint": None, **dataset}


def read_results(folder: Path) -> dict | None:
    """What `results.json` of a run holds, None where it has not ended; older ones are brought to the names of today.

    Raises:
      InputError: the file cannot be read.
    """
    if not (folder / "results.json").exists():
        return None
    results = read_json(folder / "results.json")
    for former, name in (("best_epoch", "epoch"), ("best_step", "step")):  # so called where the last one is kept too
        if former in results:
            results[name] = results.pop(former)
    if "kept" not in results:
        results["kept"] = read_json(folder / "config.json").get("train", {}).get("keep", "best")
    return results


def read_expected_dice(folder: Path, targets: Sequence[str]) -> ExpectedDice | None:
    """What `expected_dice.json` of a run or stored network holds; None where there is none.

    Args:
      folder: of it.
      targets: names of those of the network.

    Raises:
      InputError: the file cannot be read.
    """
    path = folder / EXPECTED_DICE
    if not path.exists():
        return None
    try:
        found = ExpectedDice.from_json(read_json(path))
        if set(found.targets) != set(targets):
            raise ValueError(f"it is of {', '.join(found.targets)}, the network of {', '.join(targets)}")
        return found
    except InputError:  # names the file
        raise
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{path} is damaged or of another version of this code ({error}); put back a whole copy of the folder, or "
            "take the file away to predict without an expected Dice"
        ) from error


def read_json(path: Path) -> dict:
    """A JSON file of a run folder; an InputError where it cannot be read or holds no object."""
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); put back a whole copy of the run folder") from error
    return content
