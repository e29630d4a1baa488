"""Prepares the data: `python -m brainseg_jax.data.prepare --source=PATH --data_dir=DIR`.

Checks everything, writes a TFDS dataset, and prints a summary table. With `--check` it writes nothing.
"""

import brainseg_jax.import_errors  # isort: skip  # noqa: F401

from absl import flags
from rich.console import Console

from brainseg_jax import cli
from brainseg_jax.data import prepared
from brainseg_jax.data.prepare_source import check, prepare
from brainseg_jax.data.prepared_tables import print_summary

SOURCE = flags.DEFINE_string(
    "source",
    "kaggle",
    "What to prepare: a folder of labelled scans (nnU-Net, MSD, BraTS, BIDS, pairs of image and mask); kaggle_3m/, a "
    "folder that contains it, Kaggle's zip; kaggle (the prepared set, otherwise a download); phantom or "
    "phantom:PATIENTS:SEED (synthetic patients).",
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of TFDS datasets. Default: TFDS_DATA_DIR, otherwise ~/tensorflow_datasets."
)
CHECK = flags.DEFINE_bool("check", False, "Only check the source: read every file, list all faults, write nothing.")


def main(_: list[str]) -> None:
    """Prepares or checks the source and prints its summary."""
    console = Console()
    if CHECK.value:
        print_summary(check(SOURCE.value), console)
        console.print("No faults. Checked only; nothing was written.")
        return
    folder = prepare(SOURCE.value, DATA_DIR.value)
    print_summary(prepared.read_summary(folder), console)
    console.print(f"Folder: {folder}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    cli.run(main)
