"""Slices of a case in a compact form for a web page: WebP images in base64, and mask outlines as SVG paths."""

import base64
import io
from dataclasses import dataclass
from typing import cast

import matplotlib
import numpy as np
from contourpy import contour_generator
from PIL import Image

# Colors of Okabe and Ito (jfly.uni-koeln.de/color), which color-blind readers can distinguish. The colors with the best
# contrast on black come first; their black is omitted.
_COLORS = ("#56b4e9", "#e69f00", "#cc79a7", "#f0e442", "#009e73", "#d55e00", "#0072b2")
_WIDTHS, _DASHES = (2.4, 1.6), ((7, 3), (2, 3), (10, 3, 2, 3), (4, 2), (1, 3))
MAX_SLICES = 4000  # in a report; browsers cannot handle larger pages
MAX_SIDE = 256  # pixels; larger images are reduced, outlines keep their grid
MIN_PROBABILITY = 0.02  # lower probabilities are not drawn


@dataclass(frozen=True)
class TargetStyle:
    """Line style of one of several targets: the reference is solid, the prediction dashed.

    Attributes:
      color: hexadecimal.
      width: line width in pixels.
      dashes: lengths of dash and gap of the prediction, alternating, in pixels.
    """

    color: str
    width: float
    dashes: tuple[int, ...]


def target_style(k: int) -> TargetStyle:
    """Returns the style of the k-th target; the first 35 styles are all different."""
    return TargetStyle(_COLORS[k % len(_COLORS)], _WIDTHS[k % len(_WIDTHS)], _DASHES[k % len(_DASHES)])


@dataclass(frozen=True)
class Outlines:
    """A mask, slice by slice.

    Attributes:
      paths: SVG path of each slice, in half pixels from the upper left corner; "" for an empty slice.
      areas: area of each slice, in pixels.
    """

    paths: list[str]
    areas: list[int]


@dataclass(frozen=True)
class Overlay:
    """The result of one network, or of one folder of masks, for a case.

    Attributes:
      masks: outlines of each target.
      probability: images in base64 by target and slice, or None.
      attention: images in base64, one per slice, or None.
    """

    masks: list[Outlines]
    probability: list[list[str]] | None = None
    attention: list[str] | None = None


@dataclass(frozen=True)
class CasePictures:
    """All pictures of a case.

    Attributes:
      name: name of the case; the patient's id if each patient has one case.
      size: height and width of the slices, in pixels.
      numbers: slice numbers.
      scan: images of the displayed channel in base64, one per slice; None without a scan.
      truth: outlines of the reference mask of each target.
      overlays: one for each run of the report.
      step: distance between the slices shown, see `slice_step`.
    """

    name: str
    size: tuple[int, int]
    numbers: list[int]
    scan: list[str] | None
    truth: list[Outlines]
    overlays: list[Overlay]
    step: int = 1


def draw_case(
    name: str,
    numbers: list[int],
    *,
    scan: np.ndarray | None,
    truth: np.ndarray,
    masks: np.ndarray,
    probability: np.ndarray | None = None,
    attention: np.ndarray | None = None,
    step: int = 1,
) -> CasePictures:
    """Draws a case with one overlay.

    Args:
      name: name of the case.
      numbers: numbers of all its slices.
      scan: [S, H, W] uint8, the displayed channel, or None.
      truth: [S, H, W, K] bool.
      masks: [S, H, W, K] bool, as scored.
      probability: [S, H, W, K] in [0, 1], or None.
      attention: [S, H, W] in [0, 1], or None.
      step: see `slice_step`.
    """
    probabilities = None
    if probability is not None:
        probabilities = [probability_pictures(probability[::step, ..., k]) for k in range(probability.shape[-1])]
    overlay = Overlay(
        outlines(masks[::step]), probabilities, None if attention is None else attention_pictures(attention[::step])
    )
    return CasePictures(
        name=name,
        size=truth.shape[1:3],
        numbers=numbers[::step],
        scan=None if scan is None else scan_pictures(scan[::step]),
        truth=outlines(truth[::step]),
        overlays=[overlay],
        step=step,
    )


def slice_step(total: int) -> int:
    """Returns n so that every n-th slice of `total` slices is shown; 1 up to `MAX_SLICES`."""
    return max(1, -(-total // MAX_SLICES))


def outlines(masks: np.ndarray) -> list[Outlines]:
    """Returns the `outline` of each target, for masks [S, H, W, K] bool."""
    return [outline(masks[..., k]) for k in range(masks.shape[-1])]


def outline(volume: np.ndarray) -> Outlines:
    """Returns outlines of a mask [S, H, W] bool. They cut corners: they connect the middles of the pixel edges."""
    return Outlines([_path(mask) for mask in volume], [int(n) for n in volume.sum(axis=(1, 2))])


def scan_pictures(volume: np.ndarray) -> list[str]:
    """Returns gray images of one sequence, [S, H, W] uint8, see `stretched`."""
    return [_webp(image, quality=70) for image in stretched(volume)]


def stretched(volume: np.ndarray) -> np.ndarray:
    """Rescales uint8 of any shape so that white is the 99.5th percentile of the nonzero voxels."""
    shown = volume[volume > 0]
    white = np.percentile(shown, 99.5) if shown.size else 1.0
    return np.round(volume * (255.0 / white)).clip(0, 255).astype(np.uint8)


def probability_pictures(volume: np.ndarray) -> list[str]:
    """Returns color images of probabilities [S, H, W] in [0, 1]; "" for a slice without visible pixels.

    Lower probabilities are more transparent.
    """
    pictures = []
    for image in volume:
        shown = np.where(image < MIN_PROBABILITY, 0.0, image)
        colors = matplotlib.colormaps["plasma"](shown, bytes=True)
        colors[..., 3] = np.round(255 * np.clip(1.5 * shown, 0.0, 0.75)).astype(np.uint8)
        colors[shown == 0.0] = 0  # hidden colors also cost bytes
        pictures.append(_webp(colors, quality=40) if shown.any() else "")
    return pictures


def attention_pictures(volume: np.ndarray) -> list[str]:
    """Returns color images of attention [S, H, W] in [0, 1] at half the size, because its grid is coarser."""
    coarse = volume[:, ::2, ::2]
    return [_webp(matplotlib.colormaps["viridis"](image, bytes=True)[..., :3], quality=40) for image in coarse]


def _webp(pixels: np.ndarray, *, quality: int) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=2)
    return base64.b64encode(file.getvalue()).decode()


def _path(mask: np.ndarray) -> str:
    if not mask.any():
        return ""
    # Its default line type is one array per line.
    lines = cast("list[np.ndarray]", contour_generator(z=np.pad(mask, 1).astype(np.float32)).lines(0.5))
    commands = []
    for line in lines:
        # The padding shifts by 1 pixel and pixel centers are at 0.5, so the net shift is half a pixel back.
        points = np.round(2.0 * line - 1.0).astype(int)[:-1]  # the last point repeats the first
        steps = np.diff(points, axis=0, append=points[:1])
        turns = (steps != np.roll(steps, 1, axis=0)).any(axis=1)  # merge straight runs into one line
        points = points[turns]
        moves = [f"{x} {y}" if y >= 0 else f"{x}{y}" for x, y in np.diff(points, axis=0)]
        commands.append(f"M{points[0, 0]} {points[0, 1]}l{' '.join(moves)}z")
    return "".join(commands)
