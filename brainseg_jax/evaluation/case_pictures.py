"""A patient's slices in a form small enough for a page: WebP pictures in base64, outlines of masks as SVG paths."""

import base64
import io
from dataclasses import dataclass

import matplotlib
import numpy as np
from contourpy import contour_generator
from PIL import Image

MAX_SIDE = 256  # pixels; larger pictures are made smaller, outlines keep their own grid
FAINTEST = 0.02  # a probability below is not drawn


@dataclass(frozen=True)
class Outlines:
    """A mask, slice by slice.

    Attributes:
      paths: SVG path of each slice, in half pixels from the upper left corner; empty where nothing is in the mask.
      areas: of each slice, in pixels.
    """

    paths: list[str]
    areas: list[int]


@dataclass(frozen=True)
class Overlay:
    """What one network, or one folder of masks, says of a patient; pictures in base64, a slice each, or None."""

    mask: Outlines
    probability: list[str] | None = None
    attention: list[str] | None = None


@dataclass(frozen=True)
class Case:
    """A patient to look at.

    Attributes:
      patient: id.
      size: height and width of the slices, in pixels.
      numbers: of the slices.
      flair: pictures in base64, a slice each; None where there is no scan.
      truth: the true mask.
      overlays: one for each of the runs in the report.
    """

    patient: str
    size: tuple[int, int]
    numbers: list[int]
    flair: list[str] | None
    truth: Outlines
    overlays: list[Overlay]


def outline(volume: np.ndarray) -> Outlines:
    """Outlines of a mask [S, H, W] bool, through the middles of the pixel edges, so cut off at corners."""
    return Outlines([_path(mask) for mask in volume], [int(n) for n in volume.sum(axis=(1, 2))])


def scan_pictures(volume: np.ndarray) -> list[str]:
    """A sequence of a scan, [S, H, W] uint8, in gray, see `stretched`."""
    return [_webp(image, quality=70) for image in stretched(volume)]


def stretched(volume: np.ndarray) -> np.ndarray:
    """The volume, uint8 of any shape, so that white is the 99.5th percentile of what is not black."""
    shown = volume[volume > 0]
    white = np.percentile(shown, 99.5) if shown.size else 1.0
    return np.round(volume * (255.0 / white)).clip(0, 255).astype(np.uint8)


def probability_pictures(volume: np.ndarray) -> list[str]:
    """Probabilities [S, H, W] in [0, 1] in color, the more transparent the lower; "" for a slice with nothing in it."""
    pictures = []
    for image in volume:
        shown = np.where(image < FAINTEST, 0.0, image)
        colors = matplotlib.colormaps["plasma"](shown, bytes=True)
        colors[..., 3] = np.round(255 * np.clip(1.5 * shown, 0.0, 0.75)).astype(np.uint8)
        colors[shown == 0.0] = 0  # a hidden color costs bytes too
        pictures.append(_webp(colors, quality=40) if shown.any() else "")
    return pictures


def attention_pictures(volume: np.ndarray) -> list[str]:
    """Attention [S, H, W] in [0, 1] in color, at half the size: it comes from a coarser grid."""
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
    lines = contour_generator(z=np.pad(mask, 1).astype(np.float32)).lines(0.5)
    commands = []
    for line in lines:
        # The padding moved the grid by 1, the center of a pixel lies at its half: together half a pixel back.
        points = np.round(2.0 * line - 1.0).astype(int)[:-1]  # the last is the first
        steps = np.diff(points, axis=0, append=points[:1])
        turns = (steps != np.roll(steps, 1, axis=0)).any(axis=1)  # a straight run is one line
        points = points[turns]
        moves = [f"{x} {y}" if y >= 0 else f"{x}{y}" for x, y in np.diff(points, axis=0)]
        commands.append(f"M{points[0, 0]} {points[0, 1]}l{' '.join(moves)}z")
    return "".join(commands)
