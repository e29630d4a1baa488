"""What a run looks like: curves of the training, and panels of scan, truth and prediction."""

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

TRUTH_COLOR, PREDICTION_COLOR = "#00c853", "#ff3d00"  # of the only target
MOST_TILES, TILES_OF_NOTHING = 80, 20  # slices of an overlay: scans of up to so many, as those of LGG, are shown whole
MOST_PIXELS = 2**23  # of an overlay: a large monitor shows as many
MIN_WIDTH, LINE, CHARACTER = 160, 16, 7  # pixels, of a picture with text below it, and of the text


@dataclasses.dataclass(frozen=True)
class PictureSlice:
    """One slice to draw, on the native grid.

    Attributes:
      title: patient, slice and score, in words.
      scan: [H, W] uint8, the channel that is shown; it is drawn as the report draws it, see `stretched`.
      truth: [H, W, K] bool.
      prediction: [H, W, K] bool.
      attention: [H, W] in [0, 1], the finest attention map, or None for a network without gates.
    """

    title: str
    scan: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    attention: np.ndarray | None


def draw_panel(path: Path, slices: list[PictureSlice], *, description: Description = LGG) -> None:
    """Writes a PNG, a row a slice: scan, reference, prediction, outlines of both on the scan, attention map if any.

    Several targets are drawn in the colors of `target_style`, the reference solid and the prediction dashed, with a
    legend.

    Args:
      path: of the PNG.
      slices: one or more.
      description: has the names of the K targets and of the channel.
    """
    columns = 4 + (slices[0].attention is not None)
    several = len(description.names) > 1
    figure = Figure(figsize=(2.6 * columns, 2.95 * len(slices) + 0.5 * several), layout="constrained")
    # A legend has a row of its own: a figure does not leave room for one beside its parts.
    heights = [2.95] * len(slices) + [0.5] * several
    rows = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, picture in zip(rows, slices, strict=False):
        row.suptitle(picture.title, fontsize=10)
        axes = row.subplots(1, columns)
        scan = stretched(picture.scan)
        _show(axes[0], scan, description.channels[description.shown])
        _show(axes[1], _filled(picture.truth), "true mask")
        _show(axes[2], _filled(picture.prediction), "prediction")
        _show(axes[3], scan, "true (solid), predicted (dashed)" if several else "true (green), predicted (red)")
        _outlines(axes[3], picture)
        if picture.attention is not None:
            _show(axes[4], scan, "attention, finest gate")
            shown = axes[4].imshow(picture.attention, cmap="magma", alpha=0.7, vmin=0.0, vmax=1.0)
            row.colorbar(shown, ax=axes[4], fraction=0.046, pad=0.02)
    if several:
        _legend(rows[-1], description.names)
    figure.savefig(path, dpi=110)


def draw_grid(path: Path, rows: dict[str, list[PictureSlice]], *, description: Description = LGG) -> None:
    """Writes a PNG, a row for each network, a column a slice: outlines of truth and prediction on the scan.

    Args:
      path: of the PNG.
      rows: by the network's name, the same slices in the same order.
      description: has the names of the K targets.
    """
    columns = max(len(slices) for slices in rows.values())
    several = len(description.names) > 1
    figure = Figure(figsize=(2.6 * columns, 2.95 * len(rows) + 0.5 * several), layout="constrained")
    heights = [2.95] * len(rows) + [0.5] * several
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (name, slices) in zip(parts, rows.items(), strict=False):
        colors = "true (solid), predicted (dashed)" if several else "true (green), predicted (red)"
        part.suptitle(f"{name}: {colors}", fontsize=9, x=0.01, horizontalalignment="left")
        for axes, picture in zip(part.subplots(1, columns, squeeze=False)[0], slices, strict=True):
            _show(axes, stretched(picture.scan), picture.title.replace(": ", "\n"))
            _outlines(axes, picture)
    if several:
        _legend(parts[-1], description.names)
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


def draw_overlay(
    path: Path,
    *,
    scan: np.ndarray,
    masks: np.ndarray,
    numbers: tuple[int, ...],
    targets: Sequence[str] = ("",),
    lines: Sequence[str] = (),
) -> None:
    """Writes a PNG of the slices of a scan side by side, about a square, with the outlines of the masks.

    The outline of one target is red. Several have the colors of `target_style`, a later one over an earlier one, and a
    legend below. A scan of more than `MOST_TILES` slices is shown in part, see `shown_slices`; text below the picture
    lists the slices that are not shown. Slices are reduced by a whole factor where the picture would have more than
    `MOST_PIXELS`.

    Args:
      path: of the PNG.
      scan: [S, H, W] uint8, the channel that is shown.
      masks: [S, H, W, K] bool.
      numbers: of the slices, written into each.
      targets: names of the K targets.
      lines: text to stand below.
    """
    shown, reason = shown_slices(masks)
    height, width = scan.shape[1:]
    factor = max(1, math.ceil(math.sqrt(len(shown) * height * width / MOST_PIXELS)))
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
    sheet.save(path, "PNG", compress_level=1)  # a quarter of the time of level 6, and a fifth more bytes


def shown_slices(masks: np.ndarray) -> tuple[list[int], str]:
    """Which slices an overlay shows, and why these: "" where it shows all.

    Args:
      masks: [S, H, W, K] bool.

    Returns:
      all indices of a scan of up to `MOST_TILES` slices. Of a larger one the slices with a prediction, and one on
      either side; where these are more than `MOST_TILES`, so many of them, evenly spaced. `TILES_OF_NOTHING` slices,
      evenly spaced, where nothing is predicted.
    """
    if len(masks) <= MOST_TILES:
        return list(range(len(masks))), ""
    found = np.array([mask.any() for mask in masks])
    near = found.copy()
    near[1:] |= found[:-1]
    near[:-1] |= found[1:]
    if not near.any():
        return _evenly(np.arange(len(masks)), TILES_OF_NOTHING), "nothing is predicted, these are evenly spaced"
    indices = np.flatnonzero(near)
    if len(indices) <= MOST_TILES:
        return indices.tolist(), "those with a prediction, and one on either side"
    return _evenly(indices, MOST_TILES), f"evenly spaced among {len(indices)} with a prediction or beside one"


def _evenly(indices: np.ndarray, count: int) -> list[int]:
    """So many of the indices, the first and the last among them."""
    return indices[np.linspace(0, len(indices) - 1, count).round().astype(int)].tolist()


def _not_shown(shown: Sequence[int], numbers: Sequence[int]) -> str:
    """The numbers of all slices whose indices are not among `shown`, as ranges."""
    edges = [-1, *shown, len(numbers)]
    gaps = [(before + 1, after - 1) for before, after in itertools.pairwise(edges) if after - before > 1]
    words = [f"{numbers[a]}" if a == b else f"{numbers[a]} to {numbers[b]}" for a, b in gaps]
    return f"Not shown: {', '.join(words)}"


def _reduced(image: np.ndarray, factor: int) -> np.ndarray:
    """The means of blocks of factor x factor pixels, [H, W] uint8 to the same divided by the factor, rounded up."""
    return image if factor == 1 else np.asarray(Image.fromarray(image).reduce(factor))


def _border(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask [H, W] bool of whose four neighbors one is outside of the mask or of the image."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _with_legend(sheet: Image.Image, colors: dict[str, str]) -> Image.Image:
    """The sheet with a line below it for each target: a bar of its color, and its name."""
    larger, top = _with_lines(sheet, len(colors)), sheet.height + 4
    draw = ImageDraw.Draw(larger)
    for index, (name, color) in enumerate(colors.items()):
        draw.rectangle((4, top + LINE * index + 4, 28, top + LINE * index + 7), fill=color)
        draw.text((34, top + LINE * index), name, fill="white")
    return larger


def _with_text(sheet: Image.Image, text: str) -> Image.Image:
    """The sheet with a text below it, in as many lines as its width asks for."""
    lines = textwrap.wrap(text, max(20, (max(sheet.width, MIN_WIDTH) - 8) // CHARACTER))
    larger = _with_lines(sheet, len(lines))
    for index, line in enumerate(lines):
        ImageDraw.Draw(larger).text((4, sheet.height + 4 + LINE * index), line, fill="white")
    return larger


def _with_lines(sheet: Image.Image, count: int) -> Image.Image:
    """The sheet with room for so many lines of text below it."""
    larger = Image.new("RGB", (max(sheet.width, MIN_WIDTH), sheet.height + LINE * count + 4))
    larger.paste(sheet)
    return larger


def _rgb(color: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(color[1:]))


def _filled(masks: np.ndarray) -> np.ndarray:
    """Masks [H, W, K] as a picture: [H, W] bool of one target; of several [H, W, 3], later ones over earlier ones."""
    if masks.shape[-1] == 1:
        return masks[..., 0]
    picture = np.zeros((*masks.shape[:2], 3), np.uint8)
    for k in range(masks.shape[-1]):
        picture[masks[..., k]] = _rgb(target_style(k).color)
    return picture


def _show(axes: Axes, image: np.ndarray, title: str) -> None:
    whitest = 1 if image.dtype == bool else 255  # never by the image itself: one bright pixel would make it dark
    axes.imshow(image, cmap="gray", vmin=0, vmax=whitest)
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def _outlines(axes: Axes, picture: PictureSlice) -> None:
    """Of one target in green and red; of several in their colors, the prediction dashed."""
    count = picture.truth.shape[-1]
    for k in range(count):
        style = target_style(k)
        colors = (TRUTH_COLOR, PREDICTION_COLOR) if count == 1 else (style.color, style.color)
        _outline(axes, picture.truth[..., k], colors[0], "solid", 1.0)
        _outline(axes, picture.prediction[..., k], colors[1], "solid" if count == 1 else (0, style.dashes), 1.0)


def _outline(axes: Axes, mask: np.ndarray, color: str, dashes: str | tuple, width: float) -> None:
    if mask.any():  # a contour of nothing is a warning
        margin = 1 if min(mask.shape) < 2 else 0  # a single row or column has none without
        rows, columns = (np.arange(-margin, length + margin) for length in mask.shape)
        padded = np.pad(mask, margin)
        axes.contour(columns, rows, padded, levels=[0.5], colors=[color], linewidths=width, linestyles=[dashes])


def _legend(part: SubFigure, names: Sequence[str]) -> None:
    """The color of each target with its dashes, on black as on the scan."""
    lines = [
        Line2D([], [], color=target_style(k).color, linestyle=(0, target_style(k).dashes)) for k in range(len(names))
    ]
    legend = part.legend(
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
