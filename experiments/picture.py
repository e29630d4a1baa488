"""Draws the picture of the README: scan, reference mask and prediction, on the slice with the largest reference.

    python -m brainseg_jax.predict --input=SCANS --output=masks
    python -m experiments.picture --scans=SCANS --predictions=masks --output=docs/images/lgg.png

`SCANS` is a folder of case folders, as in `kaggle_3m`. The picture has one column per case.
"""

from pathlib import Path

import numpy as np
from absl import flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from brainseg_jax import cli
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.pictures import PREDICTION_COLOR, TRUTH_COLOR
from brainseg_jax.files import user_path
from brainseg_jax.metrics import dice

SCANS = flags.DEFINE_string("scans", None, "Folder of case folders with slices and reference masks.")
PREDICTIONS = flags.DEFINE_string("predictions", None, "Folder of the masks that `predict` wrote for these scans.")
OUTPUT = flags.DEFINE_string("output", None, "Output file, PNG.")

FLAIR = 1  # channel of the slices
WINDOW = (1.0, 97.0)  # percentiles inside the head, drawn black and white
AIR = 0.1  # fraction of the maximum; darker pixels are outside the head


def main(_: list[str]) -> None:
    """Draws all cases of the folder."""
    scans, predictions = user_path(SCANS.value, "--scans"), user_path(PREDICTIONS.value, "--predictions")
    cases = sorted(folder for folder in scans.iterdir() if folder.is_dir())
    if not cases:
        raise InputError(f"--scans={scans} has no case folder; give the folder that contains one folder per case")
    figure = Figure(figsize=(2.4 * len(cases), 7.9), facecolor="black", layout="constrained")
    columns = figure.subplots(3, len(cases), squeeze=False).T
    for axes, case in zip(columns, cases, strict=True):
        _draw(axes, case, predictions / case.name)
    figure.savefig(user_path(OUTPUT.value, "--output"), dpi=90)


def _draw(axes: np.ndarray, case: Path, predictions: Path) -> None:
    """Draws one column: the scan, the scan with its reference, the scan with its prediction."""
    references = sorted(case.glob("*_mask.tif"))
    reference = np.stack([_read(path) > 0 for path in references])
    predicted = np.stack([_read(predictions / path.name.replace("_mask", "_pred")) > 0 for path in references])
    largest = int(reference.sum(axis=(1, 2)).argmax())
    flair = _read(references[largest].with_name(references[largest].name.replace("_mask", "")))[..., FLAIR]
    scan, window = windowed(flair), head_square(flair)
    titles = (f"{case.name[:12]}: FLAIR", "reference", f"prediction: 3-D Dice {dice(predicted, reference):.2f}")
    masks = (None, (reference[largest][window], TRUTH_COLOR), (predicted[largest][window], PREDICTION_COLOR))
    for axis, title, mask in zip(axes, titles, masks, strict=True):
        axis.imshow(scan[window], cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=9, color="white")
        axis.set_axis_off()
        if mask is not None:
            _fill(axis, *mask)


def _fill(axis: Axes, mask: np.ndarray, color: str) -> None:
    if mask.any():
        axis.contourf(mask, levels=[0.5, 1.5], colors=[color], alpha=0.25)
        axis.contour(mask, levels=[0.5], colors=[color], linewidths=1.2)


def windowed(image: np.ndarray) -> np.ndarray:
    """Scales an image [H, W] to [0, 1] between the percentiles of `WINDOW` inside the head."""
    inside = image[image > AIR * image.max()]
    low, high = np.percentile(inside, WINDOW) if inside.size else (0.0, 1.0)
    return ((image - low) / max(high - low, 1e-6)).clip(0.0, 1.0)


def head_square(image: np.ndarray) -> tuple[slice, slice]:
    """Returns rows and columns of a square around the head of an image [H, W]; its size is fixed, for one scale."""
    inside = image > AIR * image.max()
    side = min(image.shape) * 7 // 8
    starts = []
    for axis, length in enumerate(image.shape):
        where = np.flatnonzero(inside.any(axis=1 - axis))
        middle = (where[0] + where[-1]) // 2 if where.size else length // 2
        starts.append(min(max(0, middle - side // 2), length - side))
    return tuple(slice(start, start + side) for start in starts)


def _read(path: Path) -> np.ndarray:
    if not path.exists():
        raise InputError(f"{path} is missing; run brainseg_jax.predict on the same scans first")
    return np.asarray(Image.open(path))


if __name__ == "__main__":
    flags.mark_flags_as_required(["scans", "predictions", "output"])
    cli.run(main)
