"""A stored network: a folder with the variables of a trained network in one safetensors file, read without Orbax.

    config.json            as that of a run
    network.safetensors    the variables, see `flatten_variables`; its metadata hold `FORMAT` and the step
    SHA256SUMS             of both, as `sha256sum` writes it; `sha256sum --check SHA256SUMS` reads it too
    README.md              the model card
    results.json, split.json, expected_dice.json, training_scans.json     as in the run, where it has them

The file format: https://github.com/huggingface/safetensors. It holds arrays and text alone, so it runs no code.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from brainseg_jax.errors import InputError, StorageError

NETWORK, CONFIG, SUMS = "network.safetensors", "config.json", "SHA256SUMS"
OF_RUN = ("results.json", "split.json", "expected_dice.json", "training_scans.json")  # taken over where they are there
FORMAT = "1"
DTYPES = ("float16", "float32")
_KEY = "brainseg_jax"  # of the metadata; one alone, as safetensors writes several in any order


class Stored(NamedTuple):
    """What the safetensors file holds.

    Attributes:
      variables: of the network, float32.
      step: of the training.
    """

    variables: dict
    step: int


def is_stored(folder: Path) -> bool:
    """Whether a folder holds a stored network, whole or damaged."""
    return (folder / NETWORK).exists() or (folder / SUMS).exists()


def read_stored(folder: Path) -> Stored:
    """Reads the variables after comparing both files with their checksums.

    Raises:
      StorageError: a file differs from its checksum.
      InputError: a file is missing or cannot be read, or is of a format that this version does not know.
    """
    _check_sums(folder)
    path = folder / NETWORK
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            if (found := metadata.get("format")) != FORMAT:
                raise InputError(
                    f"{path}: format {found or 'of another program'}, and this version of brainseg_jax reads format "
                    f"{FORMAT}; use the version that wrote it, or export the network again"
                )
            arrays = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118, no dict
        return Stored(nest_variables(arrays), int(metadata["step"]))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read ({error}); export the network again") from error


def pack(variables: Mapping, step: int, dtype: str) -> bytes:
    """The content of the safetensors file.

    Args:
      variables: of a network.
      step: of the training.
      dtype: float32, or float16 for the kernels, which are nearly all of it; arrays of one axis (biases, batch norm)
        stay float32.

    Raises:
      InputError: a value does not fit into float16.
    """
    arrays = {}
    for name, array in flatten_variables(variables).items():
        wanted = dtype if array.ndim > 1 else "float32"
        if np.abs(array).max(initial=0.0) > np.finfo(wanted).max:
            raise InputError(f"--dtype={dtype}: {name} has values beyond {np.finfo(wanted).max}; give --dtype=float32")
        arrays[name] = np.ascontiguousarray(array, wanted)
    return save(arrays, metadata={_KEY: json.dumps({"format": FORMAT, "step": step})})


def unpack(content: bytes) -> dict:
    """The variables, float32, of what `pack` made."""
    return nest_variables({name: array.astype(np.float32) for name, array in load(content).items()})


def sums_of(contents: Mapping[str, bytes]) -> str:
    """The lines of `SHA256SUMS`, of contents by name of the file."""
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items())


def flatten_variables(variables: Mapping, prefix: str = "") -> dict[str, np.ndarray]:
    """A tree of arrays by name: the keys on the way joined by "/", as in `params/encoder_0/Conv_0/kernel`."""
    arrays: dict[str, np.ndarray] = {}
    for key, value in variables.items():
        path = f"{prefix}{key}"
        arrays |= flatten_variables(value, f"{path}/") if isinstance(value, Mapping) else {path: np.asarray(value)}
    return arrays


def nest_variables(arrays: Mapping[str, np.ndarray]) -> dict:
    """The inverse of `flatten_variables`; networks without batch norm get an empty `batch_stats`."""
    tree: dict = {"params": {}, "batch_stats": {}}
    for name, array in arrays.items():
        *keys, last = name.split("/")
        node = tree
        for key in keys:
            node = node.setdefault(key, {})
        node[last] = array
    return tree


def config_to_share(content: Mapping) -> dict:
    """`config.json` of a run without the folders of the machine it ran on; of a path its last part is left."""
    shared = json.loads(json.dumps(content))
    shared["data"]["dir"] = ""
    for section, key in (("data", "source"), ("split", "file"), ("train", "init_from")):
        shared[section][key] = Path(shared[section].get(key, "")).name
    return shared


def _check_sums(folder: Path) -> None:
    path = folder / SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        wanted = {name: digest for digest, name in (line.split(maxsplit=1) for line in lines if line.strip())}
        wanted = {name.removeprefix("*"): digest for name, digest in wanted.items()}
        missing = [name for name in (NETWORK, CONFIG) if name not in wanted]
        if missing:
            raise ValueError(f"it does not list {', '.join(missing)}")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); put back a whole copy of the folder, or export the network again"
        ) from error
    for name in (NETWORK, CONFIG):
        try:
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(
                f"{folder / name} cannot be read ({error}); put back a whole copy of the folder"
            ) from error
        if found != wanted[name]:
            raise StorageError(
                f"{folder / name} is damaged: its SHA-256 is {found[:12]}..., and {SUMS} lists {wanted[name][:12]}...; "
                "put back a whole copy of the folder, or export the network again"
            )
