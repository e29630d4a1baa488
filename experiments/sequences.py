"""What a network loses where a sequence is missing: Dice of the test patients of runs, for each set of sequences.

    python -m experiments.sequences --run=runs/best/runs/best/fold0_seed0,runs/best/runs/best/fold1_seed0 \
      --output=experiments/sequences_cpu

Each run predicts the cases that its split tests. A sequence that is left out is replaced by FLAIR, as the LGG set and
`predict` do it. FLAIR itself is never left out.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from brainseg_jax import cli
from brainseg_jax.data.prepared_cases import read_cases
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.scores import write_table
from brainseg_jax.evaluation.statistics import mean_interval, median_interval
from brainseg_jax.files import write_whole
from brainseg_jax.inference.ensemble import Ensemble, combine
from brainseg_jax.metrics import dice
from brainseg_jax.runs.data import find_data
from brainseg_jax.runs.trained import cases_of_training, load_trained, read_json
from brainseg_jax.scans.description import Description
from brainseg_jax.scans.volume import Volume


def main(runs: Sequence[Path], output: Path) -> None:
    """Scores runs, and writes `scores.csv` and `table.md`."""
    rows = [row for folder in runs for row in score_run(folder)]
    if not rows:
        raise InputError(f"--run={','.join(map(str, runs))}: none of the test cases of split.json is in the data")
    patients = [row["patient"] for row in rows if row["sequences"] == rows[0]["sequences"]]
    if twice := sorted({name for name in patients if patients.count(name) > 1}):
        raise InputError(f"--run: {', '.join(twice)} are tested by several of these runs; give one run of each fold")
    output.mkdir(parents=True, exist_ok=True)
    write_table(output / "scores.csv", rows)
    lines = "\n".join(tabulate(rows)) + "\n"
    write_whole(output / "table.md", lambda path: path.write_text(lines, encoding="utf-8"))
    print(lines)


def score_run(folder: Path) -> Iterator[dict]:
    """A row for each test case of a run and each set of sequences; voxels of the label to ignore are not scored.

    Raises:
      InputError: the run cannot be used, or its data name no channel that replaces a missing one.
    """
    trained = load_trained(folder)
    description = trained.network.description
    if not description.stand_in:
        raise InputError(
            f"{folder}: of its channels {', '.join(description.channels)} none replaces a missing one, so no set of "
            "them can be compared; give a run of data whose description has stand_in, as the LGG set"
        )
    if cases_of_training(folder) is None:
        raise InputError(f"{folder / 'split.json'} is missing; give a run folder with the split of its training")
    test = set(read_json(folder / "split.json")["test"])
    ensemble = Ensemble([trained.network], trained.posts, mirror=None)
    for case in read_cases(find_data(trained.config.data, folder, source_first=False)):
        if case.name not in test:
            continue
        reference, counted = description.masks(case.volume.labels), description.counted(case.volume.labels)
        for kept in choices(description):
            members = ensemble.predict(ensemble.prepare(without(case.volume, kept, description)))
            masks = ensemble.masks(combine(members, uncertainty=False).probability, members[0].canvas)
            score = mean_dice(masks, reference, counted)
            yield {"patient": case.name, "sequences": " + ".join(kept), "dice": score}


def mean_dice(masks: np.ndarray, reference: np.ndarray, counted: np.ndarray | None) -> float:
    """The mean over targets of the Dice of masks [S, H, W, K]; `counted` as in `Description.counted`."""
    if counted is not None:
        masks, reference = masks & counted[..., None], reference & counted[..., None]
    return float(np.mean([dice(masks[..., k], reference[..., k]) for k in range(masks.shape[-1])]))


def choices(description: Description) -> list[tuple[str, ...]]:
    """Every set of channels that holds the one that stands in for the others; all of them first."""
    others = [name for name in description.channels if name != description.stand_in]
    sets = [set(chosen) for size in range(len(others), -1, -1) for chosen in itertools.combinations(others, size)]
    return [tuple(name for name in description.channels if name in chosen | {description.stand_in}) for chosen in sets]


def without(volume: Volume, kept: Sequence[str], description: Description) -> Volume:
    """The volume with each channel that is not kept replaced by the one that stands in."""
    source = [name if name in kept else description.stand_in for name in description.channels]
    return dataclasses.replace(volume, voxels=volume.voxels[..., [description.channels.index(name) for name in source]])


def tabulate(rows: list[dict]) -> list[str]:
    """A markdown table: a row for each set of sequences, the change against all of them patient by patient."""
    by_set: dict[str, dict[str, float]] = {}
    for row in rows:
        by_set.setdefault(row["sequences"], {})[row["patient"]] = row["dice"]
    every = next(iter(by_set.values()))
    lines = [
        "| sequences | patients | Dice mean [95 % interval] | Dice median | change of the mean | under 0.3 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, scores in by_set.items():
        values = np.array(list(scores.values()))
        change = np.array([scores[patient] - every[patient] for patient in scores])
        cells = [
            name,
            str(len(values)),
            f"{values.mean():.3f}{_brackets(mean_interval(values))}",
            f"{np.median(values):.3f}{_brackets(median_interval(values))}",
            f"{change.mean():+.3f}{_brackets(mean_interval(change))}" if scores is not every else "",
            str(int((values < 0.3).sum())),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _brackets(interval: list[float] | None) -> str:
    return f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""


if __name__ == "__main__":  # the flags are here, so that a test can import this module beside a command
    RUN = flags.DEFINE_list("run", None, "Run folders, with commas between.", required=True)
    OUTPUT = flags.DEFINE_string("output", None, "Folder for scores.csv and table.md.", required=True)
    cli.run(lambda _: main([Path(run) for run in RUN.value], Path(OUTPUT.value)))
