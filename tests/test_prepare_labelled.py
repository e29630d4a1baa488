"""One labelled case: volumes in any orientation, images, missing channels, and messages for invalid cases."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from brainseg_jax.data.formats.listing import CaseFiles
from brainseg_jax.data.labelled import open_case, read_case
from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import Description, Target

TWO = Description(("T1", "FLAIR"), (Target("core", (1,)), Target("edema", (2,))))
ONE = Description(("T1",), (Target("tumor", (1,)),))
RAS = np.diag([5.0, 6.0, 8.0, 1.0])  # mm to the right, the front and the crown
SHAPE = (4, 5, 6)


def volume(seed: int = 0) -> np.ndarray:
    """Distinct values 0 to 119, [I, J, K] uint8: 8-bit values that stay unchanged."""
    return np.random.default_rng(seed).permutation(120).reshape(SHAPE).astype(np.uint8)


def labels() -> np.ndarray:
    found = np.zeros(SHAPE, np.uint8)
    found[0, 1, 2] = 1
    found[3, 4, 5] = found[3, 4, 4] = 2
    return found


def save(path: Path, values: np.ndarray, affine: np.ndarray = RAS, codes: str | None = None) -> Path:
    """Writes NIfTI, first reoriented to axes `codes`: the same voxels at the same positions."""
    image = nib.Nifti1Image(values, affine)
    if codes:
        turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
        image = image.as_reoriented(turn)
    nib.save(image, path)
    return path


def case(images: dict[str, Path], label: Path | None, name: str = "a") -> CaseFiles:
    return CaseFiles(name, name, "", images, label)


def two_channels(folder: Path, *, flair: str | None = None, seg: str | None = None) -> CaseFiles:
    return case(
        {"T1": save(folder / "t1.nii.gz", volume(0)), "FLAIR": save(folder / "flair.nii.gz", volume(1), codes=flair)},
        save(folder / "seg.nii.gz", labels(), codes=seg),
    )


def refused(files: CaseFiles, description: Description) -> str:
    with pytest.raises(InputError) as caught:
        read_case(files, description)
    return str(caught.value)


def test_a_volume_becomes_axial_slices_from_foot_to_crown(tmp_path):
    found, notes = read_case(two_channels(tmp_path), TWO)
    # Index i runs to the right, j to the front, k to the crown; a slice has the front up and the left on the right.
    expected = volume(0)[::-1, ::-1, :].transpose(2, 1, 0)
    np.testing.assert_array_equal(found.voxels[..., 0], expected)
    np.testing.assert_array_equal(found.voxels[..., 1], volume(1)[::-1, ::-1, :].transpose(2, 1, 0))
    assert found.voxels.shape == (6, 5, 4, 2) and found.voxels.dtype == np.uint8
    assert found.labels.dtype == np.uint8
    assert {tuple(int(i) for i in at): found.labels[tuple(at)] for at in np.argwhere(found.labels)} == {
        (2, 3, 3): 1,  # k, 4 - j, 3 - i
        (5, 0, 0): 2,
        (4, 0, 0): 2,
    }
    assert found.spacing == (8.0, 6.0, 5.0)
    assert found.numbers == tuple(range(6))
    assert notes == ()


@pytest.mark.parametrize("flair", ["LPS", "PIR", "ASR"])
@pytest.mark.parametrize("seg", ["RAS", "LPS", "SLA"])
def test_other_orientations_are_brought_over_by_the_affine(tmp_path, flair, seg):
    found, _ = read_case(two_channels(tmp_path, flair=flair, seg=seg), TWO)
    (tmp_path / "same").mkdir()
    expected, _ = read_case(two_channels(tmp_path / "same"), TWO)
    np.testing.assert_array_equal(found.voxels, expected.voxels)
    np.testing.assert_array_equal(found.labels, expected.labels)


@pytest.mark.parametrize("codes", ["LPS", "ILA", "PRS"])
def test_a_case_in_another_orientation_is_the_same_volume(tmp_path, codes):
    files = {"T1": save(tmp_path / "t1.nii", volume(), codes=codes)}
    found, _ = read_case(case(files, None), ONE)
    np.testing.assert_array_equal(found.voxels[..., 0], volume()[::-1, ::-1, :].transpose(2, 1, 0))
    assert found.spacing == (8.0, 6.0, 5.0)
    assert found.labels is None


def test_an_array_of_all_channels_is_split_along_its_fourth_axis(tmp_path):
    stacked = save(tmp_path / "image.nii.gz", np.stack([volume(0), volume(1)], axis=-1))
    found, _ = read_case(case({"": stacked}, save(tmp_path / "seg.nii.gz", labels())), TWO)
    (tmp_path / "same").mkdir()
    expected, _ = read_case(two_channels(tmp_path / "same"), TWO)
    np.testing.assert_array_equal(found.voxels, expected.voxels)
    np.testing.assert_array_equal(found.labels, expected.labels)
    words = refused(case({"": save(tmp_path / "three.nii.gz", volume())}, None), TWO)
    assert f"{tmp_path / 'three.nii.gz'}: an array of shape (4, 5, 6), that is 1 channel(s)" in words
    assert "the description has 2 (T1, FLAIR)" in words
    words = refused(case({"T1": stacked, "FLAIR": save(tmp_path / "flair.nii.gz", volume())}, None), TWO)
    assert f"{stacked}: an array of shape (4, 5, 6, 2); a file of one channel has three axes" in words
    words = refused(case({"T1": stacked}, None), ONE)
    assert "that is 2 channel(s); the description has 1 (T1)" in words


@pytest.mark.parametrize("key", ["T1", ""])
def test_a_single_channel_may_lie_along_a_fourth_axis_of_length_1(tmp_path, key):
    path = save(tmp_path / "image.nii.gz", volume()[..., np.newaxis])
    found, _ = read_case(case({key: path}, save(tmp_path / "seg.nii.gz", (labels() == 1).astype(np.uint8))), ONE)
    np.testing.assert_array_equal(found.voxels[..., 0], volume()[::-1, ::-1, :].transpose(2, 1, 0))


def test_a_label_map_of_four_axes_is_refused(tmp_path):
    files = two_channels(tmp_path)
    save(files.labels, np.stack([labels(), labels()], axis=-1))
    assert "seg.nii.gz: an array of shape (4, 5, 6, 2); a label map has three axes" in refused(files, TWO)


def test_each_channel_is_mapped_to_8_bits_by_itself(tmp_path):
    ramp = np.linspace(0, 1000, 120, dtype=np.float32).reshape(SHAPE)
    files = {"T1": save(tmp_path / "t1.nii", ramp), "FLAIR": save(tmp_path / "flair.nii", ramp * 7 - 3)}
    reading = open_case(case(files, save(tmp_path / "seg.nii", labels())), TWO)
    for channel in range(2):
        assert (reading.volume.voxels[..., channel].min(), reading.volume.voxels[..., channel].max()) == (0, 255)
    assert reading.ranges["T1"] == (0.0, 1000.0)
    assert reading.ranges["FLAIR"] == pytest.approx((-3.0, 6997.0))
    assert sum("mapped to 0 to 255" in note for note in reading.notes) == 2


def test_a_missing_channel_is_replaced_by_the_stand_in(tmp_path):
    described = Description(("T1", "FLAIR"), TWO.targets, stand_in="FLAIR")
    files = two_channels(tmp_path)
    only = case({"FLAIR": files.images["FLAIR"]}, files.labels)
    reading = open_case(only, described)
    np.testing.assert_array_equal(reading.volume.voxels[..., 0], reading.volume.voxels[..., 1])
    np.testing.assert_array_equal(reading.volume.voxels[..., 1], volume(1)[::-1, ::-1, :].transpose(2, 1, 0))
    assert reading.replaced == ("T1",) and set(reading.ranges) == {"FLAIR"}
    assert "case a has no file of T1: add the file, name a channel that replaces missing ones" in refused(only, TWO)
    without = case({"T1": files.images["T1"]}, files.labels)
    assert "no file of FLAIR: FLAIR, which replaces missing channels, is missing itself" in refused(without, described)


def test_a_constant_channel_counts_as_missing_if_another_replaces_it(tmp_path):
    files = two_channels(tmp_path)
    save(files.images["T1"], np.zeros(SHAPE, np.float32))
    reading = open_case(files, Description(("T1", "FLAIR"), TWO.targets, stand_in="FLAIR"))
    np.testing.assert_array_equal(reading.volume.voxels[..., 0], reading.volume.voxels[..., 1])
    assert reading.replaced == ("T1",)
    assert "T1 is constant and is replaced by FLAIR" in reading.notes
    assert "t1.nii.gz: T1 has only the values 0: a mask, or an empty volume" in refused(files, TWO)


@pytest.mark.parametrize(
    ("affine", "shape", "words"),
    [
        (nib.affines.from_matvec(np.diag([5, 6, 8]), [0, 0, 3]), SHAPE, "centers 3 mm apart (right 0, front 0, up 3)"),
        (np.diag([5.0, 6.0, 6.0, 1.0]), SHAPE, "voxels of 5 x 6 x 6 mm against 5 x 6 x 8"),
        (RAS, (4, 5, 5), "4 x 5 x 5 voxels against 4 x 5 x 6"),
        (np.eye(4), SHAPE, "voxels of 1 x 1 x 1 mm against 5 x 6 x 8"),
    ],
)
def test_another_place_or_size_is_refused(tmp_path, affine, shape, words):
    files = two_channels(tmp_path)
    save(files.labels, np.zeros(shape, np.uint8), affine)
    save(files.images["FLAIR"], np.arange(np.prod(shape), dtype=np.uint8).reshape(shape), affine)
    lines = refused(files, TWO).split("\n")
    assert len(lines) == 2, "both files are named"
    for path, line in zip((files.images["FLAIR"], files.labels), lines, strict=True):
        assert line.startswith(f"{path}: its grid is not that of t1.nii.gz: ")
        assert words in line
        assert "resample it to that grid, or correct its header" in line


def with_labels(folder: Path, values: np.ndarray) -> CaseFiles:
    return case({"T1": save(folder / "t1.nii", volume())}, save(folder / "seg.nii", values))


@pytest.mark.parametrize("one", [np.float32(0.99999997), 0.9995, 1.0])
def test_float_labels_close_to_whole_numbers_are_rounded(tmp_path, one):
    found, notes = read_case(with_labels(tmp_path, (labels() == 1) * one), ONE)
    assert np.count_nonzero(found.labels) == 1 and found.labels.max() == 1
    assert notes == (() if one == 1 else ("labels rounded to the nearest whole numbers",))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.5, "values that are not whole numbers: 0.5 (3 voxels). If it was resampled"),
        (np.nan, "values that are not whole numbers: nan (3 voxels)"),
        (np.inf, "values that are not whole numbers: inf (3 voxels)"),
        (-1.0, "-1 (3 voxels); labels are whole numbers from 0 to 255"),
        (300.0, "300 (3 voxels); labels are whole numbers from 0 to 255"),
        (4.0, "4 (3 voxels); the description has 0, 1 (tumor). Correct the file, or add the value"),
        (255.0, None),
    ],
)
def test_other_label_values_are_refused_with_value_and_count(tmp_path, value, words):
    files = with_labels(tmp_path, np.where(labels() > 0, value, 0.0))
    if words:
        assert refused(files, ONE).startswith(f"{tmp_path / 'seg.nii'}: {words}")
    else:  # a mask of a single target
        found, notes = read_case(files, ONE)
        assert sorted(np.unique(found.labels)) == [0, 1] and found.labels.sum() == 3
        assert notes == ("a mask of 0 and 255, read as 0 and 1",)


def test_255_is_a_mask_only_where_there_is_one_target_and_no_label_255(tmp_path):
    files = with_labels(tmp_path, np.where(labels() > 0, 255, 0).astype(np.uint8))
    two = Description(("T1",), TWO.targets)
    assert "255 (3 voxels); the description has 0, 1, 2" in refused(files, two)
    ignoring = Description(("T1",), ONE.targets, ignore=255)
    assert sorted(np.unique(read_case(files, ignoring)[0].labels)) == [0, 255]


def test_the_ignored_label_is_kept_and_a_case_without_target_is_noted(tmp_path):
    files = with_labels(tmp_path, np.full(SHAPE, 9, np.uint8))
    found, notes = read_case(files, Description(("T1",), ONE.targets, ignore=9))
    assert (found.labels == 9).all()
    assert notes == ("no voxel of any target",)


def test_all_faults_of_a_case_are_listed_at_once(tmp_path):
    files = two_channels(tmp_path)
    files.images["T1"].write_bytes(b"text")
    files.images["FLAIR"].write_bytes(gzip.compress(bytes(20)))
    save(files.labels, labels() * np.uint8(3))
    lines = refused(files, TWO).split("\n")
    assert [line.split(": ")[0] for line in lines] == [
        str(tmp_path / f) for f in ("t1.nii.gz", "flair.nii.gz", "seg.nii.gz")
    ]
    assert "3 (1 voxel), 6 (2 voxels); the description has 0, 1, 2 (core, edema)" in lines[2]


def write_slice(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_images_are_slices_without_spacing(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 7, 9, 3), np.uint8)
    marks = (rng.random((2, 7, 9)) < 0.2).astype(np.uint8)
    images = tuple((n, write_slice(tmp_path / f"a_{n}.png", pixels[n - 4])) for n in (4, 5))
    masks = tuple((n, write_slice(tmp_path / f"a_{n}_mask.png", marks[n - 4] * np.uint8(255))) for n in (4, 5))
    rgb = Description(("pre", "FLAIR", "post"), ONE.targets)
    found, notes = read_case(case({"": images}, masks), rgb)
    np.testing.assert_array_equal(found.voxels, pixels)
    np.testing.assert_array_equal(found.labels, marks)
    assert found.spacing is None and found.numbers == (4, 5)
    assert notes == ("a mask of 0 and 255, read as 0 and 1",)
    words = refused(case({"": images}, masks), ONE)
    assert f"{tmp_path / 'a_4.png'}: a color image; expected one value per pixel" in words
    words = refused(case({"": images}, masks[:1]), rgb)
    assert "a_4_mask.png: 1 slice(s) from number 4 on, of 7 x 9 pixels; a_4.png has 2 slice(s)" in words
    words = refused(case({"": images}, tuple((n + 1, path) for n, path in masks)), rgb)
    assert "a_4_mask.png: 2 slice(s) from number 5 on, of 7 x 9 pixels; a_4.png has 2 slice(s) from number 4" in words


def test_gray_images_one_file_a_channel(tmp_path):
    rng = np.random.default_rng(0)
    t1, flair = rng.integers(0, 256, (2, 7, 9), np.uint8)
    color = np.stack([flair] * 3, axis=-1)
    mark = (rng.random((7, 9)) < 0.2).astype(np.uint8) * 2
    files = {"T1": write_slice(tmp_path / "t1.png", t1), "FLAIR": write_slice(tmp_path / "flair.tif", color)}
    found, notes = read_case(case(files, write_slice(tmp_path / "seg.png", mark)), TWO)
    np.testing.assert_array_equal(found.voxels[0], np.stack([t1, flair], axis=-1))
    np.testing.assert_array_equal(found.labels[0], mark)
    assert notes == ("a color image with three equal channels; read as gray",)
    write_slice(tmp_path / "flair.tif", flair[:6])
    assert "flair.tif: 1 slice(s) from number 1 on, of 6 x 9 pixels; t1.png has" in refused(case(files, None), TWO)
    write_slice(tmp_path / "flair.tif", flair.astype(np.uint16))
    assert "flair.tif: 16 bits per value" in refused(case(files, None), TWO)


def test_a_black_slice_is_no_fault_and_a_label_map_as_image_is(tmp_path):
    image, mask = tmp_path / "a.png", write_slice(tmp_path / "a_mask.png", np.zeros((8, 9), np.uint8))
    files = case({"T1": write_slice(image, np.zeros((8, 9), np.uint8))}, mask)
    found, notes = read_case(files, ONE)
    assert not found.voxels.any() and not found.labels.any()
    assert notes == ("T1 is constant", "no voxel of any target")
    write_slice(image, np.tile(np.uint8([0, 255, 0]), (8, 3)))
    assert f"{image}: T1 has only the values 0 and 255: a mask" in refused(files, ONE)


def test_volumes_and_images_are_not_mixed(tmp_path):
    image = write_slice(tmp_path / "a.png", volume()[0])
    nifti = save(tmp_path / "a.nii", volume())
    assert "a.nii: a volume, but the other files of the case are images" in refused(case({"T1": image}, nifti), ONE)
    assert "a.png: an image, but the scan is a volume" in refused(case({"T1": nifti}, image), ONE)
