"""Synthetic, brain-like patients in Kaggle's folder layout, for the demo and the tests.

The anatomy is drawn: scalp, skull, folded gray and white matter, ventricles, face, three contrasts (pre, FLAIR, post),
a smooth bias field and Rician noise. FLAIR shows the tumors best. Scalp, face, periventricular caps and small spots are
equally bright in FLAIR, so a threshold on FLAIR alone does not segment the tumors.

The institutions PA, PB and PC do not exist, so no case id equals one of The Cancer Imaging Archive. Except for numpy's
random generator, only exactly rounded operations touch the voxels, as in `phantom_anatomy`.
"""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from brainseg_jax.data.phantom_anatomy import (
    GRAY,
    WHITE,
    Head,
    ball,
    head_coordinates,
    smooth_noise,
    soften,
    tissues,
    tumor_depth,
)
from brainseg_jax.errors import InputError

SIZE = 256  # pixels, as in the Kaggle set
SLICES = 16
INSTITUTIONS = ("PA", "PA", "PB", "PC")  # used in turn: half of the patients come from PA
CLINICAL_COLUMNS = (
    "Patient,RNASeqCluster,MethylationCluster,miRNACluster,CNCluster,RPPACluster,OncosignCluster,COCCluster,"
    "histological_type,neoplasm_histologic_grade,tumor_tissue_site,laterality,tumor_location,gender,"
    "age_at_initial_pathologic,race,ethnicity,death01"
)

# One row per tissue, in the order of `phantom_anatomy`; columns pre-contrast, FLAIR, post-contrast; 1: full gain.
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


def write_phantom(folder: Path, *, patients: int, seed: int) -> Path:
    """Writes synthetic patients as `kaggle_3m/<case>/<case>_<n>.tif` and `_<n>_mask.tif`, and a `data.csv`.

    Patient k depends only on `seed` and k, so a larger phantom starts with the same patients. Every patient has a
    tumor.

    Args:
      folder: Parent of the new `kaggle_3m`, which is written completely or not at all.
      patients: Number of patients, 1 to 9999.
      seed: At least 0.

    Returns:
      The `kaggle_3m` folder.

    Raises:
      InputError: `patients` or `seed` is out of range, or `kaggle_3m` already exists.
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
        patient = f"TCGA_{INSTITUTIONS[index % len(INSTITUTIONS)]}_{index + 1:04d}"
        case = unfinished / f"{patient}_{2000 + index % 20}{index % 12 + 1:02d}{index % 28 + 1:02d}"
        _write_case(case, *make_patient(rng))
        kind, grade, gender, age = rng.integers([1, 1, 1, 20], [4, 3, 3, 76])
        rows.append(f"{patient},,,,,,,,{kind},{grade},1,,,{gender},{age},,,")
    (unfinished / "data.csv").write_text("\n".join(rows) + "\n")
    unfinished.rename(target)
    return target


def make_patient(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws one patient.

    Returns:
      Volume [S, 256, 256, 3] uint8 with channels pre, FLAIR, post, and tumor mask [S, 256, 256] uint8 in {0, 1}.
    """
    head = head_coordinates(rng, (SLICES, SIZE, SIZE), 1.0)
    depth = tumor_depth(rng, head)
    tissue = tissues(rng, head, depth > 0)
    mask = (depth > 0) & ((tissue == GRAY) | (tissue == WHITE))
    brightness = soften(np.take(TISSUE_BRIGHTNESS.T, tissue, axis=1))
    _add_bright_confusers(rng, head, tissue, brightness)
    _add_tumor(rng, np.where(mask, depth, 0), brightness)
    return _scan(rng, head, brightness), mask.astype(np.uint8)


def _write_case(case: Path, volume: np.ndarray, mask: np.ndarray) -> None:
    case.mkdir(parents=True)
    for number, (pixels, tumor) in enumerate(zip(volume, mask, strict=True), start=1):
        Image.fromarray(pixels).save(case / f"{case.name}_{number}.tif")
        Image.fromarray(tumor * np.uint8(255)).save(case / f"{case.name}_{number}_mask.tif")


def _add_bright_confusers(rng: np.random.Generator, head: Head, tissue: np.ndarray, brightness: np.ndarray) -> None:
    """Brightens healthy tissue on FLAIR, in place: caps at the ventricle horns, spots in the white matter."""
    glow = np.zeros_like(head.u)
    for end in (-0.4, 0.4):
        cap = 1 - ball(head, (0.15, end, 0.16), (0.13, 0.13, 0.22))
        glow = np.maximum(glow, cap * rng.uniform(0, 0.7))
    for _ in range(rng.integers(0, 5)):
        center = rng.uniform([0.2, -0.5, 0.0], [0.5, 0.5, 0.6]).tolist()
        glow = np.maximum(glow, (1 - ball(head, center, (0.045, 0.045, 0.08))) * rng.uniform(0.3, 0.7))
    brightness[1] += np.where((tissue == GRAY) | (tissue == WHITE), glow, 0)


def _add_tumor(rng: np.random.Generator, depth: np.ndarray, brightness: np.ndarray) -> None:
    """Adds the tumor in place: bright on FLAIR, dark on the others; sometimes a dark core or a bright rim in post."""
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
    """Adds texture, bias field, gain and Rician noise to each contrast: [3, S, H, W] to uint8 [S, H, W, 3]."""
    texture = 1 + 0.08 * smooth_noise(rng, (16, 64, 64), head.u.shape)
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
