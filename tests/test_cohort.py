import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from brainseg_jax.data.canvas import resize_images, resize_masks
from brainseg_jax.data.lgg import prepare
from brainseg_jax.data.load_cohort import load_cohort
from brainseg_jax.data.normalization import Normalization, fit, normalize
from brainseg_jax.data.phantom import SLICES
from brainseg_jax.errors import InputError


@pytest.fixture(scope="module")
def native(dataset_folder):
    return load_cohort(dataset_folder, image_size=256, normalization="volume_zscore")


def on_disk(phantom_folder, patient: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    image = Image.open(phantom_folder / patient / f"{patient}_{number}.tif")
    mask = Image.open(phantom_folder / patient / f"{patient}_{number}_mask.tif")
    return np.asarray(image), np.asarray(mask)


def test_native_size_holds_the_files_pixel_for_pixel(native, phantom_folder):
    assert native.slices.images.shape == (8 * SLICES, 256, 256, 3) and native.slices.images.dtype == np.uint8
    assert native.slices.target_bits.shape == (8 * SLICES, 256, 256, 1) and native.slices.target_bits.dtype == np.uint8
    np.testing.assert_array_equal(np.concatenate(native.labels), native.slices.target_bits[..., 0])
    assert native.cases == tuple(sorted(path.name for path in phantom_folder.iterdir() if path.is_dir()))
    assert native.patients == tuple(case[:12] for case in native.cases)
    assert native.groups == tuple(case.split("_")[1] for case in native.cases)
    for index in range(0, 8 * SLICES, 5):
        image, mask = on_disk(
            phantom_folder, native.cases[native.case_index[index]], native.numbers[index // SLICES][index % SLICES]
        )
        np.testing.assert_array_equal(native.slices.images[index], image)
        np.testing.assert_array_equal(native.slices.target_bits[index, ..., 0] * 255, mask)


def test_slices_stand_in_order_of_patient_and_number(cohort):
    np.testing.assert_array_equal(cohort.case_index, np.repeat(np.arange(8), SLICES))
    assert cohort.numbers == (tuple(range(1, SLICES + 1)),) * 8
    assert cohort.case_index.dtype == np.int32


def test_smaller_size_shrinks_the_same_slices(cohort, native):
    assert cohort.slices.images.shape == (8 * SLICES, 64, 64, 3)
    np.testing.assert_array_equal(np.concatenate(cohort.labels), native.slices.target_bits[..., 0])
    index = SLICES // 2
    blocks = native.slices.images[index].reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.corrcoef(cohort.slices.images[index].ravel(), blocks.ravel())[0, 1] > 0.98
    covered = native.slices.target_bits.reshape(-1, 64, 4, 64, 4).sum(axis=(2, 4))
    np.testing.assert_array_equal(cohort.slices.target_bits[..., 0], covered >= 8)  # half of the 16 pixels
    assert cohort.fingerprint == native.fingerprint != ""


def test_constants_come_from_the_native_volume_of_each_patient(cohort, native):
    for place in range(8):
        expected = fit(native.slices.images[place * SLICES : (place + 1) * SLICES], "volume_zscore")
        for values, value in zip(cohort.normalization, expected, strict=True):
            assert values.shape == (8, 3)
            np.testing.assert_array_equal(values[place], value)


def test_tumor_is_counted_on_the_native_masks(cohort, phantom_folder):
    pair = (cohort.cases[6], cohort.cases[2])
    masks = [on_disk(phantom_folder, patient, number)[1] for patient in pair for number in range(1, SLICES + 1)]
    chosen = cohort.slices_of(pair)
    assert cohort.target_fractions[chosen].mean() == pytest.approx(np.mean(np.stack(masks) > 0))
    np.testing.assert_array_equal(cohort.indices(pair), [6, 2])
    assert chosen.tolist() == [*range(2 * SLICES, 3 * SLICES), *range(6 * SLICES, 7 * SLICES)]
    assert cohort.has_target[chosen].sum() == sum(mask.any() for mask in masks)
    with pytest.raises(InputError, match="TCGA_XX_0001_20000101"):
        cohort.slices_of(["TCGA_XX_0001_20000101"])


@pytest.mark.parametrize("size", [64, 96, 100])
def test_image_resize_agrees_with_jaxs_antialiased_linear_resize(native, size):
    images = native.slices.images[6:9]
    expected = jax.image.resize(images.astype(np.float32), (3, size, size, 3), "linear", antialias=True)
    difference = resize_images(images, size) - np.asarray(expected)
    assert np.abs(difference).max() <= 1.01  # two roundings to whole levels
    assert abs(difference.mean()) < 0.05


@pytest.mark.parametrize("size", [96, 160])
def test_mask_resize_is_by_area_also_where_the_sizes_do_not_divide(size):
    """Computes the area by repeating each pixel until the sizes divide."""
    masks = np.random.default_rng(0).random((2, 256, 256)) < 0.5
    fine = np.lcm(256, size)
    repeated = masks.repeat(fine // 256, axis=1).repeat(fine // 256, axis=2)
    step = fine // size
    area = repeated.reshape(2, size, step, size, step).sum(axis=(2, 4))
    resized = resize_masks(masks, size)
    assert resized.dtype == bool
    np.testing.assert_array_equal(resized, area * 2 >= step * step)


def test_bad_name_or_folder_is_refused(dataset_folder, tmp_path):
    with pytest.raises(InputError, match="zscore"):
        load_cohort(dataset_folder, image_size=16, normalization="zscore")
    with pytest.raises(InputError, match=str(tmp_path)):
        load_cohort(tmp_path, image_size=16, normalization="rescale")


def test_masks_that_are_not_binary_are_refused(dataset_folder, monkeypatch):
    """0 and 255, as scikit-image wrote them in the published PyTorch code."""
    builder = tfds.builder_from_directory(dataset_folder)
    records = [{**record, "mask": record["mask"] * np.uint8(255)} for record in builder.as_data_source()["slices"]]
    monkeypatch.setattr(builder, "as_data_source", lambda: {"slices": records})
    monkeypatch.setattr(tfds, "builder_from_directory", lambda folder: builder)
    with pytest.raises(InputError, match=r"damaged \(case TCGA_PA_0001_20000101 has undescribed labels 255"):
        load_cohort(dataset_folder, image_size=16, normalization="rescale")


def test_real_patients_show_their_tumors_on_flair(lgg_folder, tmp_path):
    folder = prepare(str(lgg_folder), tmp_path, progress=False)
    real = load_cohort(folder, image_size=128, normalization="volume_zscore")
    assert len(real.cases) >= 3 and 0.001 < real.target_fractions.mean() < 0.05
    brighter = []
    for place, case in enumerate(real.cases):
        chosen = real.slices_of([case])
        assert real.has_target[chosen].any()
        constants = Normalization(*(np.tile(values[place], (len(chosen), 1)) for values in real.normalization))
        flair = np.asarray(normalize(jnp.asarray(real.slices.images[chosen]), constants))[..., 1:2]
        assert abs(flair.mean()) < 0.2 and 0.7 < flair.std() < 1.1  # somewhat smoothed by the resize
        brighter.append(flair[real.slices.target_bits[chosen] == 1].mean())
    assert np.median(brighter) > 1  # standard deviations above the mean


def test_a_damaged_file_of_a_prepared_set(dataset_folder, tmp_path):
    folder = shutil.copytree(dataset_folder, tmp_path / "lgg_mri" / "set" / "1.0.0")
    record_file = next(folder.glob("*.array_record*"))
    record_file.write_bytes(record_file.read_bytes()[:-70000])
    with pytest.raises(InputError, match=r"damaged.*prepare again"):
        load_cohort(folder, image_size=32, normalization="rescale")
