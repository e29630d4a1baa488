"""Tables of a prepared set: the LGG set next to the published counts; for other cohorts, channels and targets."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from brainseg_jax.data import prepared


def describe(summary: prepared.Summary) -> Table:
    """The table of a prepared set of the LGG data. If its institutions are the published ones, a second column
    has the published counts.
    """
    table = Table(title="Prepared data", title_justify="left")
    table.add_column("")
    table.add_column("here", justify="right", overflow="fold")
    rows = {
        "patients": (f"{summary.patients}", f"{prepared.PUBLISHED_PATIENTS}"),
        "slices": (f"{summary.slices}", f"{prepared.PUBLISHED_SLICES}"),
        "tumor slices": (f"{summary.target_slices}", f"{prepared.PUBLISHED_TUMOR_SLICES}"),
        "tumor pixels": (f"{summary.target_fraction:.3%}", f"{prepared.PUBLISHED_TUMOR_FRACTION:.2%}"),
    }
    codes = prepared.PUBLISHED_INSTITUTIONS if summary.has_published_groups else summary.groups
    for code in codes:
        count, published_count = summary.groups.get(code, 0), prepared.PUBLISHED_INSTITUTIONS.get(code, 0)
        rows[f"patients of {code}"] = (f"{count}", f"{published_count}")
    rows["fingerprint"] = (summary.fingerprint[:16], "")
    if summary.has_published_groups:
        table.add_column("published", justify="right")
    for name, (here, published) in rows.items():
        table.add_row(name, here, *([published] if summary.has_published_groups else []))
    return table


def describe_cohort(summary: prepared.Summary) -> list[Table]:
    """Tables of any other cohort: an overview, its channels, its targets."""
    contents, description = summary.contents, summary.description
    assert contents is not None  # only the LGG data have none
    cohort = _table(f"Cohort: {contents.kind}", "", "")
    groups = {group or "unknown": count for group, count in summary.groups.items()}
    ignored = "none" if description.ignore is None else str(description.ignore)
    rows = {
        "patients": str(summary.patients),
        "cases": str(summary.cases),
        "slices": f"{summary.slices}, {summary.target_slices} with a target",
        "groups (patients)": ", ".join(f"{group} ({count})" for group, count in groups.items()),
        "slices, rows, columns": " x ".join(_min_median_max(values) for values in contents.sizes),
        "spacing in mm": " x ".join(_min_median_max(values) for values in contents.spacings) or "unknown",
    }
    if contents.without_spacing and contents.spacings:
        rows["cases without spacing"] = str(contents.without_spacing)
    rows |= {"ignored label": ignored, "fingerprint": summary.fingerprint[:16]}
    for name, value in rows.items():
        cohort.add_row(name, value)
    channels = _table("Channels", "channel", "minimum in files", "maximum in files", "cases replaced")
    for name in description.channels:
        low, high = contents.ranges.get(name, (None, None))
        count = contents.replaced.get(name, 0)
        replaced = f"{count} by {description.stand_in}" if count else "0"
        channels.add_row(name, _number(low), _number(high), replaced)
    targets = _table("Targets", "target", "labels", "cases", "voxels", "mL", "mL per case (median)")
    for target in contents.targets:
        targets.add_row(
            target.name,
            ", ".join(map(str, sorted(target.labels))),
            str(target.cases),
            str(target.voxels),
            _number(target.milliliters),
            _number(target.median_milliliters),
        )
    return [cohort, channels, targets]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    return table


def _min_median_max(values: Sequence[float]) -> str:
    """Minimum, median and maximum; one number if they are equal."""
    texts = [f"{value:.4g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else f"{texts[0]}-{texts[1]}-{texts[2]}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.6g}"


def verdict(summary: prepared.Summary) -> str:
    """One sentence that compares a prepared set with the published one."""
    if not summary.has_published_groups:
        return "Not the published set: some patients come from other institutions."
    if summary.patients < prepared.PUBLISHED_PATIENTS:
        return f"A subset: {summary.patients} of the {prepared.PUBLISHED_PATIENTS} published patients."
    if summary.is_whole:
        return "All published patients, slices and tumor slices."
    return "The counts differ from the published ones: the set is another version, or it was modified."


def print_summary(summary: prepared.Summary, console: Console) -> None:
    """Prints the tables and notes of a set."""
    if summary.contents is None:
        console.print(describe(summary))
        console.print(verdict(summary))
    else:
        for table in describe_cohort(summary):
            console.print(table)
        console.print("Sizes and spacings: one value, or minimum-median-maximum.")
        for note in summary.contents.notes:
            console.print(f"Note: {note}", soft_wrap=True, markup=False)
    console.print(f"Source: {summary.source}\nFingerprint: {summary.fingerprint}", soft_wrap=True, markup=False)
