"""DICOM segmentations: they are written whatever the series' header contains, and the mask is never lost."""

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
from dicom_series import FRAME, STUDY, notes_of, raw_tag, read_segmentation, read_series, write_enhanced, write_series

from brainseg_jax.scans import segmentation
from brainseg_jax.scans.description import LGG
from brainseg_jax.scans.scan import MASK

X = np.random.default_rng(0).integers(1, 1000, (6, 16, 12))
FULL = np.random.default_rng(1).random((6, 16, 12)) > 0.5  # no image without a voxel of it


def write_mask(folder, path):
    """Writes FULL as the mask of the series; returns the writer's note and the scan."""
    scan = read_series(folder)
    return scan.write(MASK, FULL[..., None], [path], LGG), scan


def series(folder, **texts):
    def change(one, number):
        for name, text in texts.items():
            raw_tag(one, name, text) if text is not None else delattr(one, name)

    return write_series(folder, X, change=change)


EMPTY = "{} is invalid by the DICOM standard, and is empty in its SEG"
NEW = "its header has no valid {}: its SEG gets a new one"


@pytest.mark.parametrize(
    ("tag", "given", "written", "note"),
    [
        ("PatientSex", "U", "", EMPTY),
        ("PatientSex", "Male", "M", None),
        ("PatientSex", "f", "F", None),
        ("PatientBirthDate", "19700000", "", EMPTY),
        ("PatientBirthDate", "ANON", "", EMPTY),
        ("PatientBirthDate", "1970.02.03", "19700203", None),
        ("StudyTime", "10:11:12", "101112", None),
        ("StudyTime", "101112.5", "101112.5", None),
        ("StudyTime", "25", "", EMPTY),
        ("StudyDate", "20200101", "20200101", None),
        ("PatientName", None, "", None),
        ("PatientID", "x" * 100, "x" * 64, None),
        ("Modality", "mr", "SEG", None),
        ("LossyImageCompressionRatio", "10:1", None, None),
        ("SliceThickness", None, None, None),
        ("StudyInstanceUID", None, ..., NEW),
        ("StudyInstanceUID", "anonymized", ..., NEW),
        ("FrameOfReferenceUID", None, ..., NEW),
        ("SeriesInstanceUID", None, ..., NEW),
    ],
)
def test_odd_headers_have_a_segmentation(tmp_path, tag, given, written, note):
    folder = series(tmp_path / "in", **{tag: given})
    told, scan = write_mask(folder, tmp_path / "P1_pred.dcm")
    mask, _, seg = read_segmentation(tmp_path / "P1_pred.dcm", 6)
    assert told is None and notes_of(scan) == ([note.format(tag)] if note else [])
    np.testing.assert_array_equal(mask, FULL)
    if written is not None:
        assert seg.get(tag) if written is ... else seg.get(tag) == written


@pytest.mark.parametrize(
    ("characters", "name", "read"),
    [
        ("\\ISO 2022 IR 87", "Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "Yamada^Tarou=山田^太郎"),
        ("ISO_IR_100", "J\xfcrgen^M", "Jürgen^M"),
        ("ISO_IR 100", "J\xfcrgen^M", "Jürgen^M"),
        ("", "Made^Up", "Made^Up"),
        (None, "Made^Up", "Made^Up"),
    ],
)
def test_names_in_other_characters_are_kept(tmp_path, characters, name, read):
    texts = {} if characters is None else {"SpecificCharacterSet": characters}
    told, _ = write_mask(series(tmp_path / "in", PatientName=name, **texts), tmp_path / "P1_pred.dcm")
    _, _, seg = read_segmentation(tmp_path / "P1_pred.dcm", 6)
    assert told is None and str(seg.PatientName) == read


def test_directions_that_differ_in_the_last_digit(tmp_path):
    def change(one, number):
        one.ImageOrientationPatient = [1.0, 1e-6 * number, 0.0, 0.0, 1.0, 0.0]

    told, scan = write_mask(write_series(tmp_path / "in", X, change=change), tmp_path / "P1_pred.dcm")
    mask, _, seg = read_segmentation(tmp_path / "P1_pred.dcm", 6)
    assert told is None and notes_of(scan) == [] and (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == (STUDY, FRAME)
    np.testing.assert_array_equal(mask, FULL)


def test_a_segmentation_of_an_enhanced_file_refers_to_its_frames(tmp_path):
    """The mask's slice at depth d belongs to the frame of the file at d."""
    depths = np.array([16.0, 20.0, 12.0, 8.0, 4.0, 0.0])
    write_enhanced(tmp_path / "in" / "a.dcm", X, depths)
    told, _ = write_mask(tmp_path / "in", tmp_path / "P1_pred.dcm")
    assert told is None
    seg = hd.seg.segread(tmp_path / "P1_pred.dcm")
    (uid,) = {uid for _, _, uid in seg.get_source_image_uids()}
    mask = seg.get_pixels_by_source_frame(uid, range(1, 7), combine_segments=True)
    np.testing.assert_array_equal(mask, FULL[(depths / 4).astype(int)])
    heights = [frame.PlanePositionSequence[0].ImagePositionPatient[2] for frame in seg.PerFrameFunctionalGroupsSequence]
    assert sorted(map(float, heights)) == sorted(depths)
    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing == [0.5, 2.0]


@pytest.mark.parametrize("why", ["no instances", "highdicom", "written"])
def test_where_no_segmentation_can_be_made_the_mask_is_nifti(tmp_path, monkeypatch, why):
    def fail(*args, **kwargs):
        raise LookupError("a rule of\nthe standard")

    folder = series(tmp_path / "in", **({"SOPInstanceUID": None} if why == "no instances" else {}))
    if why == "highdicom":
        monkeypatch.setattr(hd.seg, "Segmentation", fail)
    if why == "written":
        monkeypatch.setattr(hd.seg.Segmentation, "save_as", fail)
    (tmp_path / "P1_pred.dcm").write_text("of an earlier run")
    told, scan = write_mask(folder, tmp_path / "P1_pred.dcm")
    words = (
        "LookupError: a rule of the standard" if why != "no instances" else "its files have no SOPClassUID and SOPIns"
    )
    assert told.startswith(
        "the mask is NIfTI (P1_pred.nii.gz): the header of the series does not allow a DICOM SEG: " + words
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["P1_pred.nii.gz", "in"]
    image = nib.load(tmp_path / "P1_pred.nii.gz")
    np.testing.assert_array_equal(image.dataobj, FULL.transpose(2, 1, 0))
    np.testing.assert_array_equal(image.affine, scan.grid.affine)


@pytest.mark.parametrize(
    ("given", "clean"),
    [("120000", "120000"), ("12", "12"), ("1200", "1200"), ("12:00", "1200"), ("noon", ""), ("246060", "")],
)
def test_times(given, clean):
    assert segmentation._time(given) == clean


def test_descriptions_have_the_expected_dice_of_a_mask(tmp_path):
    words = "expected Dice 0.87 (90 % interval 0.62 to 0.94)"
    scan = read_series(write_series(tmp_path / "in", X))
    assert scan.write(MASK, FULL[..., None], [tmp_path / "P1_pred.dcm"], LGG, [words]) is None
    mask, _, seg = read_segmentation(tmp_path / "P1_pred.dcm", 6)
    np.testing.assert_array_equal(mask, FULL)
    assert seg.SegmentSequence[0].SegmentDescription == words
    assert seg.SeriesDescription == f"Predicted, {words}" and len(seg.SeriesDescription) <= 64
