"""Exports a run to a stored network: one safetensors file with its config, checksums and model card."""

import dataclasses
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.files import explain, write_together
from brainseg_jax.runs.stored import CONFIG, NETWORK, OF_RUN, SUMS, config_to_share, is_stored, pack, sums_of, unpack
from brainseg_jax.runs.trained import EXPECTED_DICE, Trained, load_trained, read_json
from brainseg_jax.sharing.card import describe_stored
from brainseg_jax.sharing.share import synthetic_scan
from brainseg_jax.sharing.whole import make_segmenter

CARD = "README.md"


class StoredAs(NamedTuple):
    """The written network.

    Attributes:
      folder: the stored network.
      size: size of its safetensors file in bytes.
      digest: SHA-256 of that file.
      difference: maximum difference of probabilities from those of the run in float32, on a synthetic scan.
      voxels: number of voxels of that scan with a different mask.
    """

    folder: Path
    size: int
    digest: str
    difference: float
    voxels: int


def store(run: Path, output: Path, *, dtype: str, overwrite: bool) -> StoredAs:
    """Writes the network that a run kept as a stored network: all files or none.

    Args:
      run: a run folder or a stored network; nothing in it changes.
      output: the folder to write: missing, empty or a stored network.
      dtype: see `stored.pack`.
      overwrite: whether to replace existing files.

    Raises:
      InputError: an argument cannot be used. Nothing is written.
      StorageError: the run is damaged.
    """
    target = output.resolve()  # follows links
    if target == run.resolve():
        raise InputError(f"--output={output} is the run itself; give another folder")
    existing = _existing(output, target)
    if existing and not overwrite:
        raise InputError(f"{output / existing[0]} exists; give another --output, or --overwrite to replace it")
    trained = load_trained(run)
    try:
        network = pack(trained.network.variables, trained.step, dtype)
    except InputError as error:
        raise InputError(f"--run={run}: {error}") from error
    config = json.dumps(config_to_share(read_json(run / CONFIG)), indent=1).encode()
    difference, voxels = _compare(trained, network)
    digest = hashlib.sha256(network).hexdigest()
    card = describe_stored(
        trained,
        output.absolute().name,
        size=len(network),
        digest=digest,
        dtype=dtype,
        difference=difference,
        voxels=voxels,
    )
    contents = {NETWORK: network, CONFIG: config, SUMS: sums_of({NETWORK: network, CONFIG: config}).encode()}
    contents |= {CARD: card.encode()}
    # In the folder of an unfinished run expected_dice.json is from fewer epochs.
    left_out = set() if trained.expected_dice else {EXPECTED_DICE}
    contents |= {name: (run / name).read_bytes() for name in OF_RUN if name not in left_out and (run / name).exists()}
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_together(
            {target / name: partial(_write, content) for name, content in contents.items()},
            remove=[target / name for name in existing if name not in contents],  # files of the replaced network
        )
    except OSError as error:
        raise InputError(f"--output={output} cannot be written to ({explain(error)})") from error
    return StoredAs(output, len(network), digest, difference, voxels)


def _existing(output: Path, target: Path) -> list[str]:
    """Names of the files of a stored network in the folder. Hidden files are ignored.

    Args:
      output: the folder, as the user wrote it.
      target: the folder with links resolved.

    Raises:
      InputError: it is a file, or contains something other than a stored network.
    """
    if output.is_symlink() and not target.exists():
        raise InputError(
            f"--output={output} is a link to {target}, which does not exist; remove the link, or give a folder"
        )
    if not target.exists():
        return []
    if not target.is_dir():
        raise InputError(f"--output={output} is a file; a stored network is a folder")
    expected = (NETWORK, CONFIG, SUMS, CARD, *OF_RUN)
    names = sorted(path.name for path in target.iterdir() if not path.name.startswith("."))
    unexpected = [name for name in names if name not in expected or (target / name).is_dir()]
    if names and (unexpected or not is_stored(target)):
        fault = f"contains {unexpected[0]}" if unexpected else f"contains {names[0]}, but no {NETWORK}"
        raise InputError(
            f"--output={output} is not a stored network: it {fault}. --overwrite would damage it; give a new folder, "
            "or the folder of a stored network"
        )
    return [name for name in expected if name in names]


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _compare(trained: Trained, content: bytes) -> tuple[float, int]:
    """Maximum difference of probabilities on a synthetic scan, and the number of voxels with a different mask."""
    network, size = trained.network, trained.network.image_size
    scan = synthetic_scan(size, len(network.description.channels))
    stored = dataclasses.replace(network, variables=unpack(content))
    (expected, mask), (actual, stored_mask) = (
        jax.tree.map(np.asarray, jax.jit(make_segmenter(compared, trained.posts, size))(scan))
        for compared in (network, stored)
    )
    return float(np.abs(actual - expected).max()), int((mask != stored_mask).sum())
