"""Exports a run to one file with a model card. Checks the file before writing it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from brainseg_jax.errors import InputError
from brainseg_jax.files import write_whole
from brainseg_jax.inference.network import Network
from brainseg_jax.inference.postprocess import PostProcess
from brainseg_jax.runs.trained import load_trained
from brainseg_jax.scans.description import LGG
from brainseg_jax.sharing.card import describe
from brainseg_jax.sharing.whole import BLOCK, make_segmenter

FORMATS = {"onnx": ".onnx", "stablehlo": ".stablehlo"}
TOLERANCE = 1e-4  # maximum difference of probabilities between the file and this package
PLATFORMS = ("cpu", "cuda", "tpu")
LGG_SIZE = 256  # height and width of LGG slices, in pixels
Segmenter = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
Posts = tuple[PostProcess, ...]


class Shared(NamedTuple):
    """The written files.

    Attributes:
      path: the file.
      card: its model card.
      difference: maximum difference of probabilities between the file and this package, on a synthetic scan.
    """

    path: Path
    card: Path
    difference: float


def share(run: Path, output: Path, *, file_format: str, size: int | None, overwrite: bool) -> Shared:
    """Writes the network that a run kept (`train.keep`), with its preprocessing and thresholds, as one file.

    Args:
      run: run folder; nothing in it changes.
      output: the file if it has the suffix of the format, otherwise its folder.
      file_format: a key of `FORMATS`.
      size: height and width of the slices; None: 256 for the LGG set, otherwise the network's image size.
      overwrite: whether to replace existing files.

    Raises:
      InputError: an argument cannot be used, or the file gives other results than the network. Nothing is written.
      StorageError: a checkpoint is damaged.
    """
    suffix = FORMATS[file_format]
    if size is not None and not 16 <= size <= 4096:
        raise InputError(f"--size={size}: give 16 to 4096 pixels")
    if output.suffix in FORMATS.values() and output.suffix != suffix:
        raise InputError(f"--output={output} does not end with {suffix}, as a file of --format={file_format} does")
    path = output if output.suffix == suffix else output / f"{run.absolute().name}{suffix}"
    card = path.with_name(f"{path.name}.md")
    for file in (path, card):
        if file.is_dir() or (file.exists() and not overwrite):
            raise InputError(f"{file} exists; give another --output, or --overwrite to replace it")
    if file_format == "onnx":
        _require_onnx()
    trained = load_trained(run)
    network, posts = trained.network, trained.posts
    size = _fitting_size(network, size)
    content, load = (_to_onnx if file_format == "onnx" else _to_stablehlo)(network, posts, size)
    difference = _check(load(content), trained.folder, network, posts, size)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda part: part.write_bytes(content))
        write_whole(
            card, lambda part: part.write_text(describe(trained, path.name, size, difference), encoding="utf-8")
        )
    except OSError as error:
        raise InputError(f"--output={output} cannot be written to ({error}); give another folder") from error
    return Shared(path, card, difference)


def _fitting_size(network: Network, size: int | None) -> int:
    """The requested or default slice size. A network with a pixel spacing accepts only its image size."""
    if not network.pixel_spacing:
        default = LGG_SIZE if network.description == LGG else network.image_size
        return default if size is None else size
    if size not in (None, network.image_size):
        raise InputError(
            f"--size={size}: this network takes slices of {network.image_size} x {network.image_size} pixels of "
            f"{network.pixel_spacing:g} mm, and its file does not resize them; leave out --size"
        )
    return network.image_size


def load_stablehlo(content: bytes) -> Segmenter:
    """Loads a file of `jax.export` as a function of a scan."""
    exported = export.deserialize(bytearray(content))
    return lambda scan: jax.tree.map(np.asarray, tuple(exported.call(scan)))


def load_onnx(content: bytes) -> Segmenter:
    """Loads an ONNX file in onnxruntime as a function of a scan."""
    import onnxruntime  # an extra

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda scan: tuple(session.run(None, {"scan": scan}))


def _to_stablehlo(network: Network, posts: Posts, size: int) -> tuple[bytes, Callable[[bytes], Segmenter]]:
    (slices,) = export.symbolic_shape("slices")
    scan = jax.ShapeDtypeStruct((slices, size, size, len(network.description.channels)), jnp.float32)
    exported = export.export(jax.jit(make_segmenter(network, posts, size)), platforms=PLATFORMS)(scan)
    return bytes(exported.serialize()), load_stablehlo


def _to_onnx(network: Network, posts: Posts, size: int) -> tuple[bytes, Callable[[bytes], Segmenter]]:
    from brainseg_jax.sharing.onnx_file import to_onnx  # its packages are an extra

    return to_onnx(network, posts, size), load_onnx


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--format=onnx needs a package that is not installed ({error.name}): pip install 'brainseg_jax[export]', "
            "or pip install onnx onnxruntime; --format=stablehlo needs neither"
        ) from None


def synthetic_scan(size: int, channels: int) -> np.ndarray:
    """Smooth patches with noise, [BLOCK + 1, size, size, channels] float32, integers from 0 to 255."""
    rng, slices = np.random.default_rng(0), BLOCK + 1
    coarse = rng.gamma(2.0, 25.0, (slices, 8, 8, channels)).repeat(-(-size // 8), axis=1).repeat(-(-size // 8), axis=2)
    noise = rng.normal(0, 8, (slices, size, size, channels))
    return (coarse[:, :size, :size] + noise).clip(0, 255).round().astype(np.float32)


def _check(segment: Segmenter, folder: Path, network: Network, posts: Posts, size: int) -> float:
    """Maximum difference of probabilities on a synthetic scan. Raises InputError if it is above `TOLERANCE`."""
    scan = synthetic_scan(size, len(network.description.channels))
    actual, _ = segment(scan)
    expected, _ = jax.jit(make_segmenter(network, posts, size))(scan)
    difference = float(np.abs(actual - np.asarray(expected)).max())
    if not difference <= TOLERANCE:
        raise InputError(
            f"{folder}: the probabilities of the file differ from those of the network by {difference:.1e}, more "
            f"than {TOLERANCE:.0e}. Nothing was written; report this with the versions of onnxruntime and jax"
        )
    return difference
