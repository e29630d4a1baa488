"""Scores masks against the truth, patient by patient, and writes a report to read.

A run, or several side by side, on patients that it was not trained on:
`python -m brainseg_jax.evaluate --run=runs/attn_dice --output=scores`. Any folder of masks against another:
`python -m brainseg_jax.evaluate --predictions=FOLDER --truth=FOLDER --output=scores`. In label maps
each label is a target, unless `--targets` or a `dataset.json` of nnU-Net in or beside the reference masks names them.
"""

import math

from absl import flags

from brainseg_jax import cli
from brainseg_jax.compilation import keep_compiled
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.blocks import score_blocks
from brainseg_jax.evaluation.folders import score_folders
from brainseg_jax.evaluation.report import MAX_RUNS, write_report
from brainseg_jax.evaluation.scores import by_target, differences, summarize, write_json, write_table
from brainseg_jax.evaluation.views import Scored
from brainseg_jax.evaluation.volumes import TOLERANCE
from brainseg_jax.files import explain, user_path
from brainseg_jax.runs.comparison import score_runs
from brainseg_jax.runs.run_folder import check_folder

RUN = flags.DEFINE_list("run", [], f"Run folders, up to {MAX_RUNS}, with a comma between; the first is compared with.")
PART = flags.DEFINE_enum("part", "test", ["val", "test"], "Which patients of the runs.")
PREDICTIONS = flags.DEFINE_string("predictions", None, "A folder of predicted masks.")
TRUTH = flags.DEFINE_string("truth", None, "A folder of the reference masks of the same cases.")
TARGETS = flags.DEFINE_string(
    "targets",
    "",
    "What the labels of --truth mean, as in 'whole tumor=1,2,3;enhancing tumor=3;ignore=255'; by default what a "
    "dataset.json in or beside --truth says, else each label is a target.",
)
WITHIN = flags.DEFINE_float("tolerance", TOLERANCE, "Of surface Dice, in mm; in voxels where no spacing is known.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for scores.json, per_patient.csv and report.html.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace results that are there.")

FILES = ("scores.json", "per_patient.csv", "report.html")


def main(_: list[str]) -> None:
    """Scores what the flags name, writes the three files and prints a line for each run."""
    _check_flags()
    output = user_path(OUTPUT.value, "--output")
    check_folder(output, "--output")
    if (output / "config.json").exists():
        raise InputError(f"--output={output} is a run folder, whose own results would be lost; give another folder")
    if not OVERWRITE.value and (there := [output / name for name in FILES if (output / name).exists()]):
        raise InputError(f"{there[0]}: there already; give another --output, or --overwrite to replace it")
    keep_compiled()
    if RUN.value:
        folders = [user_path(folder, "--run") for folder in RUN.value]
        runs, cases = score_runs(folders, part=PART.value, tolerance=WITHIN.value)
    else:
        predictions, truth = (user_path(flag.value, f"--{flag.name}") for flag in (PREDICTIONS, TRUTH))
        scored, cases = score_folders(predictions, truth, tolerance=WITHIN.value, targets=TARGETS.value)
        runs = [scored]
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_table(output / "per_patient.csv", _table(runs))
        write_report(output / "report.html", runs, cases, tolerance=WITHIN.value)
        write_json(output / "scores.json", _scores(runs))
    except OSError as error:
        raise InputError(f"--output={output} cannot be written to ({explain(error)})") from error
    for run in runs:
        _print_scores(run)
    print(f"Report: {output / 'report.html'}")


def _print_scores(run: Scored) -> None:
    """A line for the run; of several targets one for the mean and one for each."""
    scores = by_target(run.rows, summarize)
    lines = {run.name: scores.get("mean", scores)}
    if "targets" in scores:
        lines = {f"{run.name}, mean over the targets": scores["mean"]}
        lines |= {f"{run.name}, {name}": block for name, block in scores["targets"].items()}
    for words, block in lines.items():
        print(
            f"{words}, {block['patients']} patients: 3-D Dice {block['dice_mean']:.3f} mean, "
            f"{block['dice_median']:.3f} median; surface Dice {block['surface_dice_mean']:.3f} mean"
        )


def _check_flags() -> None:
    folders = (PREDICTIONS.value, TRUTH.value)
    if bool(RUN.value) == any(folders) or any(folders) != all(folders):
        raise InputError("give --run=FOLDER, or --predictions=FOLDER and --truth=FOLDER")
    if TARGETS.value and RUN.value:
        raise InputError(f"--targets={TARGETS.value}: the targets of a run are those of its data; take it out")
    if len(RUN.value) > MAX_RUNS:
        raise InputError(f"--run={','.join(RUN.value)}: {len(RUN.value)} runs; give at most {MAX_RUNS}")
    if not (math.isfinite(WITHIN.value) and WITHIN.value >= 0.0):
        raise InputError(f"--tolerance={WITHIN.value}: give a length from 0")
    if not OUTPUT.value:
        raise InputError("--output is empty: give the folder for the results")


def _table(runs: list[Scored]) -> list[dict]:
    """Rows of all runs, with the name of each where there are several."""
    if len(runs) == 1:
        return runs[0].rows
    return [{"run": run.name, **row} for run in runs for row in run.rows]


def _scores(runs: list[Scored]) -> dict:
    first, *others = runs
    return {
        "unit": first.rows[0]["unit"],
        "surface_tolerance": WITHIN.value,
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
