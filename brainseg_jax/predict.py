"""Masks for scans of one's own: `python -m brainseg_jax.predict --run=runs/attn_dice --input=SCANS --output=masks`."""

from pathlib import Path

from absl import flags

from brainseg_jax import cli
from brainseg_jax.compilation import keep_compiled, use_plain_numbers
from brainseg_jax.errors import InputError
from brainseg_jax.prediction.job import predict
from brainseg_jax.prediction.results import Wanted

RUN = flags.DEFINE_list("run", None, "A run folder; several, with a comma between, predict together.")
INPUT = flags.DEFINE_string(
    "input", None, "Scans: slices <case>_<n>.tif or .png, NIfTI volumes, DICOM series, or a folder of any."
)
OUTPUT = flags.DEFINE_string("output", None, "Folder for masks, predictions.csv and areas.csv.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace results that are there.")
PROBABILITIES = flags.DEFINE_bool("probabilities", False, "Write the probability of tumor too, as float32.")
UNCERTAINTY = flags.DEFINE_bool("uncertainty", False, "Write the standard deviation over runs and mirror images too.")
OVERLAYS = flags.DEFINE_bool("overlays", False, "Draw a PNG of each scan with the mask outlined too.")
TTA = flags.DEFINE_bool("tta", None, "Average with left-right mirror images; by default as each run was scored.")


def main(_: list[str]) -> None:
    """Predicts what the flags name."""
    for flag in (RUN, INPUT, OUTPUT):
        if not flag.value:
            raise InputError(f"--{flag.name} is empty: give --run=RUN_FOLDER --input=SCANS --output=FOLDER")
    use_plain_numbers()
    keep_compiled()
    predict(
        [Path(folder).expanduser() for folder in RUN.value],
        Path(INPUT.value).expanduser(),
        Path(OUTPUT.value).expanduser(),
        wanted=Wanted(PROBABILITIES.value, UNCERTAINTY.value, OVERLAYS.value),
        mirror=TTA.value,
        overwrite=OVERWRITE.value,
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["run", "input", "output"])
    cli.run(main)
