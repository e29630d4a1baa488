"""Predicts scans with the networks of run folders: checks all inputs first, then predicts, then prints a summary."""

import contextlib
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from brainseg_jax.errors import InputError, PartlyDone
from brainseg_jax.evaluation.quality import EXPECTED, LOWER, UPPER, lowest_first
from brainseg_jax.files import PRETRAINED, check_folder
from brainseg_jax.inference.ensemble import Ensemble
from brainseg_jax.inference.postprocess import PostProcess
from brainseg_jax.inference.quality import MIN_PATIENTS, ExpectedDice
from brainseg_jax.inference.training_scans import FILE as TRAINING_SCANS
from brainseg_jax.prediction.cases import ComparedSource, find_cases, has_lgg_channels
from brainseg_jax.prediction.results import FLAGS, NOT_COMPARED, Wanted, check_free, is_written, write_tables
from brainseg_jax.prediction.shards import EMPTY, NAME, command_of, digest_of_stats, read_shard, recording
from brainseg_jax.prediction.stream import Outcome, predict_scans
from brainseg_jax.runs.trained import EXPECTED_DICE, Trained, load_trained, names_of
from brainseg_jax.scans.description import LGG, Description
from brainseg_jax.scans.find import Found
from brainseg_jax.scans.patterns import Patterns
from brainseg_jax.scans.scan import Refused, Source
from brainseg_jax.scans.walk import list_passed_over
from brainseg_jax.shards import ALL, Shard, ShardFile

_MAX_ROWS = 20  # of the table of cases
_LOWEST = 3  # listed scans with the lowest expected Dice


def predict(
    runs: list[Path],
    scans: Path,
    output: Path,
    *,
    wanted: Wanted,
    mirror: bool | None,
    overwrite: bool,
    sequences: Patterns | None = None,
    shard: Shard = ALL,
) -> Outcome:
    """Predicts scans, and writes masks and tables.

    Args:
      runs: one or more folders of networks with the same channels and targets.
      scans: see `find_cases`.
      output: folder for results.
      wanted: the files to write with the masks.
      mirror: see `Ensemble`.
      overwrite: whether to replace existing results.
      sequences: see `find_scans`.
      shard: selects the scans. One of several shards writes its rows to a file for `merge_shards`.

    Raises:
      InputError: an input is invalid, which is found before anything is written; or no scan could be read.
      PartlyDone: some scans could not be predicted; the results of the others are written.
      StorageError: a checkpoint is damaged.
    """
    check_folder(output, "--output")
    names_of(runs)  # raises for duplicates
    start = time.perf_counter()
    trained = [load_trained(folder) for folder in runs]
    description = _same_description({run.folder: run.network.description for run in trained})
    loaded = time.perf_counter() - start
    if PRETRAINED in runs:
        print(_about_pretrained(trained[runs.index(PRETRAINED)]), flush=True)
    found, notes = find_cases(scans, description, sequences)
    sources = shard.of(found.sources)
    print("\n".join([*(f"note: {note}" for note in notes), *table(found, scans, description)]), flush=True)
    if not shard.is_whole:
        print(f"shard {shard}: {len(sources)} of {len(found.sources)} cases", flush=True)
    refused = [source.fault for source in found.sources if isinstance(source, Refused)]
    if len(refused) == len(found.sources):
        raise InputError("no scan could be predicted, so nothing was written:\n" + "\n".join(refused))
    start = time.perf_counter()
    ensemble = Ensemble([run.network for run in trained], _first_posts(trained), mirror=mirror)
    if wanted.uncertainty and ensemble.num_predictions == 1:
        raise InputError("--uncertainty is the spread of several predictions; add --tta, or give several runs")
    expected, reason = _expected_dice(trained, mirror)
    if reason:
        print(f"note: {reason}", flush=True)
    outcome = Outcome()
    if shard.is_whole:
        file, finished = None, {}
        writer: contextlib.AbstractContextManager = _writing_tables(outcome, output)
    else:
        command = command_of(trained, scans, found.sources, ensemble, wanted, expected)
        file = ShardFile(output, NAME, shard, command)
        previous = read_shard(file, command) if not overwrite and file.exists() else EMPTY
        finished = {
            source.name: previous.rows[source.name]
            for source in sources
            if source.name in previous.rows and is_written(source, description, output, wanted)
        }
        files = {source.name: digest_of_stats(source) for source in sources}
        if changed := [name for name, rows in previous.rows.items() if rows["files"] != files[name]]:
            names = ", ".join(changed[:5]) + (", ..." if changed[5:] else "")
            raise InputError(
                f"{file.path}: the files of {names} changed after they were predicted; give --overwrite to restart "
                "this shard, or another --output"
            )
        if previous.done and not previous.faults and len(finished) == len(previous.rows):
            print(f"shard {shard} is done: {file.path}; --overwrite predicts it again, --merge joins all shards")
            return outcome
        writer = recording(file, previous, finished, files, outcome)
    if not overwrite and not (file and previous.end):
        check_free(sources, description, output, wanted, tables=shard.is_whole)
    ensemble.compile()
    ready = loaded + time.perf_counter() - start
    compared = _compared([source for source in sources if source.name not in finished], trained, description)
    with writer:
        predict_scans(compared, ensemble, output, wanted, outcome, expected)
    _print_outcome(outcome, output, ready, file)
    return outcome


def _about_pretrained(trained: Trained) -> str:
    """Which network this is, and what it must not be used for. Its model card has the details."""
    test = (trained.results or {}).get("test", {})
    scored = ""
    if "dice_mean" in test:
        scored = (
            f"; 3-D Dice {test['dice_mean']:.2f} mean, {test['dice_median']:.2f} median on {test['patients']} patients"
        )
    return (
        f"network: pretrained ({trained.folder.name}, weights {trained.weights_digest}), for lower-grade glioma on "
        f"brain MRI with the skull{scored}. Model card: {trained.folder / 'README.md'}\n"
        "limits: research code, not a medical device. It was not evaluated on other tumors, sequences or "
        "scanners. Check each mask."
    )


@contextlib.contextmanager
def _writing_tables(outcome: Outcome, output: Path) -> Iterator[None]:
    try:
        yield
    finally:  # the tables list the finished scans after any exception
        write_tables(outcome.scans, outcome.slices, output)


def _compared(sources: list[Source], trained: list[Trained], description: Description) -> list[Source]:
    """Wraps the sources, so that they are compared with the training scans of all runs with such statistics."""
    training = tuple(run.training_scans for run in trained if run.training_scans)
    if not training:
        print(f"note: scans are not compared with the training scans: no run has a {TRAINING_SCANS}", flush=True)
        return sources
    return [ComparedSource.of(source, training, description) for source in sources]


def _first_posts(trained: list[Trained]) -> tuple[PostProcess, ...]:
    """The post-processing of the first run. Logs a warning if the other runs differ."""
    first, *others = trained
    if different := [run.folder.name for run in others if run.posts != first.posts]:
        names = first.network.description.names
        posts = [", ".join(f"{name} {value}" for name, value in post._asdict().items()) for post in first.posts]
        by_target = [f"{name}: {post}" for name, post in zip(names, posts, strict=True)] if len(posts) > 1 else posts
        logging.warning(
            "masks are post-processed as in run %s (%s); %s uses other settings",
            first.folder.name,
            "; ".join(by_target),
            ", ".join(different),
        )
    return first.posts


def _expected_dice(trained: list[Trained], mirror: bool | None) -> tuple[ExpectedDice | None, str]:
    """The model of the expected Dice and ""; or None and the reason."""
    first, *others = trained
    if others:
        return None, "no expected Dice: it requires a single run; the column agreement is written"
    if mirror not in (None, first.network.mirror):
        flag = "tta" if mirror else "notta"
        return None, f"no expected Dice: it requires masks without --{flag}; the column agreement is written"
    if first.expected_dice is None:
        return None, (
            f"no expected Dice: {first.folder.name} has no {EXPECTED_DICE}, which a training writes at its end if "
            f"it has {MIN_PATIENTS} validation and test patients; the column agreement is written"
        )
    return first.expected_dice, ""


def _same_description(descriptions: dict[Path, Description]) -> Description:
    """The description of all runs. Raises InputError if they differ."""
    (first, description), *others = descriptions.items()
    different = [folder for folder, other in others if other != description]
    if different:
        listed = "".join(f"\n  {folder}: {_describe(descriptions[folder])}" for folder in (first, *different))
        raise InputError(
            "--run: runs that predict together need the same channels and targets, but these differ; predict with each "
            f"run separately:{listed}"
        )
    return description


def _describe(description: Description) -> str:
    stand_in = f" ({description.stand_in} replaces missing channels)" if description.stand_in else ""
    targets = ", ".join(f"{target.name} {list(target.labels)}" for target in description.targets)
    ignored = "" if description.ignore is None else f", label {description.ignore} ignored"
    painted = f", written as {list(description.painted)}"
    return f"channels {', '.join(description.channels)}{stand_in}; targets {targets}{painted}{ignored}"


def table(found: Found, scans: Path, description: Description = LGG) -> list[str]:
    """The cases with the file of each channel, and the files that are passed over, as lines to print."""
    listed, channels = found.sources[:_MAX_ROWS], description.channels
    rows = [("case", *channels)]
    for source in listed:
        cells = [source.channels.get(channel, "-") for channel in channels]
        if isinstance(source, Refused):
            cells = ["cannot be read, see the end" if k == description.shown else "" for k in range(len(channels))]
        rows.append((source.name, *cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    more = len(found.sources) - len(listed)
    if more:
        lines.append(f"and {more} more case{'s' * (more > 1)}")
    legend = []
    if any("-" in row[1:] for row in rows):
        replaced = f"{description.stand_in} replaces it" if description.stand_in else "it is missing"
        legend.append(f"-: {replaced}")
    if any(row[1 + description.shown].endswith(" *") for row in rows):
        content = "FLAIR, or all three channels as colors or along a fourth axis"
        legend.append(f"*: {content if has_lgg_channels(description) else 'all channels in one file'}")
    lines += [f"({'; '.join(legend)})"] if legend else []
    root = scans if scans.is_dir() else scans.parent
    if passed_over := list_passed_over(found.passed_over, root):
        lines += ["Passed over:", *(f"  {line}" for line in passed_over)]
    return lines


def _print_outcome(outcome: Outcome, output: Path, ready: float, file: ShardFile | None) -> None:
    for note, cases in outcome.notes.items():
        more = f" and {len(cases) - 3} more" if len(cases) > 3 else ""
        print(f"note: {', '.join(cases[:3])}{more}: {note}")
    faults, done, slices = "\n".join(outcome.faults), outcome.scans_done, outcome.slices_done
    if not done and not file:
        raise InputError(f"no scan could be predicted, so nothing was written:\n{faults}")
    print(
        f"{done} scan{'s' * (done != 1)}, {slices} slice{'s' * (slices != 1)} in {outcome.seconds:.1f} s: "
        f"{slices / outcome.seconds:.1f} slices/s, {outcome.model_seconds / outcome.seconds:.0%} of the time in the "
        f"network (before that {ready:.1f} s to load and compile)"
    )
    if flagged := len({row["case"] for row in outcome.scans if row[FLAGS] not in ("", NOT_COMPARED)}):
        print(f"{flagged} of {done} scans unlike the training scans; see the notes above and the column {FLAGS}")
    if text := _lowest_in_words(outcome.scans):
        print(text)
    merge = f"Masks: {output}; --merge joins the tables when all shards are done"
    print(merge if file else f"Masks and tables: {output}")
    if outcome.faults:
        failed = len(outcome.faults)
        raise PartlyDone(f"{failed} of {failed + done} scans could not be predicted; the others are done:\n{faults}")


def _lowest_in_words(rows: list[dict]) -> str:
    """The median expected Dice and the scans with the lowest, as text; "" if no expected Dice is known."""
    rated = [row for row in rows if row[EXPECTED] is not None]
    if not rated:
        return ""
    target = " of {target}" if "target" in rated[0] else ""
    lowest = "; ".join(
        f"{row['case']}{target.format(**row)} {row[EXPECTED]:.2f} ({row[LOWER]:.2f} to {row[UPPER]:.2f})"
        for row in lowest_first(rated)[:_LOWEST]
    )
    median = statistics.median(row[EXPECTED] for row in rated)
    return f"expected Dice: median {median:.2f}; lowest, with 90 % interval: {lowest}; check these masks first"
