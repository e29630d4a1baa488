"""Measures what a network loses without some sequences: Dice of the runs' test patients for each set of sequences.

    python -m experiments.sequences --run=runs/best/runs/best/fold0_seed0,runs/best/runs/best/fold1_seed0 \
      --output=experiments/sequences_cpu

Each run predicts the test cases of its split. FLAIR replaces a missing sequence, as in the LGG data and in `predict`;
FLAIR itself is never left out.
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
from brainseg_jax.evaluation.statistics import mean_interval, median_interval
from brainseg_jax.inference.ensemble import Ensemble, combine
from brainseg_jax.metrics import dice
from brainseg_jax.runs.data import find_data
from brainseg_jax.runs.trained import cases_of_training, load_trained, read_json
from brainseg_jax.scans.description import Description
from brainseg_jax.scans.volume import Volume
from experiments.tables import number, to_markdown, write_scores


def main(runs: Sequence[Path], output: Path) -> None:
    """Scores the runs; writes `scores.csv` and `table.md`."""
    rows = [row for folder in runs for row in score_run(folder)]
    if not rows:
        raise InputError(
            f"--run={','.join(map(str, runs))}: the data have no test case of split.json; prepare them again"
        )
    patients = [row["patient"] for row in rows if row["sequences"] == rows[0]["sequences"]]
    if duplicates := sorted({name for name in patients if patients.count(name) > 1}):
        raise InputError(f"--run: several runs test {', '.join(duplicates)}; give one run of each fold")
    write_scores(output, rows, tabulate(rows))


def score_run(folder: Path) -> Iterator[dict]:
    """Yields one row per test case of a run and set of sequences. Voxels of the ignore label are not scored.

    Raises:
      InputError: the run cannot be used, or its data define no channel that replaces a missing one.
    """
    trained = load_trained(folder)
    description = trained.network.description
    if not description.stand_in:
        raise InputError(
            f"{folder}: its channels {', '.join(description.channels)} include none that replaces a missing one, so "
            "sets of them cannot be compared; give a run of data with stand_in in the description, such as the LGG data"
        )
    if cases_of_training(folder) is None:
        raise InputError(f"{folder / 'split.json'} is missing; give a run folder with the split of its training")
    test = set(read_json(folder / "split.json")["test"])
    ensemble = Ensemble([trained.network], trained.posts, mirror=None)
    for case in read_cases(find_data(trained.config.data, folder, source_first=False)):
        if case.name not in test:
            continue
        reference, counted = description.masks(case.volume.labels), description.counted(case.volume.labels)
        for channels in choices(description):
            members = ensemble.predict(ensemble.prepare(without(case.volume, channels, description)))
            masks = ensemble.masks(combine(members, uncertainty=False).probability, members[0].canvas)
            score = mean_dice(masks, reference, counted)
            yield {"patient": case.name, "sequences": " + ".join(channels), "dice": score}


def mean_dice(masks: np.ndarray, reference: np.ndarray, counted: np.ndarray | None) -> float:
    """Returns the mean Dice over targets of masks [S, H, W, K]; `counted` as in `Description.counted`."""
    if counted is not None:
        masks, reference = masks & counted[..., None], reference & counted[..., None]
    return float(np.mean([dice(masks[..., k], reference[..., k]) for k in range(masks.shape[-1])]))


def choices(description: Description) -> list[tuple[str, ...]]:
    """Returns every set of channels that contains the replacement channel (`stand_in`); the full set comes first."""
    others = [name for name in description.channels if name != description.stand_in]
    sets = [set(chosen) for size in range(len(others), -1, -1) for chosen in itertools.combinations(others, size)]
    return [tuple(name for name in description.channels if name in chosen | {description.stand_in}) for chosen in sets]


def without(volume: Volume, channels: Sequence[str], description: Description) -> Volume:
    """Returns the volume with every channel that is not in `channels` replaced by the replacement channel."""
    source = [name if name in channels else description.stand_in for name in description.channels]
    return dataclasses.replace(volume, voxels=volume.voxels[..., [description.channels.index(name) for name in source]])


def tabulate(rows: list[dict]) -> str:
    """Returns a Markdown table: one row per set of sequences, with its change against the full set by patient."""
    by_set: dict[str, dict[str, float]] = {}
    for row in rows:
        by_set.setdefault(row["sequences"], {})[row["patient"]] = row["dice"]
    full_set = next(iter(by_set.values()))
    header = ["sequences", "patients", "Dice mean [95 % interval]", "Dice median", "change of the mean", "under 0.3"]
    lines = []
    for name, scores in by_set.items():
        values = np.array(list(scores.values()))
        change = np.array([scores[patient] - full_set[patient] for patient in scores])
        cells = [
            name,
            str(len(values)),
            number(values.mean(), mean_interval(values)),
            number(np.median(values), median_interval(values)),
            number(change.mean(), mean_interval(change), signed=True) if scores is not full_set else "",
            str(int((values < 0.3).sum())),
        ]
        lines.append(cells)
    return to_markdown(header, lines)


if __name__ == "__main__":  # flags are defined here, so that a test can import this module and a command
    RUN = flags.DEFINE_list("run", None, "Run folders, separated by commas.", required=True)
    OUTPUT = flags.DEFINE_string("output", None, "Folder for scores.csv and table.md.", required=True)
    cli.run(lambda _: main([Path(run) for run in RUN.value], Path(OUTPUT.value)))
