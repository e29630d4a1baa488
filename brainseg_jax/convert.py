"""Converts weights of the published PyTorch U-Net to a run folder.

`python -m brainseg_jax.convert --weights=unet.pt --output=runs/published`
"""

import brainseg_jax.import_errors  # isort: skip  # noqa: F401

from absl import flags

from brainseg_jax import cli
from brainseg_jax.errors import InputError
from brainseg_jax.files import user_path
from brainseg_jax.sharing.published import convert

WEIGHTS = flags.DEFINE_string("weights", None, "A state dict of mateuszbuda/brain-segmentation-pytorch.")
OUTPUT = flags.DEFINE_string("output", None, "The run folder to create.")


def main(_: list[str]) -> None:
    """Converts the weights and prints the number of parameters."""
    for flag in (WEIGHTS, OUTPUT):
        if not flag.value:
            raise InputError(f"--{flag.name} is empty: give --weights=FILE --output=FOLDER")
    output = user_path(cli.given(OUTPUT), "--output")
    parameters = convert(user_path(cli.given(WEIGHTS), "--weights"), output)
    print(f"{output}: a U-Net of {parameters:,} parameters, for predict --run, export --run and train.init_from")


if __name__ == "__main__":
    flags.mark_flags_as_required(["weights", "output"])
    cli.run(main)
