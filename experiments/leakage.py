"""What a split by slice adds to a score: the same slices of the same patients, under both splits.

    python -m experiments.leakage --by_patient=FOLD_0,FOLD_1,... --by_slice=RUN --output=FOLDER

The runs are those of study `leakage`. A network of `--by_patient` predicts the patients that its split tests. The
network of `--by_slice` predicts the same patients, whose other slices it was trained on. Both are scored on the slices
that the split by slice tests, at probability 0.5, without connected components, which would need the slices between.
"""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from brainseg_jax import cli
from brainseg_jax.data.prepared_cases import LabelledCase, read_cases
from brainseg_jax.data.splits import PARTS
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.scores import write_table
from brainseg_jax.evaluation.statistics import compare_pairs, mean_interval, median_interval
from brainseg_jax.files import write_whole
from brainseg_jax.inference.ensemble import Ensemble, combine
from brainseg_jax.metrics import dice
from brainseg_jax.runs.data import find_data
from brainseg_jax.runs.trained import load_trained, read_json
from experiments.by_slice import deal

BY_PATIENT, BY_SLICE, SEEN = "split by patient", "split by slice", "split by slice, slices it was trained on"


def main(by_patient: Sequence[Path], by_slice: Path, output: Path, *, fold: int) -> None:
    """Scores the runs, and writes `scores.csv` and `table.md`."""
    testers: dict[str, Ensemble] = {}
    for folder in by_patient:
        tested = read_json(folder / "split.json")["test"]
        if twice := sorted(set(tested) & testers.keys()):
            raise InputError(f"--by_patient={folder}: {', '.join(twice)} are tested by an earlier run too")
        testers |= dict.fromkeys(tested, _ensemble(folder))
    torn = _ensemble(by_slice)
    data = find_data(load_trained(by_slice).config.data, by_slice, source_first=False)
    rows = []
    for case in read_cases(data):
        if case.name in testers:
            rows += score_case(case, _masks(testers[case.name], case), _masks(torn, case), fold=fold)
            print(case.name, *(f"{row['split']} {row['dice']:.3f}" for row in rows[-3:]), sep=", ", flush=True)
    if not rows:
        raise InputError(f"--by_slice={by_slice}: {data} holds no case that a run of --by_patient tests")
    output.mkdir(parents=True, exist_ok=True)
    write_table(output / "scores.csv", rows)
    lines = "\n".join(tabulate(rows)) + "\n"
    write_whole(output / "table.md", lambda path: path.write_text(lines, encoding="utf-8"))
    print(lines)


def score_case(case: LabelledCase, ours: np.ndarray, torn: np.ndarray, *, fold: int) -> Iterator[dict]:
    """A row for each split: Dice over the tested slices of a case, taken together.

    Args:
      case: with a label map of one target, 0 and 1.
      ours: mask of the network that was not trained on the patient, [S, H, W] bool.
      torn: mask of the network that was trained on other slices of the case, [S, H, W] bool.
      fold: of the split by slice.
    """
    parts = deal(case.name, np.array(case.volume.numbers), fold=fold)
    tested, trained = parts == PARTS.index("test"), parts == PARTS.index("train")
    reference = case.volume.labels == 1
    for split, mask, kept in ((BY_PATIENT, ours, tested), (BY_SLICE, torn, tested), (SEEN, torn, trained)):
        yield {
            "patient": case.name,
            "split": split,
            "slices": int(kept.sum()),
            "tumor_voxels": int(reference[kept].sum()),
            "dice": dice(mask[kept], reference[kept]),
        }


def tabulate(rows: list[dict]) -> list[str]:
    """A markdown table: a row for each split, and its change against the split by patient.

    Patients whose tested slices hold no tumor are left out: their Dice is 0 or 1.
    """
    empty = {row["patient"] for row in rows if not row["tumor_voxels"]}
    scores = {split: {} for split in (BY_PATIENT, BY_SLICE, SEEN)}
    for row in rows:
        if row["patient"] not in empty:
            scores[row["split"]][row["patient"]] = row["dice"]
    lines = [
        "| scores | patients | Dice mean [95 % interval] | Dice median | change of the mean | better / worse | p |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for split, own in scores.items():
        values = list(own.values())
        cells = [split, str(len(values)), f"{np.mean(values):.3f}{_brackets(mean_interval(np.array(values)))}"]
        cells.append(f"{statistics.median(values):.3f}{_brackets(median_interval(np.array(values)))}")
        if split == BY_PATIENT:
            cells += ["", "", ""]
        else:
            change = np.array([own[patient] - scores[BY_PATIENT][patient] for patient in own])
            paired = compare_pairs(change)
            cells += [
                f"{change.mean():+.3f}{_brackets(mean_interval(change))}",
                f"{paired.increased} / {paired.decreased}",
            ]
            cells.append("" if paired.p is None else f"{paired.p:.2g}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _ensemble(folder: Path) -> Ensemble:
    trained = load_trained(folder)
    return Ensemble([trained.network], trained.posts, mirror=None)


def _masks(ensemble: Ensemble, case: LabelledCase) -> np.ndarray:
    probability = combine(ensemble.predict(ensemble.prepare(case.volume)), uncertainty=False).probability
    return probability[..., 0] >= 0.5


def _brackets(interval: list[float] | None) -> str:
    return f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""


if __name__ == "__main__":  # the flags are here, so that a test can import this module beside a command
    RUNS = flags.DEFINE_list("by_patient", None, "Run folders, with commas between.", required=True)
    RUN = flags.DEFINE_string("by_slice", None, "Run folder of the split by slice.", required=True)
    FOLD = flags.DEFINE_integer("fold", 0, "Which fold of the split by slice that run tests.")
    OUTPUT = flags.DEFINE_string("output", None, "Folder for scores.csv and table.md.", required=True)
    cli.run(lambda _: main([Path(run) for run in RUNS.value], Path(RUN.value), Path(OUTPUT.value), fold=FOLD.value))
