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
import re
from collections.abc import Mapping, Sequence
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
_STORED = ("F16", "F32")  # what safetensors calls them
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
      InputError: a file is missing or cannot be read, is of a format that this version does not know, or has arrays of
        another type or with values that are not finite.
    """
    _check_sums(folder)
    path = folder / NETWORK
    try:
        with safe_open(path, framework="numpy") as file:
            step = _step_of(file.metadata())
            names = list(file.keys())
            if wrong := [
                f"{name} ({dtype})" for name in names if (dtype := file.get_slice(name).get_dtype()) not in _STORED
            ]:
                raise ValueError(f"arrays of {' or '.join(DTYPES)} are wanted, and these are others: {_some(wrong)}")
            arrays = {name: file.get_tensor(name).astype(np.float32) for name in names}
        if wrong := _not_finite(arrays):
            raise ValueError(f"values that are NaN or infinite in {_some(wrong)}")
        return Stored(nest_variables(arrays), step)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be used: {error}; put back a whole copy of the folder, or export the network again"
        ) from error


def _step_of(metadata: Mapping[str, str] | None) -> int:
    """The step in the metadata of a safetensors file; raises ValueError where they are not those of `pack`."""
    text = (metadata or {}).get(_KEY)
    if text is None:
        raise ValueError(f"its metadata have no {_KEY!r}, so it is of another program")
    try:
        content = json.loads(text)
        found, step = content["format"], content["step"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"its metadata {_KEY}={text[:80]!r} are not an object with format and step") from error
    if found != FORMAT:
        raise ValueError(f"format {found!r}, and this version of brainseg_jax reads format {FORMAT!r}")
    if type(step) is not int or step < 0:
        raise ValueError(f"step {step!r} in its metadata; a whole number from 0 is wanted")
    return step


def _not_finite(arrays: Mapping[str, np.ndarray]) -> list[str]:
    return [name for name, array in arrays.items() if not np.isfinite(array).all()]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def pack(variables: Mapping, step: int, dtype: str) -> bytes:
    """The content of the safetensors file.

    Args:
      variables: of a network.
      step: of the training.
      dtype: float32, or float16 for the kernels, which are nearly all of it; arrays of one axis (biases, batch norm)
        stay float32.

    Raises:
      InputError: a value is not finite, or does not fit into float16.
    """
    arrays, given = {}, flatten_variables(variables)
    if wrong := _not_finite(given):
        raise InputError(
            f"the network has values that are NaN or infinite in {_some(wrong)}; export another run, or train this one "
            "again"
        )
    for name, array in given.items():
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
    """The inverse of `flatten_variables`; networks without batch norm get an empty `batch_stats`.

    Raises:
      ValueError: a name is that of an array and of a group of arrays.
    """
    tree: dict = {"params": {}, "batch_stats": {}}
    for name, array in arrays.items():
        *keys, last = name.split("/")
        node = tree
        for key in keys:
            node = node.setdefault(key, {}) if isinstance(node, dict) else node
        if not isinstance(node, dict) or last in node:
            raise ValueError(f"the array {name} has the name of a group of arrays, or lies in another array")
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
    """Compares each file that `SHA256SUMS` lists with its digest."""
    path = folder / SUMS
    again = "put back a whole copy of the folder, or export the network again"
    try:
        wanted = _read_sums(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); {again}") from error
    for name, digest in wanted.items():
        try:
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(
                f"{folder / name} cannot be read ({error.strerror}), and {SUMS} lists it; {again}"
            ) from error
        if found != digest:
            raise StorageError(
                f"{folder / name} is damaged: its SHA-256 is {found[:12]}..., and {SUMS} lists {digest[:12]}...; "
                f"{again}"
            )


def _read_sums(text: str) -> dict[str, str]:
    """Digests by name of the file, of the lines that `sha256sum` writes; raises ValueError for others."""
    sums: dict[str, str] = {}
    for line in filter(str.strip, text.splitlines()):
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *]([^/\\\0]+)", line.strip())
        if not match:
            raise ValueError(f"the line {line.strip()[:80]!r} is not a SHA-256 and the name of a file beside it")
        digest, name = match[1].lower(), match[2]
        if sums.setdefault(name, digest) != digest:
            raise ValueError(f"it lists {name} twice, with different digests")
    if missing := [name for name in (NETWORK, CONFIG) if name not in sums]:
        raise ValueError(f"it does not list {', '.join(missing)}")
    return sums
