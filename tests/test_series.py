"""DICOM series in, DICOM segmentations out: the same mask as from slices, and invalid series."""

import csv
import sys

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from conftest import call_predict as call
from dicom_series import AXIAL, FRAME, STUDY, in_order, read_segmentation, read_series, write_series
from pydicom.uid import generate_uid
from scored import read_masks
from test_predict import dice, from_slices, read_case  # noqa: F401

from brainseg_jax.errors import InputError, PartlyDone
from brainseg_jax.prediction.results import Wanted
from brainseg_jax.scans.description import LGG
from brainseg_jax.scans.find import find_scans
from brainseg_jax.scans.scan import MASK, STAND_IN

pytestmark = pytest.mark.usefixtures("optax_promotion")


def test_three_series_have_the_mask_of_the_slices(case, trained_run, from_slices, tmp_path):  # noqa: F811
    slices = read_case(case)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    for name, channel in {"AX_T1_PRE": 0, "AX_FLAIR": 1, "AX_T1_POST": 2, "localizer": 0}.items():
        write_series(tmp_path / "in" / "P1" / name, slices[..., channel])
    wanted = Wanted(probabilities=True)
    outcome = call(trained_run[0], tmp_path / "in", tmp_path / "out", mirror=True, wanted=wanted)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "P1_pred.dcm", "P1_probability.nii.gz", "areas.csv", "predictions.csv"
    ]  # fmt: skip
    assert outcome.notes == {"localizer is not used": ["P1"]}
    expected = read_masks(from_slices)[case.name].voxels
    mask, uids, seg = read_segmentation(tmp_path / "out" / "P1_pred.dcm", 16)
    order = in_order(tmp_path / "in" / "P1" / "AX_FLAIR")
    mask = mask[[uids.index(uid) for uid in order]] > 0
    assert dice(mask, expected) > 0.999
    assert (seg.PatientID, seg.StudyInstanceUID, seg.FrameOfReferenceUID) == ("P1", STUDY, FRAME)
    assert seg.SegmentSequence[0].SegmentLabel == "FLAIR abnormality" and seg.Modality == "SEG"
    (row,) = csv.DictReader((tmp_path / "out" / "predictions.csv").open())
    assert row["volume_unit"] == "mL" and float(row["volume"]) == pytest.approx(mask.sum() * 5.0 / 1000.0)
    assert int(row["largest_slice"]) == mask.sum(axis=(1, 2)).argmax() + 1  # as the instances are numbered
    probability = nib.load(tmp_path / "out" / "P1_probability.nii.gz")
    # The first voxel is at (-100, -100, -100) in DICOM coordinates: 100 mm to the right and to the front.
    np.testing.assert_allclose(probability.affine[:3, 3], (100, 100, -100))
    np.testing.assert_allclose(np.diag(probability.affine), (-1, -1, 5, 1))


@pytest.mark.parametrize("how", ["from crown to foot", "rescaled", "sagittal"])
def test_a_series_that_is_stored_another_way_is_the_same_scan(tmp_path, how):
    """All give the same voxels, and the written mask belongs to the same voxels."""
    flair = np.random.default_rng(0).integers(0, 256, (6, 16, 12))
    change, orientation, step, series, plain_again = None, AXIAL, 5.0, flair, lambda mask: mask
    if how == "from crown to foot":  # rows to the front, so the series runs down
        series, orientation = flair[::-1, ::-1], (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
        plain_again = lambda mask: mask[::-1, ::-1]
    elif how == "rescaled":

        def change(one, number):
            one.RescaleSlope, one.RescaleIntercept = 0.5, -10
            one.PixelData = (2 * flair[number - 1].astype(np.uint16) + 20).tobytes()

    else:  # rows to the foot, columns to the back, from right to left: [left, foot, back]
        series, orientation = flair.transpose(2, 0, 1)[:, ::-1], (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
        change, step = lambda one, number: setattr(one, "PixelSpacing", [5.0, 1.0]), -1.0
        plain_again = lambda mask: mask[:, ::-1].transpose(1, 2, 0)
    scan = read_series(write_series(tmp_path / "in", series, orientation=orientation, step=step, change=change))
    for channel in range(3):
        np.testing.assert_array_equal(scan.voxels[..., channel], flair)
    assert scan.notes == (STAND_IN,) and scan.spacing == (5.0, 1.0, 1.0)
    assert scan.numbers == {"sagittal": (5, 4, 3, 2, 1, 0), "rescaled": (1, 2, 3, 4, 5, 6)}.get(how, (6, 5, 4, 3, 2, 1))
    scan.write(MASK, flair[..., None] > 100, [tmp_path / "mask.dcm"], LGG)
    seg, order = hd.seg.segread(tmp_path / "mask.dcm"), in_order(tmp_path / "in")
    mask = seg.get_pixels_by_source_instance(order, combine_segments=True, assert_missing_frames_are_empty=True) > 0
    np.testing.assert_array_equal(plain_again(mask), flair > 100)


def test_a_head_without_tumor_has_an_empty_segmentation(tmp_path):
    write_series(tmp_path / "in", np.arange(4 * 32 * 32).reshape(4, 32, 32) % 97)
    read_series(tmp_path / "in").write(MASK, np.zeros((4, 32, 32, 1), bool), [tmp_path / "empty.dcm"], LGG)
    seg = hd.seg.segread(tmp_path / "empty.dcm")
    assert not seg.pixel_array.any() and seg.SegmentSequence[0].SegmentNumber == 1


def test_faults_of_series(case, trained_run, tmp_path):
    frames = np.arange(4 * 16 * 16).reshape(4, 16, 16)

    def third(**values):
        def change(one, number):
            for name, value in values.items():
                if number == 3:
                    setattr(one, name, value) if value is not None else delattr(one, name)

        return change

    def smaller(one, number):
        if number == 3:
            one.Rows, one.PixelData = 8, one.PixelData[:256]

    faults = {
        "mixed sizes": (smaller, r"mixed sizes: a gap .* \(1 of 4 images left out, of another size or direction than"),
        "two series": (third(SeriesInstanceUID=generate_uid()), "two series: 2 series of one study, and neither"),
        "twice": (third(ImagePositionPatient=[-100.0, -100.0, -100.0]), "twice/.*: a second image at the position of"),
        "no place": (third(ImagePositionPatient=None), "no ImagePositionPatient in it, so it is not a slice"),
        "cut short": (third(PixelData=bytes(100)), "100 bytes of pixels, but its header declares 512, so"),
    }  # fmt: skip
    for name, (change, _) in faults.items():
        write_series(tmp_path / "in" / name, frames, change=change, study=generate_uid())
    write_series(tmp_path / "in" / "missing", frames, study=generate_uid())
    next(p for p in (tmp_path / "in" / "missing").iterdir() if pydicom.dcmread(p).InstanceNumber == 2).unlink()
    faults["missing"] = (None, "missing: a gap in the series: (10.00 mm from .* to .*, elsewhere 7.50|5.00 mm)")
    study = generate_uid()
    write_series(tmp_path / "in" / "grids" / "flair", frames, study=study)
    write_series(tmp_path / "in" / "grids" / "pre", frames, step=4.0, study=study)
    faults["grids"] = (
        None,
        "grids/pre: its grid is not that of flair: .*: voxels of 1 x 1 x 4 mm against 1 x 1 x 5, cent",
    )
    (tmp_path / "in" / "text").mkdir()
    (tmp_path / "in" / "text" / "a.dcm").write_text("no scan")
    faults["text"] = (None, "text/a.dcm: not a DICOM file, or a damaged one")
    write_series(tmp_path / "in" / "whole", read_case(case)[..., 1])
    with pytest.raises(PartlyDone) as raised:
        call(trained_run[0], tmp_path / "in", tmp_path / "out")
    for words in [words for _, words in faults.values()]:
        with pytest.raises(InputError, match=words):
            raise InputError(str(raised.value))
    assert f"{len(faults)} of {len(faults) + 1} scans" in str(raised.value)
    assert (tmp_path / "out" / "whole_pred.dcm").exists()


def test_without_the_packages_the_message_has_the_install_command(tmp_path, monkeypatch):
    write_series(tmp_path / "in", np.zeros((2, 8, 8)))
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError, match=r"python -m pip install 'brainseg_jax\[dicom\]'"):
        find_scans(tmp_path / "in")
