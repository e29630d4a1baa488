"""Made-up, brain-like patients in exactly Kaggle's folder layout: the data of the demo and of the tests.

The anatomy is painted, not scanned: scalp, skull, folded gray and white matter, ventricles, face, three contrasts
(pre, FLAIR, post), a smooth bias field and Rician noise. FLAIR shows the tumors best, but it also shows scalp, face,
periventricular caps and small spots just as bright, so a threshold on FLAIR alone does not find the tumors.

Institutions PA, PB and PC do not exist, so a made-up case id can never be taken for one of The Cancer Imaging Archive.
A volume is worked on in head coordinates: u (left to right), v (front to back) and w (foot to crown), where the head is
about the unit ball. Beside numpy's random generator only exactly rounded operations (+ - * / sqrt) touch the voxels, so
every machine with the same numpy draws the same bytes.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from brainseg_jax.errors import InputError

SIZE = 256  # pixels, as in the Kaggle set
SLICES = 16
INSTITUTIONS = ("PA", "PA", "PB", "PC")  # taken in turn: half of the patients come from PA
CLINICAL_COLUMNS = (
    "Patient,RNASeqCluster,MethylationCluster,miRNACluster,CNCluster,RPPACluster,OncosignCluster,COCCluster,"
    "histological_type,neoplasm_histologic_grade,tumor_tissue_site,laterality,tumor_location,gender,"
    "age_at_initial_pathologic,race,ethnicity,death01"
)

AIR, SCALP, BONE, FLUID, GRAY, WHITE, MUSCLE, VESSEL = range(8)
# One row a tissue, in the order above; columns pre-contrast, FLAIR, post-contrast; 1 is the gain of the scanner.
TISSUE_BRIGHTNESS = np.array(
    [
        [0.00, 0.00, 0.00],
        [0.95, 0.80, 0.95],
        [0.08, 0.07, 0.08],
        [0.22, 0.10, 0.22],
        [0.50, 0.52, 0.52],
        [0.64, 0.43, 0.66],
        [0.40, 0.35, 0.50],
        [0.30, 0.15, 1.10],
    ],
    np.float32,
)


class Head(NamedTuple):
    """Head coordinates of every voxel, each float32 [S, H, W]."""

    u: np.ndarray
    v: np.ndarray
    w: np.ndarray
    radius: np.ndarray  # distance from the center of the head; 1 is the skin


def write_phantom(folder: Path, *, patients: int, seed: int) -> Path:
    """Writes made-up patients as `kaggle_3m/<case>/<case>_<n>.tif` and `_<n>_mask.tif`, and a `data.csv`.

    Patient k depends on `seed` and k only, so a larger phantom begins with the same patients. Every patient has tumor.

    Args:
      folder: Where `kaggle_3m` is made; it appears complete or not at all.
      patients: How many, 1 to 9999.
      seed: At least 0.

    Returns:
      The `kaggle_3m` folder.

    Raises:
      InputError: `patients` or `seed` is out of range, or `kaggle_3m` is there already.
    """
    target = Path(folder) / "kaggle_3m"
    if not 1 <= patients <= 9999 or seed < 0:
        raise InputError(f"phantom: patients={patients}, seed={seed}: give 1 to 9999 patients and a seed of at least 0")
    if target.exists():
        raise InputError(f"{target}: already exists; delete it or give another folder")
    unfinished = target.with_name("kaggle_3m.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    rows = [CLINICAL_COLUMNS]
    for index in range(patients):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
        person = f"TCGA_{INSTITUTIONS[index % len(INSTITUTIONS)]}_{index + 1:04d}"
        case = unfinished / f"{person}_{2000 + index % 20}{index % 12 + 1:02d}{index % 28 + 1:02d}"
        _write_case(case, *make_patient(rng))
        kind, grade, gender, age = rng.integers([1, 1, 1, 20], [4, 3, 3, 76])
        rows.append(f"{person},,,,,,,,{kind},{grade},1,,,{gender},{age},,,")
    (unfinished / "data.csv").write_text("\n".join(rows) + "\n")
    unfinished.rename(target)
    return target


def make_patient(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Paints one patient.

    Returns:
      Volume [S, 256, 256, 3] uint8 in channel order pre, FLAIR, post, and tumor mask [S, 256, 256] uint8 in {0, 1}.
    """
    head = _head(rng)
    depth = _tumor_depth(rng, head)
    tissue = _tissues(rng, head, depth > 0)
    mask = (depth > 0) & ((tissue == GRAY) | (tissue == WHITE))
    brightness = _soften(np.take(TISSUE_BRIGHTNESS.T, tissue, axis=1))
    _add_bright_confusers(rng, head, tissue, brightness)
    _add_tumor(rng, np.where(mask, depth, 0), brightness)
    return _scan(rng, head, brightness), mask.astype(np.uint8)


def _write_case(case: Path, volume: np.ndarray, mask: np.ndarray) -> None:
    case.mkdir(parents=True)
    for number, (pixels, tumor) in enumerate(zip(volume, mask, strict=True), start=1):
        Image.fromarray(pixels).save(case / f"{case.name}_{number}.tif")
        Image.fromarray(tumor * np.uint8(255)).save(case / f"{case.name}_{number}_mask.tif")


def _smooth_noise(rng: np.random.Generator, cells: tuple[int, int, int]) -> np.ndarray:
    """Smooth random field in -1..1, float32 [S, H, W]: random values at the corners of `cells`, blended between."""
    field = rng.random([count + 1 for count in cells], np.float32) * 2 - 1
    for axis, (count, length) in enumerate(zip(cells, (SLICES, SIZE, SIZE), strict=True)):
        place = (np.arange(length, dtype=np.float32) + 0.5) * (count / length)
        corner = place.astype(int)
        weight = place - np.floor(place)
        weight = (weight * weight * (3 - 2 * weight)).reshape([-1 if other == axis else 1 for other in range(3)])
        low = np.take(field, corner, axis)
        field = low + (np.take(field, corner + 1, axis) - low) * weight
    return field


def _head(rng: np.random.Generator) -> Head:
    """Head coordinates for a head of random size, position, rotation and tilt, with an uneven outline."""
    width, length = rng.uniform(78, 94), rng.uniform(98, 114)  # half axes, in pixels
    sine = rng.uniform(-0.24, 0.24)
    cosine = (1 - sine * sine) ** 0.5
    rows = (np.arange(SIZE, dtype=np.float32) - (127.5 + rng.uniform(-6, 6)))[:, None]
    columns = (np.arange(SIZE, dtype=np.float32) - (127.5 + rng.uniform(-8, 8)))[None, :]
    u = (columns * cosine - rows * sine) / width
    v = (columns * sine + rows * cosine) / length
    levels = np.linspace(-1.22, 1.12, SLICES, dtype=np.float32) + rng.uniform(-0.04, 0.04)
    w = levels[:, None, None] + v * rng.uniform(-0.12, 0.12)
    w = np.where(w < 0, w * 0.85, w)  # the neck is wider than the crown
    u = u + _smooth_noise(rng, (3, 5, 5)) * 0.05
    v = v + _smooth_noise(rng, (3, 5, 5)) * 0.04
    return Head(u, v, w, np.sqrt(u * u + v * v + w * w))


def _tumor_depth(rng: np.random.Generator, head: Head) -> np.ndarray:
    """Depth into an uneven blob in one hemisphere, float32 [S, H, W]: 0 on its surface, up to about 1 inside."""
    center = rng.uniform([0.3, -0.45, -0.05], [0.5, 0.45, 0.35]) * [rng.choice([-1, 1]), 1, 1]
    radii = rng.uniform(0.22, 0.46) * rng.uniform([0.8, 0.8, 1.2], [1.2, 1.2, 1.6])
    u, v, w = (
        (axis - middle) / radius for axis, middle, radius in zip(head[:3], center.tolist(), radii.tolist(), strict=True)
    )
    outline = 0.3 * _smooth_noise(rng, (5, 9, 9)) + 0.15 * _smooth_noise(rng, (8, 24, 24))
    return 1 - np.sqrt(u * u + v * v + w * w) + outline


def _ball(head: Head, center: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    """Squared distance to a center and to its mirror image in the other hemisphere; 1 is `radii` away from it."""
    u = (np.abs(head.u) - center[0]) / radii[0]
    v = (head.v - center[1]) / radii[1]
    w = (head.w - center[2]) / radii[2]
    return u * u + v * v + w * w


def _tissues(rng: np.random.Generator, head: Head, tumor: np.ndarray) -> np.ndarray:
    """Tissue of each voxel, uint8 [S, H, W], painted from the skin inward; `tumor` (bool) presses its sulci shut."""
    side, radius = np.abs(head.u), head.radius
    folds = _smooth_noise(rng, (9, 22, 22))
    thickness = rng.uniform(0.9, 1.15)
    tissue = np.zeros(radius.shape, np.uint8)
    tissue[radius < 1] = SCALP
    tissue[radius < 1 - 0.055 * thickness] = BONE
    brain = radius < 1 - 0.11 * thickness
    tissue[brain] = FLUID
    tissue[brain & (radius + 0.06 * folds < 0.855)] = GRAY
    tissue[brain & (radius - 0.2 * folds < 0.68)] = WHITE
    tissue[brain & (radius > 0.64) & (np.abs(folds) < 0.07) & ~tumor] = (
        FLUID  # sulci follow the zero lines of the folds
    )
    tissue[brain & (_ball(head, (0.27, 0.02, 0.05), (0.09, 0.2, 0.22)) < 1)] = GRAY
    tissue[brain & (side < 0.016) & ((np.abs(head.v) > 0.45) | (head.w > 0.45)) & ~tumor] = FLUID
    horns = rng.uniform(0.055, 0.08) + 0.55 * head.v * head.v  # the two ventricles part at front and back
    size = rng.uniform(0.8, 1.25)
    across, along, up = (side - horns) / (0.055 * size), head.v / 0.38, (head.w - 0.16) / (0.28 * size)
    tissue[across * across + along * along + up * up < 1] = FLUID
    tissue[_ball(head, (0, 0.87, 0.1), (0.035, 0.035, 0.6)) < 1] = VESSEL
    face = (radius < 0.94) & (head.w < -0.32 - 0.3 * head.v)  # its upper end slants down to the back
    tissue[face] = MUSCLE
    tissue[face & (folds > 0.3)] = SCALP
    tissue[face & (folds < -0.3)] = BONE
    tissue[_ball(head, (0.36, -0.66, -0.2), (0.17, 0.15, 0.14)) < 1] = FLUID  # eyes
    return tissue


def _soften(brightness: np.ndarray) -> np.ndarray:
    """Blurs the painted edges over about two pixels, as a scanner does; [3, S, H, W], borders kept."""
    inner = brightness[:, :, 1:-1]
    brightness[:, :, 1:-1] = inner + 0.25 * (brightness[:, :, :-2] - 2 * inner + brightness[:, :, 2:])
    inner = brightness[:, :, :, 1:-1]
    brightness[:, :, :, 1:-1] = inner + 0.25 * (brightness[..., :-2] - 2 * inner + brightness[..., 2:])
    return brightness


def _add_bright_confusers(rng: np.random.Generator, head: Head, tissue: np.ndarray, brightness: np.ndarray) -> None:
    """Brightens FLAIR in place where there is no tumor: caps at the ventricle horns, and spots in the white matter."""
    glow = np.zeros_like(head.u)
    for end in (-0.4, 0.4):
        cap = 1 - _ball(head, (0.15, end, 0.16), (0.13, 0.13, 0.22))
        glow = np.maximum(glow, cap * rng.uniform(0, 0.7))
    for _ in range(rng.integers(0, 5)):
        center = rng.uniform([0.2, -0.5, 0.0], [0.5, 0.5, 0.6]).tolist()
        glow = np.maximum(glow, (1 - _ball(head, center, (0.045, 0.045, 0.08))) * rng.uniform(0.3, 0.7))
    brightness[1] += np.where((tissue == GRAY) | (tissue == WHITE), glow, 0)


def _add_tumor(rng: np.random.Generator, depth: np.ndarray, brightness: np.ndarray) -> None:
    """Adds the tumor in place: bright on FLAIR, dim on the others; some with a dark core, some with a rim in post."""
    body = np.minimum(depth * 5 + 0.35, 1) * (depth > 0)
    brightness[1] += body * rng.uniform(0.22, 0.5)
    dimming = body * rng.uniform(0.1, 0.25)
    brightness[0] -= dimming
    brightness[2] -= dimming
    has_core, has_rim = rng.random(2) < [0.25, 0.35]
    core = ((depth - 0.55) * 6).clip(0, 1)
    if has_core:
        brightness[1] -= core * 0.4
    if has_rim:
        brightness[2] += (1 - np.abs(depth - 0.5) * 9).clip(0, 1) * 0.55


def _scan(rng: np.random.Generator, head: Head, brightness: np.ndarray) -> np.ndarray:
    """Texture, bias field, gain and Rician noise of each contrast: [3, S, H, W] to uint8 [S, H, W, 3]."""
    texture = 1 + 0.08 * _smooth_noise(rng, (16, 64, 64))
    volume = np.empty((*head.u.shape, 3), np.uint8)
    for channel, contrast in enumerate(brightness):
        slope_u, slope_v, slope_w, curve = rng.uniform(-0.13, 0.13, 4).tolist()
        bias = 1 + slope_u * head.u + slope_v * head.v + slope_w * head.w + curve * head.u * head.u
        gain, noise = rng.uniform([110, 2], [210, 5]).tolist()
        signal = contrast * texture * bias.clip(0.5, 1.5) * gain
        real = signal + noise * rng.standard_normal(signal.shape, np.float32)
        imaginary = noise * rng.standard_normal(signal.shape, np.float32)
        volume[..., channel] = np.sqrt(real * real + imaginary * imaginary).clip(0, 255)
    return volume
