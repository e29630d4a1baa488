"""Exports a trained network: `python -m brainseg_jax.export --run=runs/attn_dice --output=shared`."""

import brainseg_jax.import_errors  # isort: skip  # noqa: F401

from pathlib import Path

from absl import flags

from brainseg_jax import cli
from brainseg_jax.errors import InputError
from brainseg_jax.files import network_path, user_path
from brainseg_jax.runs.stored import DTYPES
from brainseg_jax.sharing.share import FORMATS, share
from brainseg_jax.sharing.store import CARD, store

RUN = flags.DEFINE_string(
    "run", None, "A run folder (its checkpoint of train.keep is exported), a stored network, or pretrained."
)
OUTPUT = flags.DEFINE_string("output", None, "The file, or a folder for it. The model card is written beside it.")
FORMAT = flags.DEFINE_enum(
    "format",
    "onnx",
    [*FORMATS, "safetensors"],
    "onnx; stablehlo for jax.export; safetensors for a stored network, a folder that --run takes.",
)
DTYPE = flags.DEFINE_enum("dtype", None, DTYPES, "Dtype of the kernels in a stored network. Default: float16.")
SIZE = flags.DEFINE_integer(
    "size",
    None,
    "Height and width of the input slices, in pixels. Default: 256 for a network of the LGG data, else the size of its "
    "training images. A network trained at a fixed pixel spacing accepts no other size.",
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace existing files.")


def main(_: list[str]) -> None:
    """Writes the file and its model card, and prints the largest difference from the network in JAX."""
    for flag in (RUN, OUTPUT):
        if not flag.value:
            raise InputError(f"--{flag.name} is empty: give --run=RUN_FOLDER --output=FILE_OR_FOLDER")
    run = network_path(cli.given(RUN), "--run")
    if FORMAT.value == "safetensors":
        if SIZE.value is not None:
            raise InputError(f"--size={SIZE.value}: a stored network accepts slices of any size; leave --size out")
        return _store(run)
    if DTYPE.value:
        raise InputError(f"--dtype={DTYPE.value} applies to --format=safetensors only; leave --dtype out")
    shared = share(
        run,
        user_path(cli.given(OUTPUT), "--output"),
        file_format=FORMAT.value,
        size=SIZE.value,
        overwrite=OVERWRITE.value,
    )
    print(
        f"{shared.path}: {shared.path.stat().st_size / 1e6:.1f} MB. On a synthetic scan its probabilities differ "
        f"from those of this package by at most {shared.difference:.1e}"
    )
    print(f"Model card: {shared.card}")


def _store(run: Path) -> None:
    output = user_path(cli.given(OUTPUT), "--output")
    stored = store(run, output, dtype=DTYPE.value or DTYPES[0], overwrite=OVERWRITE.value)
    print(
        f"{stored.folder}: {stored.size / 1e6:.2f} MB, SHA-256 {stored.digest}. On a synthetic scan its probabilities "
        f"differ from those in float32 by at most {stored.difference:.1e}; {stored.voxels} voxels of the mask differ"
    )
    print(f"Model card: {stored.folder / CARD}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["run", "output"])
    cli.run(main)
