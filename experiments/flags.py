"""Counts how many held-out scans are flagged, among scans like the training scans and scans unlike them, in folds.

    python -m experiments.flags --source=kaggle_3m --output=FOLDER

For each fold, `TrainingScans` learns from the scans of the other folds. This file makes its unlike scans by other code
than `inference/unlike.py`, which makes those that the rules are learned from.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image
from scipy import ndimage

from brainseg_jax import cli
from brainseg_jax.data.lgg import prepare
from brainseg_jax.data.prepared_cases import read_cases
from brainseg_jax.files import user_path, write_whole
from brainseg_jax.inference.training_scans import TrainingScans
from brainseg_jax.scans.description import LGG
from brainseg_jax.scans.volume import Volume

PRE, FLAIR, POST = range(3)
_SLICES = 40  # of a resliced scan, about

Make = Callable[[np.ndarray, np.ndarray, np.random.Generator], "np.ndarray | None"]


def _in_all_channels(channel: np.ndarray) -> np.ndarray:
    """Returns one sequence [S, H, W] in all three channels, uint8."""
    return np.repeat(channel.clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def _head(flair: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns the filled head [S, H, W] bool, the depth of its pixels, and its radius in the largest slice."""
    bright = ndimage.binary_opening(flair > 0.2 * np.percentile(flair, 99), np.ones((1, 3, 3)))
    filled = np.stack([ndimage.binary_fill_holes(ndimage.binary_closing(image, iterations=3)) for image in bright])
    labels, count = ndimage.label(filled)
    head = labels == 1 + np.argmax(ndimage.sum(filled, labels, range(1, count + 1)))
    depth = np.stack([ndimage.distance_transform_edt(image) for image in head])
    return head, depth, float(np.sqrt(head.sum(axis=(1, 2)).max() / np.pi))


def _instead_of_flair(index: int) -> Make:
    """Replaces FLAIR by another sequence; None if the patient lacks that sequence."""

    def make(voxels: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
        if np.array_equal(voxels[..., index], voxels[..., FLAIR]):
            return None
        changed = voxels.copy()
        changed[..., FLAIR] = voxels[..., index]
        return changed

    return make


def _bright_fluid(voxels: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    flair = voxels[..., FLAIR].astype(float)
    _, depth, radius = _head(flair)
    median = np.median(flair[depth > 0.25 * radius])
    dark = (depth > 0.15 * radius) & (flair < median)
    return _in_all_channels(0.8 * np.where(dark, median + 1.6 * (median - flair), flair))


def _inverted_t1(voxels: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    if np.array_equal(voxels[..., PRE], voxels[..., FLAIR]):
        return None
    t1 = voxels[..., PRE].astype(float)
    _, depth, radius = _head(t1)
    white = np.percentile(t1[depth > 0.25 * radius], 99)
    values = np.where(depth > 0.15 * radius, (1.1 * white - t1).clip(0), 0.6 * t1)
    return _in_all_channels(values * 255 / np.percentile(values, 99.9))


def _eroded(share: float) -> Make:
    """Simulates skull stripping: cuts the head at a depth of `share` times its radius."""

    def make(voxels: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        _, depth, radius = _head(voxels[..., FLAIR])
        return voxels * (depth > share * radius)[..., None]

    return make


def _stripped(voxels: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Simulates skull stripping by morphology: erosion separates brain and scalp at the skull; dilation follows."""
    flair = voxels[..., FLAIR].astype(float)
    _, depth, radius = _head(flair)
    brain = (flair > 0.55 * np.median(flair[depth > 0.25 * radius])) & (depth > 0.1 * radius)
    steps, plane = max(1, round(0.04 * radius)), np.ones((1, 3, 3))
    labels, count = ndimage.label(ndimage.binary_erosion(brain, plane, iterations=steps))
    if count:
        brain = labels == 1 + np.argmax(ndimage.sum(labels > 0, labels, range(1, count + 1)))
    brain = ndimage.binary_dilation(brain, plane, iterations=steps + 1)
    brain = np.stack([ndimage.binary_fill_holes(ndimage.binary_closing(image, iterations=4)) for image in brain])
    return voxels * brain[..., None]


def _ct(low: float, high: float) -> Make:
    """Simulates CT in a window in Hounsfield units: brain 34, fluid 8, skull 900, scalp -20, noise 5."""

    def make(voxels: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        flair = voxels[..., FLAIR].astype(float)
        head, depth, radius = _head(flair)
        inner = depth > 0.15 * radius
        fluid = inner & (flair < 0.6 * np.median(flair[depth > 0.25 * radius]))
        values = np.select([~head, fluid, inner, depth > 0.06 * radius], [-1000.0, 8, 34, 900], -20)
        values = ndimage.gaussian_filter(values + rng.normal(0, 5, values.shape), (0, 0.7, 0.7))
        return _in_all_channels((values - low) / (high - low) * 255)

    return make


def _resliced(axis: int) -> Make:
    """Returns coronal (1) or sagittal (2) slices as images of the original width, with the crown at the top."""

    def make(voxels: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        slices = np.moveaxis(voxels, axis, 0)[:, ::-1]
        return _resized(slices[:: max(1, len(slices) // _SLICES)], voxels.shape[2])

    return make


def _resized(voxels: np.ndarray, side: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side))) for image in np.ascontiguousarray(voxels)])


def _one_slice(voxels: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    changed = np.zeros_like(voxels)
    changed[len(voxels) // 2] = voxels[len(voxels) // 2]
    return changed


def _blob(voxels: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    changed = np.zeros_like(voxels)
    changed[len(voxels) // 2, 100:110, 100:110] = 90
    return changed


def _inverted(voxels: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    flair = voxels[..., FLAIR].astype(float)
    head, _, _ = _head(flair)
    return _in_all_channels(np.where(head, np.percentile(flair, 99.5) - flair, 0))


def _noise_in_head(voxels: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    head, _, _ = _head(voxels[..., FLAIR])
    return _in_all_channels(np.where(head, rng.normal(100, 30, head.shape), rng.rayleigh(3, head.shape)))


def _ellipses(*ellipses: tuple[float, float, float, float, float]) -> Make:
    """Draws ellipses (value, row, column, height, width), in pixels of 256; a later one covers earlier ones."""

    def make(voxels: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        row, column = np.mgrid[:256, :256]
        image = np.zeros((256, 256))
        for value, top, left, height, width in ellipses:
            image[((row - top) / height) ** 2 + ((column - left) / width) ** 2 < 1] = value
        noisy = image + rng.normal(0, 6, (30, 256, 256))
        return _in_all_channels(ndimage.gaussian_filter(noisy, (0, 1, 1)))

    return make


UNLIKE: dict[str, Make] = {
    "pre-contrast T1 in the place of FLAIR": _instead_of_flair(PRE),
    "post-contrast T1 in the place of FLAIR": _instead_of_flair(POST),
    "T2: FLAIR with bright fluid": _bright_fluid,
    "T2: inverted T1": _inverted_t1,
    **{f"skull-stripped at {share} of the radius": _eroded(share) for share in (0.08, 0.12, 0.16, 0.2)},
    "skull-stripped by morphology": _stripped,
    "CT, soft-tissue window": _ct(-40, 120),
    "CT, brain window": _ct(0, 80),
    "CT, full window": _ct(-1000, 1500),
    "upside down (rows)": lambda voxels, masks, rng: voxels[:, ::-1],
    "rotated by 180 degrees": lambda voxels, masks, rng: voxels[:, ::-1, ::-1],
    "rotated by 90 degrees": lambda voxels, masks, rng: np.rot90(voxels, 1, (1, 2)),
    "rotated by 270 degrees": lambda voxels, masks, rng: np.rot90(voxels, 3, (1, 2)),
    "slices from crown to foot": lambda voxels, masks, rng: voxels[::-1],
    "coronal": _resliced(1),
    "sagittal": _resliced(2),
    "empty": lambda voxels, masks, rng: np.zeros_like(voxels),
    "nearly empty": _blob,
    "one slice, the others empty": _one_slice,
    "a single slice": lambda voxels, masks, rng: voxels[len(voxels) // 2 :][:1],
    "constant": lambda voxels, masks, rng: np.full_like(voxels, 100),
    "uniform noise": lambda voxels, masks, rng: rng.integers(0, 256, voxels.shape).astype(np.uint8),
    "Rayleigh noise": lambda voxels, masks, rng: _in_all_channels(rng.rayleigh(30, voxels.shape[:3])),
    "noise in the shape of the head": _noise_in_head,
    "inverted contrast": lambda voxels, masks, rng: 255 - voxels,
    "inverted contrast, air dark": _inverted,
    "an abdomen": _ellipses(
        (190, 128, 128, 75, 110),
        (70, 128, 128, 65, 100),
        (110, 125, 80, 45, 45),
        (90, 110, 180, 25, 30),
        (130, 180, 128, 18, 18),
    ),
    "a knee": _ellipses(
        (120, 128, 128, 80, 80), (220, 128, 128, 50, 55), (200, 70, 128, 18, 30), (40, 190, 100, 16, 12)
    ),
    "two legs": _ellipses(
        *(
            (value, 128, column, size, size)
            for column in (75, 180)
            for value, size in ((200, 48), (90, 40), (20, 14), (180, 9))
        )
    ),
}


def _without_tumor(voxels: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    flair = voxels[..., FLAIR].copy()
    flair[masks] = np.median(flair[_head(flair)[0]])
    return _in_all_channels(flair)


def _with_tumor(share: float) -> Make:
    """Adds a blurred bright ball to the left half; its radius is `share` times the head's."""

    def make(voxels: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        flair = voxels[..., FLAIR].astype(float)
        head, _, radius = _head(flair)
        z, y, x = (axis.mean() for axis in np.nonzero(head))
        slices, rows, columns = np.ogrid[tuple(map(slice, flair.shape))]
        inside = ((rows - y + 0.2 * radius) ** 2 + (columns - x + 0.35 * radius) ** 2) / (share * radius) ** 2
        inside = inside + ((slices - z) / (0.6 * share * len(flair))) ** 2
        median = np.median(flair[head])
        return _in_all_channels(flair + (1.3 - inside).clip(0, 1) * median * (flair > 0.3 * median))

    return make


def _stretched(voxels: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Stretches FLAIR from the 0.1th to the 99.9th percentile, as the reader of 16-bit values does."""
    low, high = np.percentile(voxels[..., FLAIR], (0.1, 99.9))
    return _in_all_channels((voxels[..., FLAIR] - low) / (high - low) * 255)


LIKE: dict[str, Make] = {
    "LGG scan as it is": lambda voxels, masks, rng: voxels,
    "FLAIR alone": lambda voxels, masks, rng: _in_all_channels(voxels[..., FLAIR]),
    "no pre-contrast": lambda voxels, masks, rng: voxels[..., [FLAIR, FLAIR, POST]],
    "no post-contrast": lambda voxels, masks, rng: voxels[..., [PRE, FLAIR, FLAIR]],
    "left and right exchanged": lambda voxels, masks, rng: voxels[:, :, ::-1],
    "128 pixels": lambda voxels, masks, rng: _resized(voxels, 128),
    "512 pixels": lambda voxels, masks, rng: _resized(voxels, 512),
    "padded by a quarter": lambda voxels, masks, rng: np.pad(voxels, ((0, 0), (40, 40), (10, 10), (0, 0))),
    "stretched as 16-bit values": _stretched,
    "half as bright": lambda voxels, masks, rng: voxels // 2,
    "without the first and last two slices": lambda voxels, masks, rng: voxels[2:-2],
    "without its tumor": _without_tumor,
    "with a tumor of 0.3 of the radius": _with_tumor(0.3),
    "with a tumor of 0.5 of the radius": _with_tumor(0.5),
}


def flag_fold(fold: int, folds: int, dataset: Path) -> list[dict]:
    """Returns one row per held-out patient and kind of scan: the flags, with their reasons."""
    cases = list(read_cases(dataset))
    order = np.random.default_rng(0).permutation(len(cases))
    held_out = set(order[fold::folds].tolist())
    train = [case for index, case in enumerate(cases) if index not in held_out]
    training = TrainingScans.of((case.volume for case in train), [case.patient for case in train], LGG)
    rows = []
    for index in sorted(held_out):
        case = cases[index]
        for is_unlike, kinds in ((0, LIKE), (1, UNLIKE)):
            for kind, make in kinds.items():
                changed = make(case.volume.voxels, case.volume.labels > 0, np.random.default_rng(index))
                if changed is not None:
                    reasons = training.flags(Volume(np.ascontiguousarray(changed), None, ()), LGG.shown)
                    rows.append(
                        {"wrong": is_unlike, "kind": kind, "case": case.name, "fold": fold, "flags": "; ".join(reasons)}
                    )
    return rows


def table(rows: list[dict]) -> str:
    """Returns the share of flagged scans of each kind as Markdown."""
    lines = ["| scans | flagged | of | share |", "| --- | ---: | ---: | ---: |"]
    for is_unlike, title in ((0, "like those of training"), (1, "unlike")):
        lines.append(f"| **{title}** | | | |")
        for kind in dict.fromkeys(row["kind"] for row in rows if row["wrong"] == is_unlike):
            flagged = [bool(row["flags"]) for row in rows if (row["wrong"], row["kind"]) == (is_unlike, kind)]
            lines.append(f"| {kind} | {sum(flagged)} | {len(flagged)} | {np.mean(flagged):.1%} |")
    return "\n".join(lines) + "\n"


def _write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main(source: str, data_dir: str | None, output: Path, *, folds: int, jobs: int) -> None:
    """Runs all folds, writes `flags.csv` and `flags.md`, and prints the table."""
    with tempfile.TemporaryDirectory() as temporary:
        dataset = prepare(source, data_dir or temporary, progress=False)
        with ProcessPoolExecutor(jobs) as pool:
            results = [pool.submit(flag_fold, fold, folds, dataset) for fold in range(folds)]
            rows = [row for fold in results for row in fold.result()]
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "flags.csv", lambda part: _write_csv(part, rows))
    text = table(rows)
    write_whole(output / "flags.md", lambda part: part.write_text(text, encoding="utf-8"))
    print(text)


if __name__ == "__main__":  # flags are defined here, so that a test can import this module and a command
    SOURCE = flags.DEFINE_string("source", None, "The LGG scans, as in brainseg_jax.data.prepare.", required=True)
    DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of prepared data. Default: a temporary folder.")
    OUTPUT = flags.DEFINE_string("output", None, "Folder for flags.csv and flags.md.", required=True)
    FOLDS = flags.DEFINE_integer("folds", 10, "Number of folds; each is held out once.", lower_bound=2)
    JOBS = flags.DEFINE_integer("jobs", 1, "Folds that run in parallel.", lower_bound=1)
    cli.run(
        lambda _: main(
            SOURCE.value, DATA_DIR.value, user_path(OUTPUT.value, "--output"), folds=FOLDS.value, jobs=JOBS.value
        )
    )
