"""Synthetic patients as a cohort in other formats: four sequences, three nested regions, several time points.

The anatomy comes from `phantom_anatomy`, on small grids with a different size and spacing for each patient. Each layout
can hold the same patients, so a study in one format can be repeated in another.
"""

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from brainseg_jax.data.phantom_anatomy import GRAY, WHITE, head_coordinates, smooth_noise, soften, tissues, tumor_depth
from brainseg_jax.errors import InputError
from brainseg_jax.scans.grid import Grid
from brainseg_jax.scans.intensity import to_8_bits

SEQUENCES = ("t1n", "t1c", "t2w", "t2f")
NECROSIS, EDEMA, ENHANCING = 1, 2, 3  # the labels of BraTS 2023
REGIONS = {"whole tumor": [2, 1, 3], "tumor core": [1, 3], "enhancing tumor": [3]}
_BIDS_SUFFIXES = ("T1w", "ce-gd_T1w", "T2w", "FLAIR")
_INTERVAL = 3  # every third patient has several time points
# One row per tissue, in the order of `phantom_anatomy`; columns as SEQUENCES; 1: the scanner's gain.
_BRIGHTNESS = np.array(
    [
        [0.00, 0.00, 0.00, 0.00],
        [0.95, 0.95, 0.60, 0.80],
        [0.08, 0.08, 0.07, 0.07],
        [0.22, 0.22, 1.00, 0.10],
        [0.50, 0.52, 0.55, 0.52],
        [0.64, 0.66, 0.40, 0.43],
        [0.40, 0.50, 0.30, 0.35],
        [0.30, 1.10, 0.10, 0.15],
    ],
    np.float32,
)
# Change by the tumor, for labels 0 to 3; columns as SEQUENCES.
_TUMOR = np.array(
    [[0, 0, 0, 0], [-0.20, -0.25, 0.45, 0.05], [-0.12, -0.10, 0.25, 0.40], [-0.10, 0.55, 0.20, 0.30]], np.float32
)


@dataclass(frozen=True, eq=False)
class PhantomCase:
    """One scan.

    Attributes:
      patient: index from 0.
      time: index of the time point, from 0.
      grid: voxel grid in the file.
      voxels: [C, S, H, W] int16, axial slices from foot to crown.
      labels: [S, H, W] uint8: 0, NECROSIS, EDEMA, ENHANCING.
    """

    patient: int
    time: int
    grid: Grid
    voxels: np.ndarray
    labels: np.ndarray

    @property
    def name(self) -> str:
        """Such as `phantom-001-0`."""
        return f"{self.patient_name}-{self.time}"

    @property
    def patient_name(self) -> str:
        """Such as `phantom-001`."""
        return f"phantom-{self.patient + 1:03d}"

    @property
    def group(self) -> str:
        """A fictitious institution."""
        return "PA" if self.patient % 2 == 0 else "PB"


def write_phantom_cohort(folder: Path, *, layout: str, patients: int, seed: int, time_points: int = 2) -> Path:
    """Writes synthetic patients in a folder layout that users have.

    Patient k depends only on `seed` and k. Every third patient, starting with the first, has several time points, over
    which the tumor grows.

    Args:
      folder: parent of the cohort's folder, which is written completely or not at all.
      layout: `brats`, `bids`, `nnunet`, `msd`, or `pairs` (PNG slices of FLAIR with masks of the whole tumor).
      patients: number of patients, 1 to 999.
      seed: at least 0.
      time_points: of every third patient, 1 to 9.

    Returns:
      The folder of the cohort, for `list_cohort`.

    Raises:
      InputError: an argument is out of range, or the folder of the cohort already exists.
    """
    if layout not in _LAYOUTS:
        raise InputError(f"phantom cohort: layout={layout!r}; give one of {', '.join(_LAYOUTS)}")
    if not 1 <= patients <= 999 or seed < 0 or not 1 <= time_points <= 9:
        raise InputError(
            f"phantom cohort: patients={patients}, seed={seed}, time_points={time_points}: give 1 to 999 patients, a "
            "seed of at least 0, and 1 to 9 time points"
        )
    name, write = _LAYOUTS[layout]
    target = Path(folder) / name
    if target.exists():
        raise InputError(f"{target}: already exists; delete it or give another folder")
    unfinished = target.with_name(f"{name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write(unfinished, make_cases(patients=patients, seed=seed, time_points=time_points))
    unfinished.rename(target)
    return target


def make_cases(*, patients: int, seed: int, time_points: int) -> Iterator[PhantomCase]:
    """Yields the cases of `write_phantom_cohort` one after the other."""
    for patient in range(patients):
        for time in range(time_points if patient % _INTERVAL == 0 else 1):
            yield _make_case(seed, patient, time)


def _make_case(seed: int, patient: int, time: int) -> PhantomCase:
    anatomy = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, patient])))
    noise = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, patient, time + 1])))
    height = int(anatomy.integers(15, 18)) * 4
    shape = (int(anatomy.integers(11, 14)), height, height - 8)
    voxels, labels = paint(anatomy, noise, shape, time=time)
    spacing = 230 / (height * float(anatomy.uniform(0.95, 1.05)))  # mm in the plane; a head is about 200 mm long
    return PhantomCase(
        patient,
        time,
        _grid(shape, (round(165 / shape[0], 2), round(spacing, 2)), flipped=patient % 2 == 1),
        voxels,
        labels,
    )


def paint(
    anatomy: np.random.Generator, noise: np.random.Generator, shape: tuple[int, int, int], *, time: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a head with a tumor.

    Args:
      anatomy: random generator of head and tumor.
      noise: random generator of the scan.
      shape: (S, H, W). The head has the same size as in an image of H x H.
      time: index of the time point; the tumor grows with it.

    Returns:
      [C, S, H, W] int16 with the channels of `SEQUENCES`, and labels [S, H, W] uint8.
    """
    head = head_coordinates(anatomy, shape, scale=shape[1] / 256)
    depth = tumor_depth(anatomy, head) + np.float32(0.08 + 0.12 * time)
    tissue = tissues(anatomy, head, depth > 0)
    inside = (tissue == GRAY) | (tissue == WHITE)
    labels = np.where(inside & (depth > 0), EDEMA, 0).astype(np.uint8)
    labels[inside & (depth > 0.35)] = ENHANCING
    labels[inside & (depth > 0.65)] = NECROSIS
    brightness = soften(np.take(_BRIGHTNESS.T, tissue, axis=1) + np.take(_TUMOR.T, labels, axis=1))
    return _scan(noise, brightness), labels


def _scan(rng: np.random.Generator, brightness: np.ndarray) -> np.ndarray:
    """Adds texture, gain and Rician noise to each sequence: [C, S, H, W] to int16."""
    shape = brightness.shape[1:]
    texture = 1 + 0.08 * smooth_noise(rng, (6, 16, 16), shape)
    scanned = np.empty(brightness.shape, np.int16)
    for channel, contrast in enumerate(brightness):
        gain, noise = rng.uniform([300, 8], [1200, 16]).tolist()
        signal = contrast.clip(0) * texture * gain
        real = signal + noise * rng.standard_normal(shape, np.float32)
        imaginary = noise * rng.standard_normal(shape, np.float32)
        scanned[channel] = np.sqrt(real * real + imaginary * imaginary)
    return scanned


def _grid(shape: tuple[int, int, int], spacing: tuple[float, float], *, flipped: bool) -> Grid:
    """Grid of a file for [S, H, W] slices; its axes point right and front, or left and back if flipped."""
    slices, height, width = shape
    between, within = spacing
    sign = -1 if flipped else 1
    affine = np.diag([sign * within, sign * within, between, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array([width, height, slices]) - 1) / 2)
    return Grid(affine, (width, height, slices))


def _save(case: PhantomCase, slices: np.ndarray, path: Path) -> None:
    """Writes [S, H, W] or [S, H, W, C] as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = [slices] if slices.ndim == 3 else list(np.moveaxis(slices, -1, 0))
    turned = [case.grid.from_slices(channel) for channel in channels]
    image = nib.Nifti1Image(turned[0] if slices.ndim == 3 else np.stack(turned, axis=-1), case.grid.affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _write_brats(root: Path, cases: Iterator[PhantomCase]) -> None:
    for case in cases:
        name = f"BraTS-GLI-{case.patient + 1:05d}-{case.time:03d}"
        for sequence, voxels in zip(SEQUENCES, case.voxels, strict=True):
            _save(case, voxels, root / name / f"{name}-{sequence}.nii.gz")
        _save(case, case.labels, root / name / f"{name}-seg.nii.gz")


def _write_bids(root: Path, cases: Iterator[PhantomCase]) -> None:
    """Also writes `cohort.toml`, because BIDS cannot describe nested regions."""
    _write_json(root / "dataset_description.json", {"Name": "synthetic patients", "BIDSVersion": "1.9.0"})
    targets = "".join(f'"{name}" = {values}\n' for name, values in REGIONS.items())
    (root / "cohort.toml").write_text(f"[targets]\n{targets}")
    for case in cases:
        subject, session = f"sub-{case.patient + 1:03d}", f"ses-{case.time + 1}"
        folder, name = Path(subject) / session / "anat", f"{subject}_{session}"
        for suffix, voxels in zip(_BIDS_SUFFIXES, case.voxels, strict=True):
            _save(case, voxels, root / folder / f"{name}_{suffix}.nii.gz")
        _save(case, case.labels, root / "derivatives" / "manual" / folder / f"{name}_dseg.nii.gz")


def _write_nnunet(root: Path, cases: Iterator[PhantomCase]) -> None:
    """Uses regions. Also writes `patients.csv`, because nnU-Net has no time points."""
    written = []
    for case in cases:
        for number, voxels in enumerate(case.voxels):
            _save(case, voxels, root / "imagesTr" / f"{case.name}_{number:04d}.nii.gz")
        _save(case, case.labels, root / "labelsTr" / f"{case.name}.nii.gz")
        written.append(case)
    described = {
        "channel_names": {str(number): sequence for number, sequence in enumerate(SEQUENCES)},
        "labels": {"background": 0, **REGIONS},
        "regions_class_order": [EDEMA, NECROSIS, ENHANCING],
        "numTraining": len(written),
        "file_ending": ".nii.gz",
    }
    _write_json(root / "dataset.json", described)
    _write_patients(root, written)


def _write_msd(root: Path, cases: Iterator[PhantomCase]) -> None:
    """Uses exclusive labels, because the format has no regions. Also writes `patients.csv`."""
    written = []
    for case in cases:
        _save(case, np.moveaxis(case.voxels, 0, -1), root / "imagesTr" / f"{case.name}.nii.gz")
        _save(case, case.labels, root / "labelsTr" / f"{case.name}.nii.gz")
        written.append(case)
    described = {
        "name": "Phantom",
        "modality": {str(number): sequence for number, sequence in enumerate(SEQUENCES)},
        "labels": {"0": "background", "1": "necrosis", "2": "edema", "3": "enhancing tumor"},
        "numTraining": len(written),
        "training": [
            {"image": f"./imagesTr/{case.name}.nii.gz", "label": f"./labelsTr/{case.name}.nii.gz"} for case in written
        ],
        "test": [],
    }
    _write_json(root / "dataset.json", described)
    _write_patients(root, written)


def _write_pairs(root: Path, cases: Iterator[PhantomCase]) -> None:
    """Writes PNG slices of FLAIR, masks of the whole tumor with 0 and 255, and `patients.csv`."""
    written = []
    for case in cases:
        flair, _ = to_8_bits(case.voxels[SEQUENCES.index("t2f")])
        for number, (pixels, labels) in enumerate(zip(flair, case.labels, strict=True), start=1):
            Image.fromarray(pixels).save(root / f"{case.name}_{number}.png")
            Image.fromarray((labels > 0) * np.uint8(255)).save(root / f"{case.name}_{number}_mask.png")
        written.append(case)
    _write_patients(root, written)


def _write_patients(root: Path, cases: list[PhantomCase]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "patient", "group"])
    writer.writerows([case.name, case.patient_name, case.group] for case in cases)
    (root / "patients.csv").write_text(text.getvalue())


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


# Folder and writer of each layout.
_LAYOUTS: dict[str, tuple[str, Callable[[Path, Iterator[PhantomCase]], None]]] = {
    "brats": ("brats_phantom", _write_brats),
    "bids": ("bids_phantom", _write_bids),
    "nnunet": ("Dataset901_Phantom", _write_nnunet),
    "msd": ("Task91_Phantom", _write_msd),
    "pairs": ("pairs_phantom", _write_pairs),
}
