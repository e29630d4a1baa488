"""The slices of a case in a form small enough for a page: WebP pictures in base64, outlines of masks as SVG paths."""

import base64
import io
from dataclasses import dataclass

import matplotlib
import numpy as np
from contourpy import contour_generator
from PIL import Image

# Colors of Okabe and Ito (jfly.uni-koeln.de/color), which color-blind readers can tell apart; those that show best on
# black come first, and their black is left out.
_COLORS = ("#56b4e9", "#e69f00", "#cc79a7", "#f0e442", "#009e73", "#d55e00", "#0072b2")
_WIDTHS, _DASHES = (2.4, 1.6), ((7, 3), (2, 3), (10, 3, 2, 3), (4, 2), (1, 3))
MOST_SLICES = 4000  # in a report: a page of more is too large for a browser
MAX_SIDE = 256  # pixels; larger pictures are made smaller, outlines keep their own grid
FAINTEST = 0.02  # a probability below is not drawn


@dataclass(frozen=True)
class TargetStyle:
    """How the outlines of one of several targets are drawn: the reference solid, the prediction dashed.

    Attributes:
      color: hexadecimal.
      width: of the line, in pixels.
      dashes: of the prediction: lengths of line and gap in turn, in pixels.
    """

    color: str
    width: float
    dashes: tuple[int, ...]


def target_style(k: int) -> TargetStyle:
    """Of the k-th target: no two of the first 35 look alike."""
    return TargetStyle(_COLORS[k % len(_COLORS)], _WIDTHS[k % len(_WIDTHS)], _DASHES[k % len(_DASHES)])


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
    """What one network, or one folder of masks, says of a case.

    Attributes:
      masks: of each target.
      probability: pictures in base64 by target and slice, or None.
      attention: pictures in base64, a slice each, or None.
    """

    masks: list[Outlines]
    probability: list[list[str]] | None = None
    attention: list[str] | None = None


@dataclass(frozen=True)
class CasePictures:
    """A case to look at.

    Attributes:
      name: of the case; the patient's id where each patient has one case.
      size: height and width of the slices, in pixels.
      numbers: of the slices.
      scan: pictures of the channel shown in base64, a slice each; None where there is no scan.
      truth: the reference mask of each target.
      overlays: one for each of the runs in the report.
      step: every how many slices of the case are here, see `slice_step`.
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
    """The pictures of a case, with one overlay.

    Args:
      name: of the case.
      numbers: of all its slices.
      scan: [S, H, W] uint8, the channel shown, or None.
      truth: [S, H, W, K] bool.
      masks: [S, H, W, K] bool, as they are scored.
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
    """Every how many slices a report shows, of cases with `total` slices together; 1 up to `MOST_SLICES`."""
    return max(1, -(-total // MOST_SLICES))


def outlines(masks: np.ndarray) -> list[Outlines]:
    """`outline` of each target, of masks [S, H, W, K] bool."""
    return [outline(masks[..., k]) for k in range(masks.shape[-1])]


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
