"""Measures how much a split by slice adds to a score, on the same slices of the same patients under both splits.

    python -m experiments.leakage --by_patient=FOLD_0,FOLD_1,... --by_slice=RUN --fold=0 --output=FOLDER

The runs are those of the study `leakage`. Each network of `--by_patient` predicts the test patients of its split. The
network of `--by_slice` predicts the same patients, although it was trained on other slices of them. Both are scored on
the test slices of the split by slice, at probability 0.5. Small components are not removed, because
the test slices are not adjacent.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from brainseg_jax import cli
from brainseg_jax.data.prepared_cases import LabelledCase, read_cases
from brainseg_jax.data.splits import PARTS
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.scores import read_table
from brainseg_jax.evaluation.statistics import compare_pairs, mean_interval, median_interval
from brainseg_jax.inference.ensemble import Ensemble, combine
from brainseg_jax.metrics import dice
from brainseg_jax.runs.data import find_data
from brainseg_jax.runs.trained import load_trained, read_json
from experiments.by_slice import assign_slices, original_case
from experiments.tables import number, probability, to_markdown, write_scores

BY_PATIENT, BY_SLICE, SEEN = "split by patient", "split by slice", "split by slice, slices it was trained on"


def main(by_patient: Sequence[Path], by_slice: Path, output: Path, *, fold: int) -> None:
    """Scores the runs; writes `scores.csv` and `table.md`."""
    ensembles: dict[str, Ensemble] = {}
    for folder in by_patient:
        test_cases = read_json(folder / "split.json")["test"]
        if duplicates := sorted(set(test_cases) & ensembles.keys()):
            raise InputError(
                f"--by_patient={folder}: an earlier run also tests {', '.join(duplicates)}; give a run of each fold"
            )
        ensembles |= dict.fromkeys(test_cases, _ensemble(folder))
    slice_ensemble = _ensemble(by_slice)
    data = find_data(load_trained(by_slice).config.data, by_slice, source_first=False)
    rows = []
    for case in read_cases(data):
        if case.name in ensembles:
            rows += score_case(case, _masks(ensembles[case.name], case), _masks(slice_ensemble, case), fold=fold)
            print(case.name, *(f"{row['split']} {row['dice']:.3f}" for row in rows[-3:]), sep=", ", flush=True)
    if not rows:
        raise InputError(f"--by_slice={by_slice}: {data} has no test case of --by_patient; give runs of one study")
    check_fold(rows, by_slice, fold=fold)
    write_scores(output, rows, tabulate(rows))


def score_case(case: LabelledCase, by_patient: np.ndarray, by_slice: np.ndarray, *, fold: int) -> Iterator[dict]:
    """Yields three rows: both networks on the test slices, and that of the split by slice on its own training slices.

    Args:
      case: with a label map of one target, 0 and 1.
      by_patient: mask of the network that was not trained on the patient, [S, H, W] bool.
      by_slice: mask of the network that was trained on other slices of the case, [S, H, W] bool.
      fold: of the split by slice.
    """
    assignment = assign_slices(case.name, np.array(case.volume.numbers), fold=fold)
    tested, trained = assignment == PARTS.index("test"), assignment == PARTS.index("train")
    reference = case.volume.labels == 1
    for split, mask, chosen in (
        (BY_PATIENT, by_patient, tested),
        (BY_SLICE, by_slice, tested),
        (SEEN, by_slice, trained),
    ):
        yield {
            "patient": case.name,
            "split": split,
            "slices": int(chosen.sum()),
            "tumor_voxels": int(reference[chosen].sum()),
            "dice": dice(mask[chosen], reference[chosen]),
        }


def tabulate(rows: list[dict]) -> str:
    """Returns a Markdown table: the scores of `score_case`, and the change on the test slices.

    Patients without tumor in the test or training slices are left out, since their Dice is 0 or 1.
    """
    empty = {row["patient"] for row in rows if not row["tumor_voxels"]}
    scores = {split: {} for split in (BY_PATIENT, BY_SLICE, SEEN)}
    for row in rows:
        if row["patient"] not in empty:
            scores[row["split"]][row["patient"]] = row["dice"]
    header = ["scores", "patients", "Dice mean [95 % interval]", "Dice median", "change", "better / worse", "p"]
    lines = []
    for split, dice_by_patient in scores.items():
        values = np.array(list(dice_by_patient.values()))
        cells = [split, str(len(values)), number(values.mean(), mean_interval(values))]
        cells += [number(np.median(values), median_interval(values)), "", "", ""]
        if split == BY_SLICE:  # SEEN is scored on other slices, so it is not compared
            change = values - np.array([scores[BY_PATIENT][patient] for patient in dice_by_patient])
            paired = compare_pairs(change)
            cells[-3:] = [
                number(change.mean(), mean_interval(change), signed=True),
                f"{paired.increased} / {paired.decreased}",
                probability(paired.p),
            ]
        lines.append(cells)
    return to_markdown(header, lines)


def check_fold(rows: Sequence[dict], by_slice: Path, *, fold: int) -> None:
    """Raises InputError if the run tested other slices. It compares tumor voxels, so the data have no spacing (LGG)."""
    tested = {original_case(row["patient"]): row["volume_true"] for row in read_table(by_slice / "per_patient.csv")}
    wrong = [r["patient"] for r in rows if r["split"] == BY_SLICE and tested.get(r["patient"]) != r["tumor_voxels"]]
    if wrong:
        raise InputError(
            f"--fold={fold}: {by_slice}/per_patient.csv has another volume for {', '.join(wrong[:3])}, so the run "
            "tested other slices; give the fold of the run"
        )


def _ensemble(folder: Path) -> Ensemble:
    trained = load_trained(folder)
    return Ensemble([trained.network], trained.posts, mirror=None)


def _masks(ensemble: Ensemble, case: LabelledCase) -> np.ndarray:
    probability = combine(ensemble.predict(ensemble.prepare(case.volume)), uncertainty=False).probability
    return probability[..., 0] >= 0.5


if __name__ == "__main__":  # flags are defined here, so that a test can import this module and a command
    RUNS = flags.DEFINE_list("by_patient", None, "Run folders, separated by commas.", required=True)
    RUN = flags.DEFINE_string("by_slice", None, "Run folder of the split by slice.", required=True)
    FOLD = flags.DEFINE_integer("fold", 0, "Test fold of that run in the split by slice.")
    OUTPUT = flags.DEFINE_string("output", None, "Folder for scores.csv and table.md.", required=True)
    cli.run(lambda _: main([Path(run) for run in RUNS.value], Path(RUN.value), Path(OUTPUT.value), fold=FOLD.value))
