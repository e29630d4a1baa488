"""Pictures of a run: training curves, and panels of scan, reference and prediction."""

import dataclasses
import itertools
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from PIL import Image, ImageDraw

from brainseg_jax.evaluation.case_pictures import stretched, target_style
from brainseg_jax.scans.description import LGG, Description

TRUTH_COLOR, PREDICTION_COLOR = "#00c853", "#ff3d00"  # for a single target
MAX_TILES, MAX_EMPTY_TILES = 80, 20  # slices of an overlay; LGG scans have fewer and are shown completely
MAX_PIXELS = 2**23  # of an overlay; about the size of a large monitor
MIN_WIDTH, LINE, CHARACTER = 160, 16, 7  # pixels: picture with text below, line height, character width


@dataclasses.dataclass(frozen=True)
class PictureSlice:
    """One slice to draw, on the native grid.

    Attributes:
      title: patient, slice and score as text.
      scan: [H, W] uint8, the displayed channel; its brightness is scaled as in the report, see `stretched`.
      truth: [H, W, K] bool.
      prediction: [H, W, K] bool.
      attention: [H, W] in [0, 1], the finest attention map; None for a network without gates.
    """

    title: str
    scan: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    attention: np.ndarray | None


def draw_panel(path: Path, slices: list[PictureSlice], *, description: Description = LGG) -> None:
    """Writes a PNG with one row per slice: scan, reference, prediction, both outlines on the scan, attention map.

    Several targets have the colors of `target_style` and a legend. The reference is solid, the prediction dashed.

    Args:
      path: path of the PNG.
      slices: one or more.
      description: names of the K targets and of the channel.
    """
    columns = 4 + (slices[0].attention is not None)
    several = len(description.names) > 1
    figure = Figure(figsize=(2.6 * columns, 2.95 * len(slices) + 0.5 * several), layout="constrained")
    # The legend needs a separate row: the layout reserves no space for it beside the subfigures.
    heights = [2.95] * len(slices) + [0.5] * several
    rows = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, picture in zip(rows, slices, strict=False):
        row.suptitle(picture.title, fontsize=10)
        axes = row.subplots(1, columns)
        scan = stretched(picture.scan)
        _show(axes[0], scan, description.channels[description.shown])
        _show(axes[1], _filled(picture.truth), "reference mask")
        _show(axes[2], _filled(picture.prediction), "prediction")
        styles = "reference (solid), prediction (dashed)" if several else "reference (green), prediction (red)"
        _show(axes[3], scan, styles)
        _outlines(axes[3], picture)
        if picture.attention is not None:
            _show(axes[4], scan, "attention, finest gate")
            shown = axes[4].imshow(picture.attention, cmap="magma", alpha=0.7, vmin=0.0, vmax=1.0)
            row.colorbar(shown, ax=axes[4], fraction=0.046, pad=0.02)
    if several:
        _legend(rows[-1], description.names)
    figure.savefig(path, dpi=110)


def draw_grid(path: Path, rows: dict[str, list[PictureSlice]], *, description: Description = LGG) -> None:
    """Writes a PNG with one row per network and one column per slice: outlines of reference and prediction on the scan.

    Args:
      path: path of the PNG.
      rows: name of the network -> slices; the same slices in the same order for all networks.
      description: names of the K targets.
    """
    columns = max(len(slices) for slices in rows.values())
    several = len(description.names) > 1
    figure = Figure(figsize=(2.6 * columns, 2.95 * len(rows) + 0.5 * several), layout="constrained")
    heights = [2.95] * len(rows) + [0.5] * several
    subfigures = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for subfigure, (name, slices) in zip(subfigures, rows.items(), strict=False):
        styles = "reference (solid), prediction (dashed)" if several else "reference (green), prediction (red)"
        subfigure.suptitle(f"{name}: {styles}", fontsize=9, x=0.01, horizontalalignment="left")
        for axes, picture in zip(subfigure.subplots(1, columns, squeeze=False)[0], slices, strict=True):
            _show(axes, stretched(picture.scan), picture.title.replace(": ", "\n"))
            _outlines(axes, picture)
    if several:
        _legend(subfigures[-1], description.names)
    figure.savefig(path, dpi=110)


def draw_curves(path: Path, epochs: list[dict]) -> None:
    """Writes a PNG of loss, validation Dice and learning rate by epoch.

    Args:
      path: path of the PNG.
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


def draw_overlay(
    path: Path,
    *,
    scan: np.ndarray,
    masks: np.ndarray,
    numbers: tuple[int, ...],
    targets: Sequence[str] = ("",),
    lines: Sequence[str] = (),
) -> None:
    """Writes a PNG of the slices of a scan in a roughly square grid, with the outlines of the masks.

    The outline of a single target is red. Several targets have the colors of `target_style` and a legend; later targets
    cover earlier ones. `shown_slices` selects the slices of a scan with more than `MAX_TILES`; text below the picture
    lists the others. A picture of more than `MAX_PIXELS` is reduced by an integer factor.

    Args:
      path: path of the PNG.
      scan: [S, H, W] uint8, the displayed channel.
      masks: [S, H, W, K] bool.
      numbers: slice numbers, written into the slices.
      targets: names of the K targets.
      lines: text below the picture.
    """
    shown, reason = shown_slices(masks)
    height, width = scan.shape[1:]
    factor = max(1, math.ceil(math.sqrt(len(shown) * height * width / MAX_PIXELS)))
    pixels = stretched(np.stack([_reduced(scan[index], factor) for index in shown]))
    height, width = pixels.shape[1:]
    pixels = np.repeat(pixels[..., None], 3, axis=-1)
    colors = [PREDICTION_COLOR] if len(targets) == 1 else [target_style(k).color for k in range(len(targets))]
    for k, color in enumerate(colors):
        for tile, index in zip(pixels, shown, strict=True):
            if masks[index, ..., k].any():
                tile[_reduced(_border(masks[index, ..., k]) * np.uint8(255), factor) > 0] = _rgb(color)
    columns = math.ceil(math.sqrt(len(shown) * height / width))
    sheet = Image.new("RGB", (columns * width, -(-len(shown) // columns) * height))
    for position, (tile, index) in enumerate(zip(pixels, shown, strict=True)):
        corner = (position % columns * width, position // columns * height)
        sheet.paste(Image.fromarray(tile), corner)
        ImageDraw.Draw(sheet).text((corner[0] + 3, corner[1] + 2), str(numbers[index]), fill="white")
    if len(targets) > 1:
        sheet = _with_legend(sheet, dict(zip(targets, colors, strict=True)))
    for line in lines:
        sheet = _with_text(sheet, line)
    if reason:
        sheet = _with_text(sheet, f"{len(shown)} of {len(scan)} slices: {reason}. {_not_shown(shown, numbers)}")
    sheet.save(path, "PNG", compress_level=1)  # takes a quarter of the time of level 6, for a fifth more bytes


def shown_slices(masks: np.ndarray) -> tuple[list[int], str]:
    """Selects the slices of an overlay; returns their indices and the reason, which is "" if all slices are shown.

    Args:
      masks: [S, H, W, K] bool.

    Returns:
      all indices of a scan of up to `MAX_TILES` slices. For a larger scan, the slices with a prediction and one on
      either side; if these are more than `MAX_TILES`, an evenly spaced selection. Without any prediction,
      `MAX_EMPTY_TILES` evenly spaced slices.
    """
    if len(masks) <= MAX_TILES:
        return list(range(len(masks))), ""
    predicted = np.array([mask.any() for mask in masks])
    near = predicted.copy()
    near[1:] |= predicted[:-1]
    near[:-1] |= predicted[1:]
    if not near.any():
        return _evenly(np.arange(len(masks)), MAX_EMPTY_TILES), "nothing is predicted, so these are evenly spaced"
    indices = np.flatnonzero(near)
    if len(indices) <= MAX_TILES:
        return indices.tolist(), "those with a prediction, and one on either side"
    return _evenly(indices, MAX_TILES), f"evenly spaced among {len(indices)} with a prediction or next to one"


def _evenly(indices: np.ndarray, count: int) -> list[int]:
    """Returns `count` evenly spaced elements of the indices, including the first and the last."""
    return indices[np.linspace(0, len(indices) - 1, count).round().astype(int)].tolist()


def _not_shown(shown: Sequence[int], numbers: Sequence[int]) -> str:
    """Lists the numbers of all slices that are not in `shown`, as ranges."""
    edges = [-1, *shown, len(numbers)]
    gaps = [(before + 1, after - 1) for before, after in itertools.pairwise(edges) if after - before > 1]
    ranges = [f"{numbers[a]}" if a == b else f"{numbers[a]} to {numbers[b]}" for a, b in gaps]
    return f"Not shown: {', '.join(ranges)}"


def _reduced(image: np.ndarray, factor: int) -> np.ndarray:
    """Returns the means of blocks of factor x factor pixels; [H, W] uint8 shrinks by the factor, rounded up."""
    return image if factor == 1 else np.asarray(Image.fromarray(image).reduce(factor))


def _border(mask: np.ndarray) -> np.ndarray:
    """Returns the pixels of a mask [H, W] bool with at least one of their four neighbors outside the mask or image."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _with_legend(sheet: Image.Image, colors: dict[str, str]) -> Image.Image:
    """Adds a line per target below the sheet: a bar of its color, and its name."""
    larger, top = _with_lines(sheet, len(colors)), sheet.height + 4
    draw = ImageDraw.Draw(larger)
    for index, (name, color) in enumerate(colors.items()):
        draw.rectangle((4, top + LINE * index + 4, 28, top + LINE * index + 7), fill=color)
        draw.text((34, top + LINE * index), name, fill="white")
    return larger


def _with_text(sheet: Image.Image, text: str) -> Image.Image:
    """Adds text below the sheet, wrapped to its width."""
    lines = textwrap.wrap(text, max(20, (max(sheet.width, MIN_WIDTH) - 8) // CHARACTER))
    larger = _with_lines(sheet, len(lines))
    for index, line in enumerate(lines):
        ImageDraw.Draw(larger).text((4, sheet.height + 4 + LINE * index), line, fill="white")
    return larger


def _with_lines(sheet: Image.Image, count: int) -> Image.Image:
    """Adds space for `count` lines of text below the sheet."""
    larger = Image.new("RGB", (max(sheet.width, MIN_WIDTH), sheet.height + LINE * count + 4))
    larger.paste(sheet)
    return larger


def _rgb(color: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(color[1:]))


def _filled(masks: np.ndarray) -> np.ndarray:
    """Returns masks [H, W, K] as an image: [H, W] bool for one target, else [H, W, 3]; later targets are on top."""
    if masks.shape[-1] == 1:
        return masks[..., 0]
    picture = np.zeros((*masks.shape[:2], 3), np.uint8)
    for k in range(masks.shape[-1]):
        picture[masks[..., k]] = _rgb(target_style(k).color)
    return picture


def _show(axes: Axes, image: np.ndarray, title: str) -> None:
    maximum = 1 if image.dtype == bool else 255  # a fixed maximum: one bright pixel must not darken the image
    axes.imshow(image, cmap="gray", vmin=0, vmax=maximum)
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def _outlines(axes: Axes, picture: PictureSlice) -> None:
    """Draws one target in green and red, several in their colors; with several the prediction is dashed."""
    count = picture.truth.shape[-1]
    for k in range(count):
        style = target_style(k)
        colors = (TRUTH_COLOR, PREDICTION_COLOR) if count == 1 else (style.color, style.color)
        _outline(axes, picture.truth[..., k], colors[0], "solid", 1.0)
        _outline(axes, picture.prediction[..., k], colors[1], "solid" if count == 1 else (0, style.dashes), 1.0)


def _outline(axes: Axes, mask: np.ndarray, color: str, dashes: str | tuple, width: float) -> None:
    if mask.any():  # an empty contour causes a warning
        margin = 1 if min(mask.shape) < 2 else 0  # a single row or column has no contour without margin
        rows, columns = (np.arange(-margin, length + margin) for length in mask.shape)
        padded = np.pad(mask, margin)
        axes.contour(columns, rows, padded, levels=[0.5], colors=[color], linewidths=width, linestyles=[dashes])


def _legend(subfigure: SubFigure, names: Sequence[str]) -> None:
    """Draws the color and dashes of each target on black, as on the scan."""
    lines = [
        Line2D([], [], color=target_style(k).color, linestyle=(0, target_style(k).dashes)) for k in range(len(names))
    ]
    legend = subfigure.legend(
        lines,
        names,
        loc="center",
        ncols=min(4, len(names)),
        fontsize=8,
        handlelength=4,
        facecolor="black",
        framealpha=1,
    )
    for text in legend.get_texts():
        text.set_color("white")
