"""Scores masks against reference masks, patient by patient, and writes a report.

To score one or several runs on patients that they were not trained on:
`python -m brainseg_jax.evaluate --run=runs/attn_dice --output=scores`. To score a folder of masks:
`python -m brainseg_jax.evaluate --predictions=FOLDER --truth=FOLDER --output=scores`. In label maps
each label is a target, unless `--targets` or a `dataset.json` of nnU-Net in or beside the reference masks names them.

Several processes can share the cases: run the same command with `--shard=0/4` to `--shard=3/4`, in any order, on
machines that share the folder of `--output`. Then run `python -m brainseg_jax.evaluate --merge --output=scores`.
"""

import brainseg_jax.import_errors  # isort: skip  # noqa: F401

import contextlib
import itertools
import math
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from absl import flags

from brainseg_jax import cli
from brainseg_jax.compilation import keep_compiled
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.blocks import score_blocks
from brainseg_jax.evaluation.case_pictures import CasePictures
from brainseg_jax.evaluation.folders import begin_folders
from brainseg_jax.evaluation.plots import FORMATS, save_figure
from brainseg_jax.evaluation.records import Records, Work, join, read_records, write_records
from brainseg_jax.evaluation.report import MAX_RUNS, code_version, paper_figures, write_report
from brainseg_jax.evaluation.scores import by_target, differences, summarize, write_json, write_table
from brainseg_jax.evaluation.shards import NAME, opened_records, score_shard
from brainseg_jax.evaluation.views import Scored
from brainseg_jax.evaluation.volumes import TOLERANCE
from brainseg_jax.files import check_folder, explain, network_path, user_path, write_together
from brainseg_jax.runs.comparison import begin_runs
from brainseg_jax.shards import ALL, Shard, ShardFile, check_beside_merge, parse_shard, remove_shards

RUN = flags.DEFINE_list(
    "run",
    [],
    f"Run folders or stored networks, up to {MAX_RUNS}, with commas between them. The others are compared with the "
    "first. pretrained: the network in this package.",
)
SOURCE = flags.DEFINE_string(
    "source",
    "",
    "Labelled scans to score the runs on, instead of their own test patients; values as for --config.data.source. "
    "Cases of patients that a run was trained on or chosen by are left out.",
)
PART = flags.DEFINE_enum("part", "test", ["val", "test"], "Patients of the runs to score.")
PREDICTIONS = flags.DEFINE_string("predictions", None, "A folder of predicted masks.")
TRUTH = flags.DEFINE_string("truth", None, "A folder of the reference masks of the same cases.")
TARGETS = flags.DEFINE_string(
    "targets",
    "",
    "Labels of each target in --truth, as in 'whole tumor=1,2,3;enhancing tumor=3;ignore=255'. Default: those of a "
    "dataset.json in or beside --truth, else each label is a target.",
)
SURFACE_TOLERANCE = flags.DEFINE_float(
    "tolerance", TOLERANCE, "Tolerance of surface Dice, in mm; in voxels if the spacing is unknown."
)
OUTPUT = flags.DEFINE_string("output", None, "Folder for scores.json, per_patient.csv and report.html.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace existing results; with --shard, repeat this shard.")
SHARD = flags.DEFINE_string(
    "shard", "0/1", "i/n: score shard i of n shards of the cases, counted from 0, for job arrays. --merge joins them."
)
FIGURES = flags.DEFINE_enum(
    "figures", None, list(FORMATS), "Also write the plots of the report to OUTPUT/figures in this format, for papers."
)
MERGE = flags.DEFINE_bool(
    "merge", False, "Only join the shards to the results. Needs --output; accepts --figures and --overwrite."
)
RECORDED = (RUN, SOURCE, PART, PREDICTIONS, TRUTH, TARGETS, SURFACE_TOLERANCE, SHARD)  # flags that each shard records

FILES = ("scores.json", "per_patient.csv", "report.html")


def main(_: list[str]) -> None:
    """Scores the masks, writes the result files or a shard, and prints a line for each run."""
    _check_flags()
    output = user_path(cli.given(OUTPUT), "--output")
    check_folder(output, "--output")
    if (output / "config.json").exists():
        raise InputError(f"--output={output} is a run folder, and its own results would be lost; give another folder")
    names = (*FILES, "figures") if FIGURES.value else FILES
    if not OVERWRITE.value and (existing := [output / name for name in names if (output / name).exists()]):
        raise InputError(f"{existing[0]} already exists; give another --output, or --overwrite to replace it")
    shard = parse_shard(SHARD.value)
    try:
        with cli.sigterm_interrupts():
            _run(output, shard)
    except KeyboardInterrupt:
        effect = "start again" if shard.is_whole else f"continue shard {shard}"
        raise KeyboardInterrupt(
            f"interrupted before all results were written; repeat the command to {effect}"
        ) from None


def _run(output: Path, shard: Shard) -> None:
    if MERGE.value:
        with opened_records(output) as (command, shards):
            _write_results(output, shards, tolerance=command["--tolerance"])
        remove_shards(output, NAME)
    elif shard.is_whole:
        work = _begin()
        scorings = itertools.chain(
            [next(work.scorings)], work.scorings
        )  # raises errors of the input before it writes any file
        with _scratch_file(output) as file:
            write_records(file, scorings, ALL, read_records(file, ALL))
            file.seek(0)
            _write_results(output, [read_records(file, ALL)], tolerance=SURFACE_TOLERANCE.value)
    else:
        _score_shard(output, shard)


def _begin() -> Work:
    """Starts the scoring of the runs or folders. This call and the first scoring raise errors of the input."""
    keep_compiled()
    if RUN.value:
        folders = [network_path(folder, "--run") for folder in RUN.value]
        return begin_runs(folders, part=PART.value, tolerance=SURFACE_TOLERANCE.value, source=SOURCE.value)
    predictions, truth = (user_path(cli.given(flag), f"--{flag.name}") for flag in (PREDICTIONS, TRUTH))
    return begin_folders(predictions, truth, tolerance=SURFACE_TOLERANCE.value, targets=TARGETS.value)


def _score_shard(output: Path, shard: Shard) -> None:
    work = _begin()
    command: dict = {"code": code_version(), "--tolerance": SURFACE_TOLERANCE.value}
    if RUN.value:
        folders = [str(network_path(folder, "--run").absolute()) for folder in RUN.value]
        command |= {"--run": folders, "--part": PART.value, "--source": SOURCE.value}
    else:
        masks = {f"--{flag.name}": user_path(cli.given(flag), f"--{flag.name}") for flag in (PREDICTIONS, TRUTH)}
        command |= {name: str(folder.absolute()) for name, folder in masks.items()} | {"--targets": TARGETS.value}
    file = ShardFile(output, NAME, shard, command | work.version)
    count = score_shard(file, work, overwrite=OVERWRITE.value)
    if count is None:
        print(f"shard {shard} is done: {file.path}; --overwrite scores it again, --merge joins all shards")
    else:
        cases = f"{count} case{'s' * (count != 1)}"
        print(f"shard {shard}, {cases}: {file.path}. When all are done: evaluate --merge --output={output}")


@contextlib.contextmanager
def _scratch_file(output: Path) -> Iterator[BinaryIO]:
    """Yields a temporary file in `output`. Afterwards a new folder without results is removed again."""
    with contextlib.ExitStack() as stack:
        if not output.exists():
            stack.callback(_remove_empty, output)
        try:
            output.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(tempfile.TemporaryFile(dir=output))
        except OSError as error:
            raise InputError(f"--output={output} cannot be written to ({explain(error)})") from error
        yield file


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # the folder does not exist or is not empty
        folder.rmdir()


def _write_results(output: Path, shards: list[Records], *, tolerance: float) -> None:
    runs, cases = join(shards)
    _write_files(output, runs, cases, tolerance=tolerance)
    for run in runs:
        _print_scores(run)
    print(f"Report: {output / 'report.html'}")
    if FIGURES.value:
        print(f"Figures: {output / 'figures'}")


def _write_files(output: Path, runs: list[Scored], cases: Sequence[CasePictures], *, tolerance: float) -> None:
    writers = {
        "scores.json": lambda path: write_json(path, _scores(runs, tolerance)),
        "per_patient.csv": lambda path: write_table(path, _table(runs)),
        "report.html": lambda path: write_report(path, runs, cases, tolerance=tolerance),
    }
    if FIGURES.value:
        for name, figure in paper_figures(runs, tolerance=tolerance).items():
            writers[f"figures/{name}.{FIGURES.value}"] = partial(save_figure, figure)
    try:
        if FIGURES.value:
            (output / "figures").mkdir(exist_ok=True)
        write_together({output / name: write for name, write in writers.items()})
    except OSError as error:
        _remove_empty(output / "figures")
        raise InputError(f"--output={output} cannot be written to ({explain(error)})") from error


def _print_scores(run: Scored) -> None:
    """Prints a line for the run. With several targets, prints a line for their mean and for each of them."""
    scores = by_target(run.rows, summarize)
    lines = {run.name: scores.get("mean", scores)}
    if "targets" in scores:
        lines = {f"{run.name}, mean over the targets": scores["mean"]}
        lines |= {f"{run.name}, {name}": block for name, block in scores["targets"].items()}
    for title, block in lines.items():
        print(
            f"{title}, {block['patients']} patients: 3-D Dice {block['dice_mean']:.3f} mean, "
            f"{block['dice_median']:.3f} median; surface Dice {block['surface_dice_mean']:.3f} mean"
        )


def _check_flags() -> None:
    folders = (PREDICTIONS.value, TRUTH.value)
    if not OUTPUT.value:
        raise InputError("--output is empty: give the folder for the results")
    if MERGE.value:
        check_beside_merge(RECORDED)
        return
    if FIGURES.value and not parse_shard(SHARD.value).is_whole:
        raise InputError(
            f"--figures={FIGURES.value} with --shard={SHARD.value}: give --figures to --merge, which has all cases"
        )
    if bool(RUN.value) == any(folders) or any(folders) != all(folders):
        raise InputError("give --run=FOLDER, or --predictions=FOLDER and --truth=FOLDER")
    if TARGETS.value and RUN.value:
        raise InputError(f"--targets={TARGETS.value}: the targets of a run are those of its data; leave --targets out")
    if SOURCE.value and not RUN.value:
        raise InputError(f"--source={SOURCE.value}: also give --run=FOLDER, the network to score on it")
    if SOURCE.value and PART.present:
        raise InputError(f"--part={PART.value}: all cases of --source are scored; leave --part out")
    if len(RUN.value) > MAX_RUNS:
        raise InputError(f"--run={','.join(RUN.value)}: {len(RUN.value)} runs; give at most {MAX_RUNS}")
    if not (math.isfinite(SURFACE_TOLERANCE.value) and SURFACE_TOLERANCE.value >= 0.0):
        raise InputError(f"--tolerance={SURFACE_TOLERANCE.value}: give a length of at least 0")


def _table(runs: list[Scored]) -> list[dict]:
    """Rows of all runs. With several runs each row has the name of its run."""
    if len(runs) == 1:
        return runs[0].rows
    return [{"run": run.name, **row} for run in runs for row in run.rows]


def _scores(runs: list[Scored], tolerance: float) -> dict:
    first, *others = runs
    return {
        "unit": first.rows[0]["unit"],
        "surface_tolerance": tolerance,
        "runs": {
            run.name: {
                **run.facts,
                **score_blocks(run.rows, run.calibrations, target=run.description.names[0])._asdict(),
            }
            for run in runs
        },
        "differences": {f"{run.name} less {first.name}": differences(first.rows, run.rows) for run in others},
    }


if __name__ == "__main__":
    flags.mark_flag_as_required("output")
    cli.run(main)
