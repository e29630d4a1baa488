"""Folders of masks in every supported layout, and invalid ones."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scored import read_masks

from brainseg_jax.errors import InputError


def write(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


def numbered(number, size=(6, 5)):
    """A mask with one voxel set, in the column of its number."""
    mask = np.zeros(size, np.uint8)
    mask[0, number % size[1]] = 255
    return mask


@pytest.mark.parametrize("name", ["{case}/{case}_{n}_mask.tif", "{case}_{n}_pred.png", "a/b/{case}_{n}_pred.tiff"])
def test_slices_are_in_the_order_of_their_numbers(tmp_path, name):
    for case, numbers in {"TCGA_DU_1": range(1, 12), "x": [7, 8]}.items():
        for n in numbers:
            write(tmp_path / name.format(case=case, n=n), numbered(n))
    (tmp_path / "TCGA_DU_1_1.tif").write_text("a scan, no mask: passed over")
    masks = read_masks(tmp_path)
    assert list(masks) == ["TCGA_DU_1", "x"]
    assert masks["TCGA_DU_1"].numbers == tuple(range(1, 12)) and masks["x"].numbers == (7, 8)
    assert masks["TCGA_DU_1"].spacing is None and masks["TCGA_DU_1"].voxels.dtype == bool
    assert masks["TCGA_DU_1"].voxels[:, 0].argmax(axis=1).tolist() == [n % 5 for n in range(1, 12)]


def test_a_name_without_a_number_is_one_slice(tmp_path):
    write(tmp_path / "scan_pred.tif", np.ones((4, 4), np.uint8))
    mask = read_masks(tmp_path)["scan"]
    assert mask.voxels.shape == (1, 4, 4) and mask.voxels.all()


@pytest.mark.parametrize("name", ["P1.nii", "P1_pred.nii.gz", "sub/P1_mask.nii.gz"])
@pytest.mark.parametrize("greatest", [1, 255])
def test_volumes_are_turned_to_axial_slices(tmp_path, name, greatest):
    # Axes as stored: to the crown (2 mm), to the right (3 mm), to the front (4 mm).
    volume = np.zeros((5, 6, 7), np.int16)
    volume[1, 0, 6] = greatest  # second from the foot, leftmost, frontmost
    affine = np.array([[0, 3, 0, 9], [0, 0, 4, 9], [2, 0, 0, 9], [0, 0, 0, 1.0]])
    (tmp_path / "sub").mkdir()
    nib.save(nib.Nifti1Image(volume, affine), tmp_path / name)
    nib.save(nib.Nifti1Image(volume + 0.5, affine), tmp_path / "P1_probability.nii.gz")
    masks = read_masks(tmp_path)
    assert list(masks) == ["P1"]
    mask = masks["P1"]
    assert mask.voxels.shape == (5, 7, 6) and mask.spacing == (2.0, 4.0, 3.0) and mask.numbers is None
    # Nose up: the frontmost is the first row; the patient's left is on the right: the last column.
    assert np.argwhere(mask.voxels).tolist() == [[1, 0, 5]]


def test_all_faults_are_listed(tmp_path):
    write(tmp_path / "gap_1_mask.tif", numbered(1))
    write(tmp_path / "gap_4_mask.tif", numbered(1))
    write(tmp_path / "sizes_1_mask.tif", numbered(1))
    write(tmp_path / "sizes_2_mask.tif", numbered(1, (7, 7)))
    write(tmp_path / "twice_1_mask.tif", numbered(1))
    write(tmp_path / "twice_1_pred.png", numbered(1))
    write(tmp_path / "color_1_mask.png", np.zeros((4, 4, 3), np.uint8))
    write(tmp_path / "kinds_1_mask.tif", numbered(1))
    (tmp_path / "empty_1_mask.tif").touch()
    for name, values in {"kinds": np.eye(3)[None], "flat": np.eye(3), "labels": 400 * np.eye(3)[None]}.items():
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), tmp_path / f"{name}.nii.gz")
    for name, value in (("half", 2.5), ("negative", -1.0), ("not", np.nan)):
        nib.save(nib.Nifti1Image(np.float32([[[0.0, 1.0, value]]]), np.eye(4)), tmp_path / f"{name}.nii")
    (tmp_path / "text.nii").write_text("no volume")
    with pytest.raises(InputError) as raised:
        read_masks(tmp_path)
    for words in (
        "gap: a gap in the numbers 1 to 4: 2, 3 missing",
        "sizes_2_mask.tif: 7 x 7 pixels, but sizes_1_mask.tif has 6 x 5",
        "half.nii: values 0, 1, 2.5; a mask has values 0 and 1, or 0 and 255, or whole numbers",
        "negative.nii: values -1, 0, 1; a mask has values",
        "not.nii: values 0, 1, nan; a mask has values",
        "twice_1_pred.png: a second file for slice 1 of twice",
        "color_1_mask.png: a color image",
        "kinds: more than one mask",
        "empty_1_mask.tif: not a TIFF or PNG",
        "flat.nii.gz: an array of shape (3, 3)",
        "labels.nii.gz: values 0, 400",
        "text.nii: not a NIfTI file",
    ):
        assert words in str(raised.value)


def test_a_folder_without_masks(tmp_path):
    with pytest.raises(InputError, match="no mask in it"):
        read_masks(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        read_masks(tmp_path / "missing")
