"""Results with several targets: label maps on the scan's grid, segments, maps with one file or axis per target."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from sharing_cases import NESTED

from brainseg_jax.scans.description import Description, Target
from brainseg_jax.scans.find import find_scans
from brainseg_jax.scans.scan import MASK, PROBABILITY, UNCERTAINTY, file_words

LEVELS = (60, 120, 180)  # thresholds of gray values of the nested targets
VALUES = np.random.default_rng(0).integers(0, 256, (7, 6, 5)).astype(np.int16)
C, S = np.cos(0.3), np.sin(0.3)
AFFINES = {
    "RAS": np.array([[1.0, 0, 0, -3], [0, 2, 0, -5], [0, 0, 3, 7], [0, 0, 0, 1]]),
    "LPS": np.array([[-1.0, 0, 0, 9], [0, -2, 0, 8], [0, 0, 3, -20], [0, 0, 0, 1]]),
    # The first axis runs to the back, the second down, the third to the right.
    "PIR": np.array([[0.0, 0, 3, 1], [-1, 0, 0, 2], [0, -2, 0, 3], [0, 0, 0, 1]]),
    # A quarter turn of RAS around its first axis: the second axis runs up, the third to the back.
    "turned by 90 degrees": np.array([[1.0, 0, 0, -3], [0, 0, -3, 4], [0, 2, 0, -5], [0, 0, 0, 1]]),
    # RAS turned by 0.3 around the third axis, then by 0.3 around the first.
    "oblique": np.array([[C, -2 * S, 0, 4], [S * C, 2 * C * C, -3 * S, 5], [S * S, 2 * C * S, 3 * C, 6], [0, 0, 0, 1]]),
}


def labels_of(values):
    """Whole tumor 2, tumor core 1 and enhancing tumor 3 of gray values."""
    return np.select([values > 180, values > 120, values > 60], [3, 1, 2], 0)


def masks_of(scan):
    """[S, H, W, 3] bool."""
    return np.stack([scan.voxels[..., 0] > level for level in LEVELS], axis=-1)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_label_maps_and_maps_lie_on_the_grid_of_the_scan(tmp_path, affine):
    """Each voxel of the written file belongs to the voxel of the scan's file with the same index and place."""
    nib.save(nib.Nifti1Image(VALUES, affine), tmp_path / "P1.nii.gz")
    (source,) = find_scans(tmp_path / "P1.nii.gz")
    scan = source.read()
    masks = masks_of(scan)
    for kind, values in {MASK: masks, PROBABILITY: masks * np.float32(0.5)}.items():
        (path,) = source.outputs(kind, NESTED)
        assert path.name == f"P1_{kind}.nii.gz"
        scan.write(kind, values, [tmp_path / path], NESTED)
    written = nib.load(tmp_path / "P1_pred.nii.gz")
    assert written.get_data_dtype() == np.uint8 and not written.header.extensions
    np.testing.assert_allclose(written.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels_of(VALUES))
    maps = nib.load(tmp_path / "P1_probability.nii.gz")
    assert maps.shape == (7, 6, 5, 3) and maps.get_data_dtype() == np.float32
    np.testing.assert_allclose(maps.affine, affine, atol=1e-6)
    for k, level in enumerate(LEVELS):
        np.testing.assert_array_equal(np.asarray(maps.dataobj)[..., k], 0.5 * (level < VALUES))
    (comment,) = maps.header.extensions
    assert comment.get_code() == 6 and "fourth axis: whole tumor, tumor core, enhancing tumor" in str(comment)


def test_slices_hold_labels_and_a_file_for_each_target(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 9, 3), np.uint8)
    for number, image in enumerate(pixels, start=4):
        Image.fromarray(image).save(tmp_path / f"P1_{number}.png")
    (source,) = find_scans(tmp_path)
    scan = source.read()
    maps = np.random.default_rng(2).random((2, 8, 9, 3)).astype(np.float32)
    for kind, values in {MASK: masks_of(scan), UNCERTAINTY: maps}.items():
        scan.write(kind, values, [tmp_path / path for path in source.outputs(kind, NESTED)], NESTED)
    assert [path.name for path in source.outputs(UNCERTAINTY, NESTED)[:4]] == [
        "P1_4_whole_tumor_uncertainty.tif",
        "P1_4_tumor_core_uncertainty.tif",
        "P1_4_enhancing_tumor_uncertainty.tif",
        "P1_5_whole_tumor_uncertainty.tif",
    ]
    for index, number in enumerate((4, 5)):
        label_map = np.asarray(Image.open(tmp_path / f"P1_{number}_pred.tif"))
        assert label_map.dtype == np.uint8
        np.testing.assert_array_equal(label_map, labels_of(pixels[index, ..., 0]))
        core = np.asarray(Image.open(tmp_path / f"P1_{number}_tumor_core_uncertainty.tif"))
        np.testing.assert_array_equal(core, maps[index, ..., 1])
    assert [source.name for source in find_scans(tmp_path)] == ["P1"]  # results are no scans


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("whole tumor", "Ödem/2"), ("whole_tumor", "Ödem_2")),
        (("ET", "et"), ("1_ET", "2_et")),
        (("a b", "a_b", "../.."), ("1_a_b", "2_a_b", "3_target")),
    ],
)
def test_names_of_targets_are_made_fit_for_files(names, words):
    targets = tuple(Target(name, (label,)) for label, name in enumerate(names, start=1))
    assert file_words(Description(("a",), targets)) == words


@pytest.mark.parametrize("empty", [False, True])
def test_a_segmentation_has_a_segment_for_each_target(tmp_path, empty):
    """Overlapping targets, and an empty one."""
    hd = pytest.importorskip("highdicom")
    from dicom_series import in_order, read_series, write_series

    frames = np.random.default_rng(3).integers(1, 1000, (4, 8, 6))
    scan = read_series(write_series(tmp_path / "in", frames))
    masks = np.stack([frames > 200, frames > 500, frames > (1000 if empty else 800)], axis=-1)
    assert scan.write(MASK, masks, [tmp_path / "P1_pred.dcm"], NESTED) is None
    seg = hd.seg.segread(tmp_path / "P1_pred.dcm")
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == list(NESTED.names)
    for k in range(3):
        if empty and k == 2:
            assert 3 not in [frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
                             for frame in seg.PerFrameFunctionalGroupsSequence]  # fmt: skip
            continue
        one = seg.get_pixels_by_source_instance(in_order(tmp_path / "in"), segment_numbers=[k + 1])
        np.testing.assert_array_equal(one[..., 0], masks[..., k])


def test_where_no_segmentation_can_be_made_the_label_map_is_nifti(tmp_path):
    pytest.importorskip("highdicom")
    from dicom_series import read_series, write_series

    def change(one, number):
        del one.SOPInstanceUID

    frames = np.random.default_rng(3).integers(0, 256, (4, 8, 6))
    scan = read_series(write_series(tmp_path / "in", frames, change=change))
    masks = np.stack([frames > level for level in LEVELS], axis=-1)
    note = scan.write(MASK, masks, [tmp_path / "P1_pred.dcm"], NESTED)
    assert note.startswith("the mask is NIfTI (P1_pred.nii.gz): the header of the series does not allow")
    image = nib.load(tmp_path / "P1_pred.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), labels_of(frames).transpose(2, 1, 0))
