"""One file of a trained network, for others: `python -m brainseg_jax.export --run=runs/attn_dice --output=shared`."""

from absl import flags

from brainseg_jax import cli
from brainseg_jax.errors import InputError
from brainseg_jax.files import user_path
from brainseg_jax.sharing.share import FORMATS, share

RUN = flags.DEFINE_string("run", None, "A run folder; the checkpoint that its train.keep names is taken.")
OUTPUT = flags.DEFINE_string("output", None, "The file, or a folder for it; the model card lies beside it.")
FORMAT = flags.DEFINE_enum("format", "onnx", list(FORMATS), "onnx, or stablehlo for jax.export.")
SIZE = flags.DEFINE_integer(
    "size",
    None,
    "Height and width of the slices that the file is to take, in pixels; by default 256 for a network of the LGG set, "
    "else the size of its images. A network trained at a pixel spacing takes no other.",
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace files that are there.")


def main(_: list[str]) -> None:
    """Writes the file and its card, and prints what the check against JAX found."""
    for flag in (RUN, OUTPUT):
        if not flag.value:
            raise InputError(f"--{flag.name} is empty: give --run=RUN_FOLDER --output=FILE_OR_FOLDER")
    shared = share(
        user_path(RUN.value, "--run"),
        user_path(OUTPUT.value, "--output"),
        file_format=FORMAT.value,
        size=SIZE.value,
        overwrite=OVERWRITE.value,
    )
    print(
        f"{shared.path}: {shared.path.stat().st_size / 1e6:.1f} MB. On a synthetic scan its probabilities differ "
        f"from this package's by at most {shared.difference:.1e}"
    )
    print(f"Model card: {shared.card}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["run", "output"])
    cli.run(main)
