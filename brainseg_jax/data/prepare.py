"""Prepares the data: `python -m brainseg_jax.data.prepare --source=PATH --data_dir=DIR`.

Checks everything first, writes a TFDS dataset, and ends with a table of what is in it beside the published counts.
"""

from absl import flags
from rich.console import Console
from rich.table import Table

from brainseg_jax import cli
from brainseg_jax.data import prepared
from brainseg_jax.data.lgg import prepare

SOURCE = flags.DEFINE_string(
    "source",
    "kaggle",
    "What to prepare: kaggle_3m/, a folder that holds it, Kaggle's zip; kaggle (the set prepared before, else a "
    "download); phantom or phantom:PATIENTS:SEED (made-up patients).",
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of TFDS datasets. Default: TFDS_DATA_DIR, else ~/tensorflow_datasets."
)


def describe(summary: prepared.Summary) -> Table:
    """The table of a prepared set; beside a real one stand the published counts."""
    table = Table(title="Prepared data", title_justify="left")
    table.add_column("")
    table.add_column("here", justify="right", overflow="fold")
    rows = {
        "patients": (f"{summary.patients}", f"{prepared.PUBLISHED_PATIENTS}"),
        "slices": (f"{summary.slices}", f"{prepared.PUBLISHED_SLICES}"),
        "tumor slices": (f"{summary.tumor_slices}", f"{prepared.PUBLISHED_TUMOR_SLICES}"),
        "tumor pixels": (f"{summary.tumor_fraction:.3%}", f"{prepared.PUBLISHED_TUMOR_FRACTION:.2%}"),
    }
    codes = prepared.PUBLISHED_INSTITUTIONS if summary.is_published else summary.institutions
    for code in codes:
        published = prepared.PUBLISHED_INSTITUTIONS.get(code, 0)
        rows[f"patients of {code}"] = (f"{summary.institutions.get(code, 0)}", f"{published}")
    rows["fingerprint"] = (summary.fingerprint[:16], "")
    if summary.is_published:
        table.add_column("published", justify="right")
    for name, (here, published) in rows.items():
        table.add_row(name, here, *([published] if summary.is_published else []))
    return table


def verdict(summary: prepared.Summary) -> str:
    """One sentence on how a prepared set compares with the published one."""
    if not summary.is_published:
        return "Not the published set: its patients come from other institutions."
    if summary.patients < prepared.PUBLISHED_PATIENTS:
        return f"A subset: {summary.patients} of the {prepared.PUBLISHED_PATIENTS} published patients."
    if summary.is_whole:
        return "All published patients, slices and tumor slices."
    return "The counts differ from the published ones: this is another version of the set, or it was changed."


def main(_: list[str]) -> None:
    """Prepares what the flags name and prints what there is."""
    folder = prepare(SOURCE.value, DATA_DIR.value)
    summary = prepared.read_summary(folder)
    console = Console()
    console.print(describe(summary))
    console.print(verdict(summary))
    console.print(f"Source: {summary.source}\nFingerprint: {summary.fingerprint}\nFolder: {folder}", soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
