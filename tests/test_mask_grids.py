"""Masks of two folders are compared at their positions: reoriented if that is enough, else refused."""

import nibabel as nib
import numpy as np
import pytest
from scored import read_masks, score_folders

from brainseg_jax.errors import InputError

SHAPE = (12, 10, 6)
AFFINE = np.array([[-1.0, 0, 0, 40], [0, -1, 0, 30], [0, 0, 5, -20], [0, 0, 0, 1]])


def truth():
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:6, 3:9, 1:3] = 1  # 48 voxels
    return mask


def half():
    mask = truth()
    mask[4:] = 0  # 24 of them, so Dice is 2 * 24 / 72
    return mask


def write(path, mask, affine=AFFINE, kind=np.uint8):
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(mask.astype(kind), affine), path)


def score(folder):
    scored, cases = score_folders(folder / "predicted", folder / "truth", tolerance=1.0)
    return scored.rows[0], cases[0]


def rotated(degrees):
    """Rotates about the foot-head axis, around the center of the volume."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    center = nib.affines.apply_affine(AFFINE, (np.array(SHAPE) - 1) / 2)
    return nib.affines.from_matvec(turn, center - turn @ center) @ AFFINE


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "PIL"])
def test_what_is_stored_another_way_is_turned(tmp_path, codes):
    """Nibabel reorients voxels and affine together, so positions in space do not change."""
    write(tmp_path / "truth" / "a.nii.gz", truth())
    image = nib.Nifti1Image(half(), AFFINE)
    turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(codes))
    (tmp_path / "predicted").mkdir()
    nib.save(image.as_reoriented(turn), tmp_path / "predicted" / "a.nii.gz")
    row, case = score(tmp_path)
    assert row["dice"] == pytest.approx(2 * 24 / 72) and row["volume_predicted"] == pytest.approx(24 * 5 / 1000)
    assert case.truth[0].areas == [0, 24, 24, 0, 0, 0]


def test_an_oblique_volume_between_two_directions_is_turned_by_its_affine(tmp_path):
    """Near 45 degrees rounding decides which axis points left; the affine identifies the voxels."""
    write(tmp_path / "truth" / "a.nii.gz", truth(), rotated(44.99))
    flipped = rotated(45.01) @ np.array([[0, -1.0, 0, 11], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    write(tmp_path / "predicted" / "a.nii.gz", half()[::-1].transpose(1, 0, 2), flipped)
    row, _ = score(tmp_path)
    assert row["dice"] == pytest.approx(2 * 24 / 72)


def moved(millimeters):
    affine = AFFINE.copy()
    affine[0, 3] += millimeters
    return affine


ELSEWHERE = {
    "shifted": (moved(40.0), "centers 40 mm apart (right 40, front 0, up 0)"),
    "a little": (moved(0.3), "centers 0.3 mm apart"),
    "rotated": (rotated(30.0), "mm: axes 30.0 degrees apart, voxels up to 3.679 mm apart"),
    "identity": (np.eye(4), "spacing of the prediction 1 x 1 x 1 mm, of the reference 5 x 1 x 1 mm"),
    "mirrored": (np.diag([1.0, 1.0, 5.0, 1.0]), "centers 41.01 mm apart (right -29, front -21, up 20)"),
}


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_masks_at_other_positions_are_refused(tmp_path, kind):
    affine, words = ELSEWHERE[kind]
    write(tmp_path / "truth" / "a.nii.gz", truth())
    write(tmp_path / "predicted" / "a.nii.gz", truth(), affine)
    with pytest.raises(InputError) as raised:
        score(tmp_path)
    message = str(raised.value)
    assert words in message and len(message.splitlines()) == 2
    if kind != "identity":
        assert "12 x 10 x 6 voxels of 1 x 1 x 5 mm, axes LPS, first voxel at (40, 30, -20) mm" in message


def test_an_odd_header_is_reported_once_for_all(tmp_path, caplog):
    for folder in ("predicted", "truth"):
        for case in ("a", "b"):
            write(tmp_path / folder / f"{case}.nii", truth(), np.diag([0.001, 0.001, 0.005, 1]))
    score(tmp_path)
    (message,) = caplog.messages
    assert f"{tmp_path / 'predicted' / 'a.nii'} and 3 more: its header (no unit) makes it 0.03 mm long" in message


def test_masks_by_a_slope_or_rounded_are_masks(tmp_path):
    """0 and 0.9999 by scl_slope, 0.99999997 by a resampling; but 0.9 is no mask, and the message has that value."""
    image = nib.Nifti1Image(truth(), AFFINE)
    image.header.set_slope_inter(0.9999, 0)
    (tmp_path / "good").mkdir()
    nib.save(image, tmp_path / "good" / "slope.nii")
    data = bytearray((tmp_path / "good" / "slope.nii").read_bytes())
    data[352:] = truth().tobytes(order="F")  # as nibabel divides by the slope and rounds
    data[112:116] = np.float32(0.9999).tobytes()
    (tmp_path / "good" / "slope.nii").write_bytes(data)
    write(tmp_path / "good" / "rounded.nii", truth() * np.float32(0.99999997), kind=np.float64)
    write(tmp_path / "good" / "bytes.nii", truth() * 254.9, kind=np.float32)
    masks = read_masks(tmp_path / "good")
    assert nib.load(tmp_path / "good" / "slope.nii").get_fdata().max() == pytest.approx(0.9999)
    assert len(masks) == 3 and all(mask.voxels.sum() == 48 for mask in masks.values())
    write(tmp_path / "bad" / "a.nii", truth() * 0.9, kind=np.float64)
    with pytest.raises(InputError, match=r"a.nii: values 0, 0.9; a mask has values 0 and 1, or 0 and 255"):
        read_masks(tmp_path / "bad")


def test_links_are_followed_and_what_is_no_mask_is_named(tmp_path):
    write(tmp_path / "elsewhere" / "a.nii.gz", truth())
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "around").symlink_to(tmp_path / "elsewhere")
    assert list(read_masks(tmp_path / "masks")) == ["a"]
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.mha").write_text("no mask")
    with pytest.raises(
        InputError, match=r"no mask in it; a mask is named .*; passed over:\n  1 x an unsupported format.*: a.mha"
    ):
        read_masks(tmp_path / "none")
