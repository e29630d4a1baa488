"""Segments your scans: `python -m brainseg_jax.predict --input=SCANS --output=masks`.

Without `--run` it uses the network in this package, which segments lower-grade glioma.
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
    "A run folder or a stored network, or several with commas between them, which are averaged. pretrained: the "
    "network in this package.",
)
INPUT = flags.DEFINE_string(
    "input",
    None,
    "Scans: slices <case>_<n>.tif or .png, NIfTI volumes, DICOM series, or a folder of these. If the channels of the "
    "network differ from those of the LGG data: cases in any format that prepare reads.",
)
SEQUENCES = flags.DEFINE_string(
    "sequences",
    "",
    "File, folder or DICOM series of each sequence, as in flair=*FLAIR*,pre=*T1pre*,post=*T1post*. By default names "
    "and headers identify them.",
)
OUTPUT = flags.DEFINE_string("output", None, "Folder for masks, predictions.csv and areas.csv.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace existing results; with --shard, repeat this shard.")
PROBABILITIES = flags.DEFINE_bool("probabilities", False, "Also write the probability of each target, as float32.")
UNCERTAINTY = flags.DEFINE_bool("uncertainty", False, "Also write the standard deviation over runs and mirror images.")
OVERLAYS = flags.DEFINE_bool("overlays", False, "Also draw a PNG of each scan with the outlines of the masks.")
TTA = flags.DEFINE_bool("tta", None, "Average with left-right mirror images. Default: as in the scores of each run.")

SHARD = flags.DEFINE_string(
    "shard",
    "0/1",
    "i/n: predict shard i of n shards of the scans, counted from 0, for job arrays. --merge joins the tables.",
)
MERGE = flags.DEFINE_bool("merge", False, "Only join the tables of all shards. Needs --output; accepts --overwrite.")
RECORDED = (
    RUN,
    INPUT,
    SEQUENCES,
    PROBABILITIES,
    UNCERTAINTY,
    OVERLAYS,
    TTA,
    SHARD,
)  # flags that each shard records


def main(_: list[str]) -> None:
    """Predicts the masks of the scans.

    SIGTERM and Ctrl-C stop it with status 130. The tables then contain all finished scans.
    """
    if MERGE.value and OUTPUT.value:
        check_beside_merge(RECORDED)
        return merge_shards(user_path(cli.given(OUTPUT), "--output"), overwrite=OVERWRITE.value)
    for flag in (RUN, INPUT, OUTPUT):
        if not flag.value:
            raise InputError(f"--{flag.name} is empty: give --input=SCANS --output=FOLDER, and --run=RUN_FOLDER")
    shard = parse_shard(SHARD.value)
    keep_compiled()
    with cli.sigterm_interrupts():
        predict(
            [network_path(folder, "--run") for folder in RUN.value],
            user_path(cli.given(INPUT), "--input"),
            user_path(cli.given(OUTPUT), "--output"),
            wanted=Wanted(PROBABILITIES.value, UNCERTAINTY.value, OVERLAYS.value),
            mirror=TTA.value,
            overwrite=OVERWRITE.value,
            sequences=read_patterns(SEQUENCES.value),
            shard=shard,
        )


if __name__ == "__main__":
    flags.mark_flag_as_required("output")
    cli.run(main)
