"""Folders of masks and of cases: files passed over are reported with the reason."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scored import read_masks, score_folders

from brainseg_jax.data.source import list_cases
from brainseg_jax.errors import InputError
from brainseg_jax.scans import walk

CASE, OTHER = "TCGA_DU_0001_19990101", "TCGA_HT_5010_19960909"


def write_mask(path, voxels=12):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((4, 4, 3), np.uint8)
    mask.ravel()[:voxels] = 1
    nib.save(nib.Nifti1Image(mask, np.diag([-40.0, -40.0, 50.0, 1.0])), path)


def forbid(monkeypatch, folder):
    """Simulates a folder without permission, since the superuser may read any folder."""
    scan = walk.os.scandir

    def scandir(place):
        if place == folder:
            raise PermissionError(13, "Permission denied")
        return scan(place)

    monkeypatch.setattr(walk.os, "scandir", scandir)


def test_files_that_are_no_masks_are_reported_for_both_folders(tmp_path, monkeypatch, caplog):
    """One of two cases counts; its Dice is 2 * 6 / (12 + 6)."""
    predicted, true = tmp_path / "predicted", tmp_path / "true"
    write_mask(predicted / "a.nii.gz", 6)
    write_mask(true / "a.nii.gz")
    for name in ("b.mha", "c_mask.jpg", "d.dcm", "notes.txt"):
        (predicted / name).write_text("no mask")
    (predicted / "e_mask.nii.gz").symlink_to(tmp_path / "gone")
    (true / "closed").mkdir()
    write_mask(true / "closed" / "f.nii.gz")
    forbid(monkeypatch, true / "closed")
    scored, _ = score_folders(predicted, true, tolerance=1.0)
    assert [(row["patient"], row["dice"]) for row in scored.rows] == [("a", pytest.approx(12 / 18))]
    assert caplog.messages == [
        f"{predicted}: not all files are masks; passed over:\n"
        "  1 x a broken link: e_mask.nii.gz\n"
        "  2 x an unsupported format; convert masks to NIfTI (.nii.gz): b.mha, c_mask.jpg\n"
        "  2 x not a mask by its name: d.dcm, notes.txt",
        f"{true}: not all files are masks; passed over:\n  1 x cannot be read (Permission denied): closed",
    ]


def test_other_files_of_predict_are_not_reported(tmp_path, caplog):
    write_mask(tmp_path / "a_pred.nii.gz")
    for name in ("a_probability.nii.gz", "a_uncertainty.nii", "a_overlay.png", "predictions.csv", "areas.csv"):
        (tmp_path / name).write_text("no mask")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "b_1_probability.tif")
    (tmp_path / "c_mask.hdr").write_bytes(b"")  # of a pair
    (tmp_path / "c_mask.img").write_bytes(b"")
    with pytest.raises(InputError, match=r"c_mask\.hdr"):
        read_masks(tmp_path)
    (tmp_path / "c_mask.hdr").unlink()
    (tmp_path / "c_mask.img").unlink()
    assert list(read_masks(tmp_path)) == ["a"] and not caplog.messages


def write_case(tree):
    (tree / CASE).mkdir(parents=True)
    for name in (f"{CASE}_1.tif", f"{CASE}_1_mask.tif"):
        (tree / CASE / name).write_bytes(b"not opened here")


def test_a_broken_link_or_file_named_like_a_case_is_a_fault(tmp_path):
    write_case(tmp_path / "kaggle_3m")
    (tmp_path / "kaggle_3m" / OTHER).symlink_to(tmp_path / "gone")
    (tmp_path / "kaggle_3m" / "TCGA_HT_5011_19960909").write_text("a file")
    cases, faults = list_cases(tmp_path)
    assert [case.name for case in cases] == [CASE]
    assert faults == [
        f"kaggle_3m/{OTHER}: a broken link with the name of a case; a case is a folder",
        "kaggle_3m/TCGA_HT_5011_19960909: a file with the name of a case; a case is a folder",
    ]


def test_other_files_next_to_the_cases_are_reported(tmp_path, caplog):
    write_case(tmp_path / "kaggle_3m")
    for name in ("x.jpg", "README.md", ".DS_Store"):
        (tmp_path / "kaggle_3m" / name).write_text("no case")
    (tmp_path / "kaggle_3m" / "more").symlink_to(tmp_path / "gone")
    _, faults = list_cases(tmp_path)
    assert not faults
    assert "kaggle_3m: passed over 2 files that are not named like a case: more, x.jpg" in caplog.messages
