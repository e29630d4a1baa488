import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainseg_jax.data.phantom import SLICES, write_phantom
from brainseg_jax.errors import InputError

TIFF_COMPRESSION = 259  # tag; 1 means none


def read_case(case: Path) -> tuple[np.ndarray, np.ndarray]:
    numbers = range(1, len(list(case.glob("*_mask.tif"))) + 1)
    volume = np.stack([np.asarray(Image.open(case / f"{case.name}_{n}.tif")) for n in numbers])
    mask = np.stack([np.asarray(Image.open(case / f"{case.name}_{n}_mask.tif")) for n in numbers])
    return volume, mask


@pytest.fixture(scope="module")
def cases(phantom_folder):
    return [read_case(case) for case in sorted(phantom_folder.iterdir()) if case.is_dir()]


def test_files_look_like_kaggles(phantom_folder, cases):
    assert phantom_folder.name == "kaggle_3m"
    assert len(cases) == 8
    for volume, mask in cases:
        assert volume.shape == (SLICES, 256, 256, 3) and volume.dtype == np.uint8
        assert mask.shape == (SLICES, 256, 256) and mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}
    for path in phantom_folder.glob("*/*.tif"):
        assert Image.open(path).tag_v2[TIFF_COMPRESSION] == 1


def test_table_has_a_row_for_each_patient(phantom_folder):
    folders = sorted(path.name for path in phantom_folder.iterdir() if path.is_dir())
    rows = list(csv.DictReader((phantom_folder / "data.csv").open()))
    assert [row["Patient"] for row in rows] == [folder.rsplit("_", 1)[0] for folder in sorted(folders, key=number)]
    assert all(row["gender"] in "12" and 20 <= int(row["age_at_initial_pathologic"]) <= 75 for row in rows)
    assert {folder.split("_")[1] for folder in folders} == {"PA", "PB", "PC"}


def number(folder: str) -> int:
    return int(folder.split("_")[2])


def test_tumors_are_of_a_realistic_size(cases):
    fractions = [np.mean(mask > 0) for _, mask in cases]
    tumor_slices = [np.mean(mask.any(axis=(1, 2))) for _, mask in cases]
    assert min(fractions) > 0.002 and 0.01 < np.mean(fractions) < 0.03
    assert max(fractions) > 2 * min(fractions)
    assert 0.35 < np.mean(tumor_slices) < 0.6
    assert not any(mask[0].any() or mask[-1].any() for _, mask in cases)


def best_threshold_dice(values: np.ndarray, mask: np.ndarray) -> float:
    tumor = np.bincount(values[mask > 0], minlength=256)[::-1].cumsum()
    bright = np.bincount(values.ravel(), minlength=256)[::-1].cumsum()
    return float(np.max(2 * tumor / (bright + tumor[-1])))


def test_flair_shows_tumors_best_but_no_threshold_finds_them(cases):
    """Even the best threshold of a patient, chosen with the reference, is far from the mask."""
    flair = [best_threshold_dice(volume[..., 1], mask) for volume, mask in cases]
    assert np.mean(flair) < 0.65
    for volume, mask in cases:
        tissue = volume.min(axis=-1) > 25
        outside = [np.median(volume[tissue & (mask == 0), channel]) for channel in range(3)]
        contrast = np.median(volume[mask > 0], axis=0) / outside
        assert contrast.argmax() == 1 and contrast[1] > 1.3


def test_a_patient_depends_on_seed_and_place_only(phantom_folder, tmp_path):
    again = write_phantom(tmp_path / "again", patients=2, seed=0)
    other = write_phantom(tmp_path / "other", patients=1, seed=1)
    paths = [path.relative_to(again) for path in sorted(again.rglob("*.tif"))]
    assert len(paths) == 2 * 2 * SLICES
    for path in paths:
        assert (again / path).read_bytes() == (phantom_folder / path).read_bytes()
    middle = f"TCGA_PA_0001_20000101/TCGA_PA_0001_20000101_{SLICES // 2}.tif"
    assert (again / middle).read_bytes() != (other / middle).read_bytes()


def test_refuses_bad_numbers_and_an_existing_folder(tmp_path):
    with pytest.raises(InputError, match="patients=0"):
        write_phantom(tmp_path, patients=0, seed=0)
    with pytest.raises(InputError, match="seed=-1"):
        write_phantom(tmp_path, patients=1, seed=-1)
    assert not list(tmp_path.iterdir())
    (tmp_path / "kaggle_3m").mkdir()
    with pytest.raises(InputError, match="already exists"):
        write_phantom(tmp_path, patients=1, seed=0)
