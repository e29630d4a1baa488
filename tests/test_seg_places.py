"""Positions of the slices in the segmentations that `predict` writes, as `evaluate` reads them."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_series import read_series, source_of, write_series
from scored import read_masks, score_folders

from brainseg_jax.errors import InputError
from brainseg_jax.prediction.results import Wanted, check_free
from brainseg_jax.scans.description import LGG
from brainseg_jax.scans.scan import MASK
from brainseg_jax.scans.seg_file import _indices

X = np.random.default_rng(0).integers(1, 1000, (6, 16, 12))


def predicted(folder, change, slices):
    """A scan, and a mask of 12 voxels in each of these slices, written for the scan and for the reference."""
    scan = read_series(write_series(folder / "in", X, change=change))
    mask = np.zeros(X.shape, bool)
    mask[slices, 2:5, 2:6] = True
    for name in ("predicted", "true"):
        (folder / name).mkdir()
    assert scan.write(MASK, mask[..., None], [folder / "predicted" / "P1_pred.dcm"], LGG) is None
    volume = scan.grid.from_slices(mask).astype(np.uint8)
    nib.save(nib.Nifti1Image(volume, scan.grid.affine), folder / "true" / "P1.nii.gz")
    return pydicom.dcmread(folder / "predicted" / "P1_pred.dcm")


def test_every_second_slice_of_a_tilted_gantry(tmp_path):
    """Each image lies 5 mm above the last and 2 mm further back: 3 slices of 12 voxels of 5 mm3."""

    def change(one, number):
        one.ImagePositionPatient = [-100.0, -100.0 + 2.0 * number, 5.0 * number]

    seg = predicted(tmp_path, change, slice(0, None, 2))
    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices == 5.0
    scored, _ = score_folders(tmp_path / "predicted", tmp_path / "true", tolerance=1.0)
    assert scored.rows[0]["dice"] == 1.0 and scored.rows[0]["volume_predicted"] == pytest.approx(0.18)


@pytest.mark.parametrize("slices", [slice(0, None, 2), slice(2, 4), slice(1, 2)])
def test_a_step_that_jitters_as_a_series_may(tmp_path, slices):
    """Every second image is 0.2 mm too high: the series spans 25.2 mm in 5 steps."""

    def change(one, number):
        one.ImagePositionPatient = [-100.0, -100.0, 5.0 * number + 0.2 * (number % 2 == 0)]

    seg = predicted(tmp_path, change, slices)
    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices == pytest.approx(5.04)
    (mask,) = read_masks(tmp_path / "predicted").values()
    found = mask.voxels.any(axis=(1, 2))
    assert mask.voxels.sum() == 12 * len(range(6)[slices]) and found.sum() == len(range(6)[slices])
    scored, _ = score_folders(tmp_path / "predicted", tmp_path / "true", tolerance=1.0)
    assert scored.rows[0]["dice"] == 1.0


@pytest.mark.parametrize(
    ("depths", "expected"),
    [
        ([0.0, 5.0, 15.2], [0, 1, 3]),
        ([15.2, 0.0, 5.4], [3, 0, 1]),
        ([0.0, 5.6], None),  # a step 12 % too long
        ([0.0, 0.1], None),  # twice in one place
        ([0.0, 47.5], None),  # between the ninth slice and the tenth
        ([0.0], [0]),
    ],
)
def test_which_slice_a_frame_is(depths, expected):
    found = _indices(np.array(depths), 5.0)
    assert (None if found is None else found.tolist()) == expected


def test_a_segmentation_takes_the_place_of_an_earlier_fallback(tmp_path):
    """A series without SOPInstanceUID gets a NIfTI mask; once its header is repaired, only a SEG."""
    out = tmp_path / "out"
    out.mkdir()
    mask = np.ones(X.shape, bool)
    without = write_series(tmp_path / "a", X, change=lambda one, number: delattr(one, "SOPInstanceUID"))
    assert (
        read_series(without)
        .write(MASK, mask[..., None], [out / "C_pred.dcm"], LGG)
        .startswith("the mask is NIfTI (C_pred.nii.gz)")
    )
    assert [path.name for path in out.iterdir()] == ["C_pred.nii.gz"]
    assert read_series(write_series(tmp_path / "b", X)).write(MASK, mask[..., None], [out / "C_pred.dcm"], LGG) is None
    assert [path.name for path in out.iterdir()] == ["C_pred.dcm"]
    assert list(read_masks(out)) == ["C"]


def test_a_nifti_mask_in_the_place_of_a_fallback_is_not_lost_without_a_word(tmp_path):
    source = source_of(write_series(tmp_path / "in", X), "P1")
    check_free([source], LGG, tmp_path / "out", Wanted())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "P1_pred.nii.gz").write_text("a mask")
    with pytest.raises(InputError, match=r"P1_pred.nii.gz already exists"):
        check_free([source], LGG, tmp_path / "out", Wanted())
