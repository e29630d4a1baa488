"""A stored network: a folder with the variables of a trained network in one safetensors file, read without Orbax.

    config.json            as in a run
    network.safetensors    the variables, see `flatten_variables`; the metadata have `FORMAT` and the step
    SHA256SUMS             checksums of both, for `sha256sum --check SHA256SUMS`
    README.md              the model card
    results.json, split.json, expected_dice.json, training_scans.json     as in the run, if it has them

File format: https://github.com/huggingface/safetensors. It stores only arrays and text, so reading it runs no code.
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
OF_RUN = ("results.json", "split.json", "expected_dice.json", "training_scans.json")  # copied from the run if present
FORMAT = "1"
DTYPES = ("float16", "float32")
_STORED = ("F16", "F32")  # names of DTYPES in safetensors
_KEY = "brainseg_jax"  # the only metadata key: safetensors does not fix the order of several


class Stored(NamedTuple):
    """Content of the safetensors file.

    Attributes:
      variables: variables of the network, float32.
      step: training step.
    """

    variables: dict
    step: int


def is_stored(folder: Path) -> bool:
    """Whether a folder has a stored network, intact or damaged."""
    return (folder / NETWORK).exists() or (folder / SUMS).exists()


def read_stored(folder: Path) -> Stored:
    """Compares both files with their checksums and reads the variables.

    Raises:
      StorageError: a file differs from its checksum.
      InputError: a file is missing, unreadable or of an unknown format; or arrays have another type or non-finite
        values.
    """
    _check_sums(folder)
    path = folder / NETWORK
    try:
        with safe_open(path, framework="numpy") as file:
            step = _step_of(file.metadata())
            names = list(file.keys())
            if invalid := [
                f"{name} ({dtype})" for name in names if (dtype := file.get_slice(name).get_dtype()) not in _STORED
            ]:
                raise ValueError(f"arrays must be {' or '.join(DTYPES)}, but these are not: {_shortened(invalid)}")
            arrays = {name: file.get_tensor(name).astype(np.float32) for name in names}
        if invalid := _not_finite(arrays):
            raise ValueError(f"NaN or infinite values in {_shortened(invalid)}")
        return Stored(nest_variables(arrays), step)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be used: {error}; restore a complete copy of the folder, or export the network again"
        ) from error


def _step_of(metadata: Mapping[str, str] | None) -> int:
    """The step in the metadata of a safetensors file. Raises ValueError if `pack` did not write them."""
    text = (metadata or {}).get(_KEY)
    if text is None:
        raise ValueError(f"its metadata have no {_KEY!r}, so another program wrote it")
    try:
        content = json.loads(text)
        version, step = content["format"], content["step"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"its metadata {_KEY}={text[:80]!r} are not an object with format and step") from error
    if version != FORMAT:
        raise ValueError(f"format {version!r}; this version of brainseg_jax reads format {FORMAT!r}")
    if type(step) is not int or step < 0:
        raise ValueError(f"step {step!r} in its metadata is not a non-negative integer")
    return step


def _not_finite(arrays: Mapping[str, np.ndarray]) -> list[str]:
    return [name for name, array in arrays.items() if not np.isfinite(array).all()]


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def pack(variables: Mapping, step: int, dtype: str) -> bytes:
    """The content of the safetensors file.

    Args:
      variables: variables of a network.
      step: training step.
      dtype: float32 or float16, for the kernels (nearly all of the file). Arrays of one axis (biases, batch norm) stay
        float32.

    Raises:
      InputError: a value is not finite, or does not fit into float16.
    """
    arrays, variables_by_name = {}, flatten_variables(variables)
    if wrong := _not_finite(variables_by_name):
        raise InputError(
            f"the network has NaN or infinite values in {_shortened(wrong)}; export another run, or train "
            "this one again"
        )
    for name, array in variables_by_name.items():
        array_dtype = dtype if array.ndim > 1 else "float32"
        if np.abs(array).max(initial=0.0) > np.finfo(array_dtype).max:
            raise InputError(
                f"--dtype={dtype}: {name} has values above {np.finfo(array_dtype).max}; give --dtype=float32"
            )
        arrays[name] = np.ascontiguousarray(array, array_dtype)
    return save(arrays, metadata={_KEY: json.dumps({"format": FORMAT, "step": step})})


def unpack(content: bytes) -> dict:
    """The inverse of `pack`: the variables, float32."""
    return nest_variables({name: array.astype(np.float32) for name, array in load(content).items()})


def sums_of(contents: Mapping[str, bytes]) -> str:
    """The lines of `SHA256SUMS` for contents by file name."""
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items())


def flatten_variables(variables: Mapping, prefix: str = "") -> dict[str, np.ndarray]:
    """Maps names to the arrays of a tree. A name joins the keys by "/", as in `params/encoder_0/Conv_0/kernel`."""
    arrays: dict[str, np.ndarray] = {}
    for key, value in variables.items():
        path = f"{prefix}{key}"
        arrays |= flatten_variables(value, f"{path}/") if isinstance(value, Mapping) else {path: np.asarray(value)}
    return arrays


def nest_variables(arrays: Mapping[str, np.ndarray]) -> dict:
    """The inverse of `flatten_variables`. Networks without batch norm get an empty `batch_stats`.

    Raises:
      ValueError: a name is both an array and a group of arrays.
    """
    tree: dict = {"params": {}, "batch_stats": {}}
    for name, array in arrays.items():
        *keys, last = name.split("/")
        node = tree
        for key in keys:
            node = node.setdefault(key, {}) if isinstance(node, dict) else node
        if not isinstance(node, dict) or last in node:
            raise ValueError(f"the array {name} has the name of a group of arrays, or is inside another array")
        node[last] = array
    return tree


def config_to_share(content: Mapping) -> dict:
    """`config.json` of a run without the folders of its machine. Other paths are reduced to their last component."""
    shared = json.loads(json.dumps(content))
    shared["data"]["dir"] = ""
    for section, key in (("data", "source"), ("split", "file"), ("train", "init_from")):
        shared[section][key] = Path(shared[section].get(key, "")).name
    return shared


def _check_sums(folder: Path) -> None:
    """Compares each file in `SHA256SUMS` with its digest."""
    path = folder / SUMS
    remedy = "restore a complete copy of the folder, or export the network again"
    try:
        digests = _read_sums(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); {remedy}") from error
    for name, digest in digests.items():
        try:
            actual = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(
                f"{folder / name} cannot be read ({error.strerror}), and {SUMS} lists it; {remedy}"
            ) from error
        if actual != digest:
            raise StorageError(
                f"{folder / name} is damaged: its SHA-256 is {actual[:12]}..., and {SUMS} lists {digest[:12]}...; "
                f"{remedy}"
            )


def _read_sums(text: str) -> dict[str, str]:
    """Digests by file name, from lines as `sha256sum` writes them. Raises ValueError for other lines."""
    sums: dict[str, str] = {}
    for line in filter(str.strip, text.splitlines()):
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *]([^/\\\0]+)", line.strip())
        if not match:
            raise ValueError(f"the line {line.strip()[:80]!r} is not a SHA-256 digest and a file name without folders")
        digest, name = match[1].lower(), match[2]
        if sums.setdefault(name, digest) != digest:
            raise ValueError(f"it lists {name} twice, with different digests")
    if missing := [name for name in (NETWORK, CONFIG) if name not in sums]:
        raise ValueError(f"it does not list {', '.join(missing)}")
    return sums
