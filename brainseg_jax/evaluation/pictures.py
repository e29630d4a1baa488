"""What a run looks like: curves of the training, and panels of scan, truth and prediction."""

import dataclasses
import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from scipy import ndimage

from brainseg_jax.evaluation.case_pictures import stretched

matplotlib.use("Agg", force=False)

TRUTH_COLOR, PREDICTION_COLOR = "#00c853", "#ff3d00"


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice to draw, on the native grid.

    Attributes:
      title: patient, slice and score, in words.
      flair: [H, W] uint8; it is drawn as the report draws it, see `stretched`.
      truth: [H, W] bool.
      prediction: [H, W] bool.
      attention: [H, W] in [0, 1], the finest attention map, or None for a network without gates.
    """

    title: str
    flair: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    attention: np.ndarray | None


def draw_panel(path: Path, slices: list[Slice]) -> None:
    """Writes a PNG, a row a slice: FLAIR, true mask, prediction, outlines of both on the scan, attention map if any."""
    columns = 4 + (slices[0].attention is not None)
    figure = Figure(figsize=(2.6 * columns, 2.95 * len(slices)), layout="constrained")
    rows = figure.subfigures(len(slices), 1, squeeze=False)[:, 0]
    for row, picture in zip(rows, slices, strict=True):
        row.suptitle(picture.title, fontsize=10)
        axes = row.subplots(1, columns)
        flair = stretched(picture.flair)
        _show(axes[0], flair, "FLAIR")
        _show(axes[1], picture.truth, "true mask")
        _show(axes[2], picture.prediction, "prediction")
        _show(axes[3], flair, "true (green), predicted (red)")
        _outline(axes[3], picture.truth, TRUTH_COLOR)
        _outline(axes[3], picture.prediction, PREDICTION_COLOR)
        if picture.attention is not None:
            _show(axes[4], flair, "attention, finest gate")
            shown = axes[4].imshow(picture.attention, cmap="magma", alpha=0.7, vmin=0.0, vmax=1.0)
            row.colorbar(shown, ax=axes[4], fraction=0.046, pad=0.02)
    figure.savefig(path, dpi=110)


def draw_grid(path: Path, rows: dict[str, list[Slice]]) -> None:
    """Writes a PNG, a row for each network, a column a slice: outlines of truth and prediction on the scan.

    Args:
      path: of the PNG.
      rows: by the network's name, the same slices in the same order.
    """
    columns = max(len(slices) for slices in rows.values())
    figure = Figure(figsize=(2.6 * columns, 2.95 * len(rows)), layout="constrained")
    for part, (name, slices) in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True):
        part.suptitle(f"{name}: true (green), predicted (red)", fontsize=9, x=0.01, horizontalalignment="left")
        for axes, picture in zip(part.subplots(1, columns, squeeze=False)[0], slices, strict=True):
            _show(axes, stretched(picture.flair), picture.title.replace(": ", "\n"))
            _outline(axes, picture.truth, TRUTH_COLOR)
            _outline(axes, picture.prediction, PREDICTION_COLOR)
    figure.savefig(path, dpi=110)


def draw_curves(path: Path, epochs: list[dict]) -> None:
    """Writes a PNG of loss, validation Dice and learning rate by epoch.

    Args:
      path: of the PNG.
      epochs: rows of `metrics.jsonl`, with epoch, train_loss, val_loss, val_dice_mean, val_dice_median, learning_rate.
    """
    x = [row["epoch"] for row in epochs]
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    loss, dice, rate = figure.subplots(1, 3)
    for axes, keys in (
        (loss, {"train_loss": "training", "val_loss": "validation"}),
        (dice, {"val_dice_mean": "mean over patients", "val_dice_median": "median over patients"}),
        (rate, {"learning_rate": None}),
    ):
        for key, label in keys.items():
            axes.plot(x, [row[key] for row in epochs], marker=".", label=label)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    loss.set_title("loss")
    loss.legend()
    dice.set_title("3-D Dice, validation patients")
    dice.set_ylim(0, 1)
    dice.legend(loc="lower right")
    rate.set_title("learning rate at the end of the epoch")
    figure.savefig(path, dpi=110)


def draw_overlay(path: Path, *, flair: np.ndarray, mask: np.ndarray, numbers: tuple[int, ...]) -> None:
    """Writes a PNG of all slices of a scan side by side, about a square, the mask outlined in red.

    Args:
      path: of the PNG.
      flair: [S, H, W] uint8.
      mask: [S, H, W] bool.
      numbers: of the slices, written into each.
    """
    count, height, width = flair.shape
    columns = math.ceil(math.sqrt(count * height / width))
    rows = -(-count // columns)
    colors = np.repeat(stretched(flair)[..., None], 3, axis=-1)
    inner = np.stack([ndimage.binary_erosion(one) for one in mask])
    colors[mask & ~inner] = tuple(bytes.fromhex(PREDICTION_COLOR[1:]))
    sheet = Image.new("RGB", (columns * width, rows * height))
    for place, (tile, number) in enumerate(zip(colors, numbers, strict=True)):
        corner = (place % columns * width, place // columns * height)
        sheet.paste(Image.fromarray(tile), corner)
        ImageDraw.Draw(sheet).text((corner[0] + 3, corner[1] + 2), str(number), fill="white")
    sheet.save(path, "PNG")


def _show(axes: Axes, image: np.ndarray, title: str) -> None:
    whitest = 1 if image.dtype == bool else 255  # never by the image itself: one bright pixel would make it dark
    axes.imshow(image, cmap="gray", vmin=0, vmax=whitest)
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def _outline(axes: Axes, mask: np.ndarray, color: str) -> None:
    if mask.any():  # a contour of nothing is a warning
        axes.contour(mask, levels=[0.5], colors=[color], linewidths=1.0)
