"""Compares confidence scores: how well each separates good from bad masks (area under the risk-coverage curve).

    python -m experiments.failure_detection --run=RUN,RUN,RUN --output=FOLDER

Each run predicts the cases of its split that it was not trained on: unchanged, mirrored, and under small changes of
size and brightness. If several runs share such cases, their mean also predicts them. The outputs are `cases.csv` with
all scores of all cases, `table.csv` and `table.md`.

With `--part=test --expected_dice` and the runs of all folds, the command also writes an out-of-fold
`expected_dice.json` and its calibration plot. The JSON file serves a network that the same recipe trains on all
patients: copy it into its folder.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import scipy
from absl import flags
from PIL import Image

from brainseg_jax import cli, sharding
from brainseg_jax.compilation import keep_compiled
from brainseg_jax.data.cohort import Cohort
from brainseg_jax.data.normalization import Normalization
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.plots import expected_dice as plot_expected_dice
from brainseg_jax.evaluation.plots import save_figure
from brainseg_jax.evaluation.quality import AGREEMENT, EXPECTED, area, dice_at, learn, summarize_quality, with_expected
from brainseg_jax.evaluation.scores import write_json, write_table
from brainseg_jax.files import user_path, write_whole
from brainseg_jax.inference.network import Network, Runner
from brainseg_jax.inference.postprocess import PostProcess, make_masks
from brainseg_jax.inference.quality import MIN_PATIENTS, SIMILAR, rate
from brainseg_jax.metrics import dice
from brainseg_jax.runs.comparison import names_of
from brainseg_jax.runs.evaluation import Evaluation, build_evaluation
from brainseg_jax.runs.trained import EXPECTED_DICE as FILE
from brainseg_jax.runs.trained import load_trained

RUN = flags.DEFINE_list("run", [], "Run folders, separated by commas.")
PART = flags.DEFINE_enum("part", "both", ["val", "test", "both"], "Patients of their splits.")
CHANGES = flags.DEFINE_bool("changes", True, "Also predict under changes of size and brightness (7 times as long).")
OUTPUT = flags.DEFINE_string("output", None, "Folder for the tables.")
EXPECTED_DICE = flags.DEFINE_bool(
    "expected_dice", False, "Fit the expected Dice to the rows of all runs and write expected_dice.json."
)

SIZES, BRIGHTNESSES, GAMMAS = (0.9, 1.1), (0.85, 1.15), (0.8, 1.25)
LEVELS = ((0.05, 0.95), (0.1, 0.9), (0.25, 0.75), (0.3, 0.7), (0.4, 0.6), (0.1, 0.5), (0.5, 0.9))
TOGETHER = "all runs together"
BEST, RANDOM = "the Dice itself: the best possible", "no score: random order"
REMOVED = "removed region"  # size relative to the mask, see `Quality.removed`
_WHO = ("run", "part", "patient", "case", "target", "dice", REMOVED)
_RESAMPLES = 2000

Maps = dict[str, np.ndarray]  # probability [S, H, W] of a target under each change; "": no change
Changed = tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]  # slices, and the inverse change of their maps


def image_changes() -> dict[str, Callable[[np.ndarray], Changed]]:
    """Returns small changes of the slices of a scan, [n, side, side, C] uint8, by name."""
    changes: dict[str, Callable[[np.ndarray], Changed]] = {}
    for size in SIZES:
        changes[f"size {size}"] = lambda images, size=size: (
            resize(images, size),
            lambda maps: resize(maps, 1.0 / size),
        )
    for factor in BRIGHTNESSES:
        table = np.clip(np.round(np.arange(256) * factor), 0, 255).astype(np.uint8)
        changes[f"brightness {factor}"] = lambda images, table=table: (table[images], _same)
    for gamma in GAMMAS:
        table = np.round(255.0 * (np.arange(256) / 255.0) ** gamma).astype(np.uint8)
        changes[f"gamma {gamma}"] = lambda images, table=table: (table[images], _same)
    return changes


def _same(maps: np.ndarray) -> np.ndarray:
    return maps


def resize(images: np.ndarray, size: float) -> np.ndarray:
    """Resizes slices [n, side, side, C], uint8 or float32, by `size` about their center; pads with zeros."""
    shift = images.shape[1] / 2.0 * (1.0 - 1.0 / size)
    affine = (1.0 / size, 0.0, shift, 0.0, 1.0 / size, shift)
    out = np.empty_like(images)
    for target, image in zip(out, images, strict=True):
        for channel in range(images.shape[-1]):
            plane = Image.fromarray(np.ascontiguousarray(image[..., channel]))
            target[..., channel] = plane.transform(
                plane.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
            )
    return out


def predict_case(evaluation: Evaluation, network: Network, runner: Runner, index: int, *, changes: bool) -> list[Maps]:
    """Returns the maps of each target of a case, on the case's own grid.

    A map under a change comes from one prediction without mirroring.
    """
    cohort = evaluation.cohort
    constants = Normalization(*(c[index] for c in cohort.normalization))
    views = [(images, canvas) for (images, _), canvas in zip(cohort.views(index), cohort.canvases[index], strict=True)]

    def run(mirror: bool, change: Callable[[np.ndarray], Changed]) -> Iterator[np.ndarray]:
        one = dataclasses.replace(network, mirror=mirror)
        for images, canvas in views:
            changed, invert = change(images)
            (output,) = runner.run(one, [one.inputs(changed, constants)])
            yield np.stack([canvas.from_network(invert(member)) for member in output.members])

    plain, mirrored = _mean(run(True, lambda images: (images, _same)))
    maps = {"": plain, "mirror": mirrored}
    if changes:
        maps |= {name: _mean(run(False, change))[0] for name, change in image_changes().items()}
    if network.mirror:  # the run's predictions are averages of both
        maps[""] = (plain + mirrored) / 2.0
        maps["plain"] = plain
    return [{name: values[..., target] for name, values in maps.items()} for target in range(plain.shape[-1])]


def _mean(arrays: Iterator[np.ndarray]) -> np.ndarray:
    first, *others = arrays
    return sum(others, start=first) / np.float32(1 + len(others))


def detectors(maps: Maps, mask: np.ndarray, post: PostProcess) -> dict[str, float]:
    """Returns all confidence scores of a mask; larger means more confident.

    Args:
      maps: of the target.
      mask: the mask that `post` gives for `maps[""]`, [S, H, W] bool; not empty.
      post: the post-processing.
    """
    probability = maps[""]
    entropy_map = scipy.stats.entropy(np.stack([probability, 1.0 - probability]), axis=0)
    dilated = scipy.ndimage.binary_dilation(mask, iterations=2)
    total = np.float64(probability.sum())
    scores = {
        "volume of the mask": float(mask.sum()),
        "Dice expected by the probabilities": float(2.0 * probability[mask].sum() / (total + mask.sum())),
        "mean probability in the mask": float(probability[mask].mean()),
        "less mean entropy in the mask": -float(entropy_map[mask].mean()),
        "less mean entropy in and around the mask": -float(entropy_map[dilated].mean()),
        "less entropy of the scan by the mask's volume": -float(entropy_map.sum() / mask.sum()),
    }
    for low, high in LEVELS:
        name = f"{low:g} and {high:g}"
        scores[f"Dice of thresholds {name}"] = dice(probability >= low, probability >= high)
        if post.largest_component or post.min_voxels > 1:
            masks = [post._replace(threshold=level)(probability) for level in (low, high)]
            scores[f"Dice of masks at thresholds {name}"] = dice(*masks)
            # Voxels of removed components count as a disagreement.
            scores[f"Dice of all voxels at {low:g} and the mask at {high:g}"] = dice(probability >= low, masks[1])
    members = {name: post(values) for name, values in maps.items() if name}
    scores |= {
        f"Dice with {name}": dice(mask, member) for name, member in members.items() if not name.startswith("run ")
    }
    for kind in ("size", "brightness", "gamma", "run"):
        masks_of_kind = [member for name, member in members.items() if name.startswith(kind)]
        if masks_of_kind:
            scores[f"mean Dice with each {kind}"] = float(np.mean([dice(mask, member) for member in masks_of_kind]))
    if len(members) > 1:
        scores["mean pairwise Dice of all members"] = pairwise_dice([mask, *members.values()])
        spread = np.std(np.stack(list(maps.values())), axis=0)
        scores["less mean standard deviation of all members in the mask"] = -float(spread[mask].mean())
        scores["less standard deviation of the scan by the mask's volume"] = -float(spread.sum() / mask.sum())
    return scores


def pairwise_dice(masks: list[np.ndarray]) -> float:
    """Returns the mean Dice of all pairs of two or more masks."""
    return float(np.mean([dice(a, b) for a, b in itertools.combinations(masks, 2)]))


def rows_of_run(folder: Path, name: str) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Returns rows of the cases that a run was not trained on, and their probabilities [S, H, W, K] float16 by case."""
    trained = load_trained(folder)
    trained.config.split.file = str(folder / "split.json")
    evaluation = build_evaluation(trained.config, folder)
    cohort, split = evaluation.cohort, evaluation.split
    if cohort.fingerprint != trained.fingerprint:
        raise InputError(f"{folder} was trained on other data than {cohort.folder}; prepare the data of the run again")
    runner = Runner(sharding.data_mesh(), evaluation.assessor.runner.batch_size)
    rows, probabilities = [], {}
    for part in ("val", "test"):
        for case in sorted(getattr(split, part)) if PART.value in (part, "both") else ():
            (index,) = cohort.indices([case])
            of_targets = predict_case(evaluation, trained.network, runner, index, changes=CHANGES.value)
            patient = evaluation.assessor.identity(index)["patient"]
            identity_columns = {"run": name, "part": part, "patient": patient, "case": case}
            rows += rows_of_case(identity_columns, cohort, index, of_targets, trained.posts)
            probabilities[case] = np.stack([maps[""] for maps in of_targets], axis=-1).astype(np.float16)
            dices = ", ".join(f"{row['dice']:.3f}" for row in rows[-len(of_targets) :])
            print(f"{name}: {case}, Dice {dices}", flush=True)
    return rows, probabilities


def rows_of_case(
    identity_columns: dict, cohort: Cohort, index: int, of_targets: list[Maps], posts: Sequence[PostProcess]
) -> list[dict]:
    """Returns one row per target: Dice and confidence scores. An empty mask gets no confidence scores."""
    description, canvas = cohort.description, cohort.canvases[index][0]
    probability = np.stack([maps[""] for maps in of_targets], axis=-1)
    masks = make_masks(probability, posts, description, canvas)
    posts = [post.on_grid(canvas.padded) for post in posts]
    qualities = rate(probability, masks, posts, description.names, None)
    labels = cohort.read_labels(index)
    truth, counted = description.masks(labels), description.counted(labels)
    rows = []
    for k, (target, maps, post) in enumerate(zip(description.names, of_targets, posts, strict=True)):
        ours, theirs = masks[..., k], truth[..., k]
        row = identity_columns | {"target": target}
        row["dice"] = dice(ours, theirs) if counted is None else dice(ours & counted, theirs & counted)
        row[AGREEMENT], removed = qualities[k].agreement, qualities[k].removed
        row[REMOVED] = removed.fraction if removed else None
        rows.append(row | (detectors(maps, ours, post) if ours.any() else {}))
    return rows


def rows_together(
    folders: Sequence[Path], names: Sequence[str], probabilities: Sequence[dict[str, np.ndarray]]
) -> list[dict]:
    """Returns rows of the cases that no run was trained on, predicted by the mean of all runs."""
    common = sorted(set.intersection(*(set(of_run) for of_run in probabilities)))
    if len(folders) < 2 or not common:
        return []
    trained = load_trained(folders[0])
    trained.config.split.file = str(folders[0] / "split.json")
    evaluation = build_evaluation(trained.config, folders[0])
    cohort, rows = evaluation.cohort, []
    for case in common:
        (index,) = cohort.indices([case])
        each = [of_run[case].astype(np.float32) for of_run in probabilities]
        mean = sum(each[1:], start=each[0]) / np.float32(len(each))
        of_targets = [
            {"": mean[..., k], **{f"run {name}": maps[..., k] for name, maps in zip(names, each, strict=True)}}
            for k in range(mean.shape[-1])
        ]
        patient = evaluation.assessor.identity(index)["patient"]
        identity_columns = {"run": TOGETHER, "part": "", "patient": patient, "case": case}
        rows += rows_of_case(identity_columns, cohort, index, of_targets, trained.posts)
    return rows


def table_of(rows: list[dict]) -> list[dict]:
    """Returns the area and the mean Dice at 80 % coverage for each group of rows, target and confidence score.

    The interval of the area is a percentile bootstrap over patients.
    """
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in _WHO]
    runs = list(dict.fromkeys(row["run"] for row in rows if row["run"] != TOGETHER))
    groups = {name: [name] for name in runs} | ({"pooled": runs} if len(runs) > 1 else {}) | {TOGETHER: [TOGETHER]}
    table = []
    for target in dict.fromkeys(row["target"] for row in rows):
        for group, members in groups.items():
            group_rows = [row for row in rows if row["run"] in members and row["target"] == target]
            present = [name for name in columns if any(name in row for row in group_rows)]
            figures_of_columns = [_figures(group_rows, name) for name in (*present, BEST, RANDOM)] if group_rows else []
            first_columns = {"group": group, "target": target, "cases": len(group_rows)}
            table += [
                first_columns | figures for figures in sorted(figures_of_columns, key=lambda figures: figures["area"])
            ]
    return table


def _figures(rows: list[dict], name: str) -> dict:
    dice_of = np.array([row["dice"] for row in rows])
    confidence = {BEST: dice_of.tolist(), RANDOM: [0.0] * len(rows)}.get(name) or [row.get(name) for row in rows]
    confidence = np.array([-np.inf if value is None else value for value in confidence])
    patients = [row["patient"] for row in rows]
    indices = [[k for k, of_row in enumerate(patients) if of_row == patient] for patient in dict.fromkeys(patients)]
    generator, areas = np.random.default_rng(0), []
    for _ in range(_RESAMPLES):
        chosen = np.concatenate([indices[k] for k in generator.integers(len(indices), size=len(indices))]).astype(int)
        areas.append(area(confidence[chosen], dice_of[chosen]))
    low, high = np.quantile(areas, (0.025, 0.975))
    return {
        "detector": name,
        "area": area(confidence, dice_of),
        "area_low": float(low),
        "area_high": float(high),
        "dice_at_80": dice_at(0.8, confidence, dice_of),
    }


def in_markdown(table: list[dict]) -> str:
    """Formats the table in Markdown, one section per group and target."""
    lines = []
    for (group, target), section in itertools.groupby(table, key=lambda row: (row["group"], row["target"])):
        rows = list(section)
        lines += [f"## {group}, {target}, {rows[0]['cases']} cases", ""]
        lines += [
            "| confidence score | area [95 % interval] | mean Dice at 80 % coverage |",
            "| --- | --- | --- |",
        ]
        for row in rows:
            interval = f"[{row['area_low']:.4f}, {row['area_high']:.4f}]"
            lines.append(f"| {row['detector']} | {row['area']:.4f} {interval} | {row['dice_at_80']:.3f} |")
        lines.append("")
    return "\n".join(lines)


def removed_regions(rows: list[dict]) -> str:
    """Lists the masks for which `predict` notes that a large region was removed, with their Dice."""
    lines = [f"## Removed regions of at least {SIMILAR:.0%} of the mask's size", ""]
    for row in rows:
        if row["run"] != TOGETHER and row[REMOVED]:
            lines.append(f"- {row['case']}, {row['target']}: {row[REMOVED]:.0%}, Dice {row['dice']:.2f}")
    masks = sum(row["run"] != TOGETHER and row[AGREEMENT] is not None for row in rows)
    return "\n".join([*lines, f"- {len(lines) - 2} of {masks} masks", ""])


def _write_calibration(output: Path, rows: list[dict]) -> str:
    """Plots the Dice against the expected Dice, learned without the patient; counts the intervals that hold it."""
    lines = ["## Expected Dice, learned without the patient", ""]
    for target in dict.fromkeys(row["target"] for row in rows):
        of_target = [row for row in rows if row["target"] == target and row[EXPECTED] is not None]
        save_figure(plot_expected_dice({"all runs": of_target}), output / f"expected_dice_{target}.png")
        figures = summarize_quality(of_target)
        lines.append(f"- {target}: {figures['covered']} of {figures['masks']} masks in their 90 % interval")
    return "\n".join([*lines, ""])


def main(_: list[str]) -> None:
    """Predicts the cases and writes the tables."""
    if not RUN.value or not OUTPUT.value:
        raise InputError("--run or --output is empty; give --run=RUN_FOLDER,... --output=FOLDER")
    keep_compiled()
    folders, output = [user_path(folder, "--run") for folder in RUN.value], user_path(OUTPUT.value, "--output")
    names = names_of(folders)
    results = [rows_of_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    rows = [row for run_rows, _ in results for row in run_rows] + rows_together(
        folders, names, [probabilities for _, probabilities in results]
    )
    table = table_of(rows)
    text = in_markdown(table) + "\n" + removed_regions(rows)
    output.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_table(output / "cases.csv", [{name: row.get(name) for name in columns} for row in rows])
    write_table(output / "table.csv", table)
    if EXPECTED_DICE.value:
        single = [row for row in rows if row["run"] != TOGETHER]
        patients = len({row["patient"] for row in single})
        source = f"{patients} patients, each predicted by a network that was not trained on it ({', '.join(names)})"
        expected = learn(single, list(dict.fromkeys(row["target"] for row in single)), source)
        if expected is None:
            raise InputError(f"--expected_dice: fewer than {MIN_PATIENTS} patients have masks; give more runs")
        write_json(output / FILE, expected.to_json())
        text += _write_calibration(output, with_expected(single, expected, list(expected.targets)))
    write_whole(output / "table.md", lambda part: part.write_text(text))
    print(text)


if __name__ == "__main__":
    flags.mark_flag_as_required("output")
    cli.run(main)
