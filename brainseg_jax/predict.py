"""Masks for scans of one's own: `python -m brainseg_jax.predict --input=SCANS --output=masks`.

Without `--run` the network in this package makes them, which segments lower-grade glioma.
"""

import brainseg_jax.import_errors  # isort: skip  # noqa: F401

from absl import flags

from brainseg_jax import cli
from brainseg_jax.compilation import keep_compiled
from brainseg_jax.errors import InputError
from brainseg_jax.files import network_path, user_path
from brainseg_jax.prediction.job import predict
from brainseg_jax.prediction.results import Wanted
from brainseg_jax.prediction.shards import merge_shards
from brainseg_jax.scans.patterns import read_patterns
from brainseg_jax.shards import check_beside_merge, parse_shard

RUN = flags.DEFINE_list(
    "run",
    ["pretrained"],
    "A run folder or a stored network; several, with a comma between, predict together. pretrained: the network in "
    "this package.",
)
INPUT = flags.DEFINE_string(
    "input",
    None,
    "Scans: slices <case>_<n>.tif or .png, NIfTI volumes, DICOM series, or a folder of any; for a network of other "
    "channels than those of the LGG set, cases in any format that prepare reads.",
)
SEQUENCES = flags.DEFINE_string(
    "sequences",
    "",
    "Which file, folder or DICOM series is which sequence, as in flair=*FLAIR*,pre=*T1pre*,post=*T1post*; "
    "by default names and headers tell.",
)
OUTPUT = flags.DEFINE_string("output", None, "Folder for masks, predictions.csv and areas.csv.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace existing results; with --shard, begin this shard again.")
PROBABILITIES = flags.DEFINE_bool("probabilities", False, "Write the probability of each target too, as float32.")
UNCERTAINTY = flags.DEFINE_bool("uncertainty", False, "Write the standard deviation over runs and mirror images too.")
OVERLAYS = flags.DEFINE_bool("overlays", False, "Draw a PNG of each scan with the masks outlined too.")
TTA = flags.DEFINE_bool("tta", None, "Average with left-right mirror images; by default as each run was scored.")

SHARD = flags.DEFINE_string(
    "shard", "0/1", "i/n: predict the i-th of n shards of the scans, from 0, for job arrays; --merge joins the tables."
)
MERGE = flags.DEFINE_bool("merge", False, "Predict nothing; join the tables of all shards. Takes --output alone.")
RECORDED = (
    RUN,
    INPUT,
    SEQUENCES,
    PROBABILITIES,
    UNCERTAINTY,
    OVERLAYS,
    TTA,
    SHARD,
)  # by the shards


def main(_: list[str]) -> None:
    """Predicts what the flags name.

    SIGTERM ends it as Ctrl-C does: what is done stands in the tables, and the status is 130.
    """
    if MERGE.value and OUTPUT.value:
        check_beside_merge(RECORDED)
        return merge_shards(user_path(OUTPUT.value, "--output"), overwrite=OVERWRITE.value)
    for flag in (RUN, INPUT, OUTPUT):
        if not flag.value:
            raise InputError(f"--{flag.name} is empty: give --input=SCANS --output=FOLDER, and --run=RUN_FOLDER")
    shard = parse_shard(SHARD.value)
    keep_compiled()
    with cli.sigterm_interrupts():
        predict(
            [network_path(folder, "--run") for folder in RUN.value],
            user_path(INPUT.value, "--input"),
            user_path(OUTPUT.value, "--output"),
            wanted=Wanted(PROBABILITIES.value, UNCERTAINTY.value, OVERLAYS.value),
            mirror=TTA.value,
            overwrite=OVERWRITE.value,
            sequences=read_patterns(SEQUENCES.value),
            shard=shard,
        )


if __name__ == "__main__":
    flags.mark_flag_as_required("output")
    cli.run(main)
