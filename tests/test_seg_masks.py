"""DICOM segmentations as masks for scoring, ours and others', against volumes and against each other."""

import nibabel as nib
import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
hd = pytest.importorskip("highdicom")

from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: E402
from pydicom.sr.codedict import codes  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid  # noqa: E402
from scored import read_masks, score_folders  # noqa: E402

from brainseg_jax.errors import InputError  # noqa: E402

SLICES, ROWS, COLUMNS = 8, 12, 10
AXIAL, SAGITTAL = (1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1)
AFFINE = np.array([[-0.5, 0, 0, 40], [0, -2, 0, 30], [0, 0, 5, -20], [0, 0, 0, 1.0]])  # of the axial series below


def series(orientation=AXIAL, shift=0.0, tilt=0.0, spacing=True):
    """Slices 5 mm apart and 4 mm thick; rows 2 mm, columns 0.5 mm; `tilt` shifts each by 1 mm along its columns."""
    study, one_series, frame = generate_uid(), generate_uid(), generate_uid()
    along = np.cross(orientation[:3], orientation[3:]) * 5.0 + tilt * np.array(orientation[3:])
    found = []
    for number in range(SLICES):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        one.SOPClassUID, one.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, one_series, frame
        one.PatientID, one.PatientName, one.PatientBirthDate, one.PatientSex = "P1", "Made^Up", "", ""
        one.StudyDate, one.StudyTime, one.StudyID, one.AccessionNumber = "", "", "", ""
        one.ReferringPhysicianName, one.Manufacturer, one.Modality = "", "", "MR"
        one.InstanceNumber, one.SliceThickness, one.PixelSpacing = number + 1, 4.0, [2.0, 0.5]
        if spacing:
            one.SpacingBetweenSlices = 5.0
        one.ImageOrientationPatient = [float(x) for x in orientation]
        one.ImagePositionPatient = [float(x) for x in np.array([-40.0 + shift, -30.0, -20.0]) + along * number]
        one.Rows, one.Columns, one.SamplesPerPixel = ROWS, COLUMNS, 1
        one.PhotometricInterpretation, one.PixelRepresentation = "MONOCHROME2", 0
        one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
        one.PixelData = bytes(2 * ROWS * COLUMNS)
        found.append(one)
    return found


def write_seg(path, slices, mask, *, segments=1, kind="BINARY", **options):
    """Writes with highdicom, which omits empty frames; mask [S, rows, columns]."""
    path.parent.mkdir(exist_ok=True)
    described = [
        hd.seg.SegmentDescription(
            segment_number=number + 1,
            segment_label="tumor",
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Neoplasm,
            algorithm_type="MANUAL",
        )
        for number in range(segments)
    ]
    seg = hd.seg.Segmentation(
        slices,
        mask if mask.dtype == np.float32 else mask.astype(np.uint8),
        kind,
        described,
        hd.UID(),
        100,
        hd.UID(),
        1,
        "m",
        "m",
        "1",
        "0",
        **options,
    )
    seg.save_as(path)


def truth():
    mask = np.zeros((SLICES, ROWS, COLUMNS), np.uint8)
    mask[2:4, 3:9, 2:6] = 1  # 48 voxels
    mask[6, 3:5, 2:3] = 1  # and 2, after slices that hold none
    return mask


def half():
    mask = truth()
    mask[:, :, 4:] = 0  # 26 of them
    return mask


def write_volume(path, mask, affine=AFFINE):
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(mask.transpose(2, 1, 0), affine), path)


def score(folder):
    scored, cases = score_folders(folder / "predicted", folder / "truth", tolerance=1.0)
    return scored.rows[0], cases[0]


EXPECTED = 2 * 26 / 76


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
def test_against_a_volume_by_its_affine(tmp_path, kind):
    """The same voxels as a NIfTI volume of all slices, with an affine by hand."""
    write_seg(tmp_path / "predicted" / "a_pred.dcm", series(), half(), kind=kind)
    write_volume(tmp_path / "truth" / "a_mask.nii.gz", truth())
    row, case = score(tmp_path)
    assert row["dice"] == pytest.approx(EXPECTED) and row["volume_predicted"] == pytest.approx(26 * 5 / 1000)
    assert case.truth[0].areas == [0, 0, 24, 24, 0, 0, 2, 0]


@pytest.mark.parametrize("changed", [{}, {"spacing": False}, {"tilt": 1.0}, {"orientation": SAGITTAL}])
def test_against_each_other(tmp_path, changed):
    """Each has other slices; one has a single slice."""
    slices, other, apart = series(**changed), truth(), truth()
    other[:6] = 0
    apart[3] = 0
    write_seg(tmp_path / "predicted" / "a_pred.dcm", slices, half())
    write_seg(tmp_path / "truth" / "a_seg.dcm", slices, truth())
    write_seg(tmp_path / "predicted" / "b_pred.dcm", slices, other)
    write_seg(tmp_path / "truth" / "b_seg.dcm", slices, truth())
    write_seg(tmp_path / "predicted" / "c_pred.dcm", slices, apart)
    write_seg(tmp_path / "truth" / "c_seg.dcm", slices, apart)
    scored, _ = score_folders(tmp_path / "predicted", tmp_path / "truth", tolerance=1.0)
    assert [row["dice"] for row in scored.rows] == pytest.approx([EXPECTED, 2 * 2 / 52, 1.0])
    assert scored.rows[0]["volume_true"] == pytest.approx(50 * 5 / 1000)
    assert scored.rows[2]["volume_true"] == pytest.approx(26 * 5 / 1000)


def test_a_distance_that_the_file_lacks_is_reported(tmp_path, caplog):
    """Frames 2 and 6 of slices 5 mm apart."""
    apart = truth()
    apart[3] = 0
    for folder in ("predicted", "truth"):
        path = tmp_path / folder / "a_seg.dcm"
        write_seg(path, series(), apart)
        seg = pydicom.dcmread(path)
        del seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
        seg.save_as(path)
    row, _ = score(tmp_path)
    assert row["volume_true"] == pytest.approx(26 * 20 / 1000)
    (message,) = caplog.messages
    assert "a_seg.dcm and 1 more: it does not store the slice distance: 20 mm is assumed, the minimum" in message


def test_nothing_predicted(tmp_path):
    write_seg(tmp_path / "predicted" / "a_pred.dcm", series(), np.zeros_like(truth()))
    write_volume(tmp_path / "truth" / "a.nii", truth())
    row, _ = score(tmp_path)
    assert row["dice"] == 0.0 and row["missed_lesions"] == 2


def test_elsewhere(tmp_path):
    write_seg(tmp_path / "predicted" / "a_pred.dcm", series(shift=-3.0), half())
    write_volume(tmp_path / "truth" / "a.nii", truth())
    with pytest.raises(InputError, match=r"centers 3 mm apart \(right 3, front 0, up 0\)"):
        score(tmp_path)


def test_segments_are_labels(tmp_path):
    """Two segments, with and without separate frames, against a label map of the same values in NIfTI."""
    first, second = truth(), np.zeros_like(truth())
    first[3] = 0
    second[3, 3:9, 2:6] = 1
    second[4, 0, 0] = 1  # segment 1 has no voxel in this slice
    labels = first + 2 * second
    write_volume(tmp_path / "truth" / "a.nii.gz", labels)
    write_seg(tmp_path / "predicted" / "a_seg.dcm", series(), np.stack([first, second], axis=-1), segments=2)
    (mask,) = read_masks(tmp_path / "predicted").values()
    assert mask.info.values == (1, 2) and np.bincount(mask.labels.ravel())[1:].tolist() == [26, 25]
    scored, _ = score_folders(tmp_path / "predicted", tmp_path / "truth", tolerance=0.0)
    assert [(row["target"], row["dice"]) for row in scored.rows] == [("label 1", 1.0), ("label 2", 1.0)]


def test_two_frames_of_one_segment_on_a_slice(tmp_path):
    both = np.stack([truth(), np.zeros_like(truth())], axis=-1)
    both[2:4, 0, 0, 1] = 1
    path = tmp_path / "predicted" / "a_seg.dcm"
    write_seg(path, series(), both, segments=2)
    seg = pydicom.dcmread(path)
    seg.PerFrameFunctionalGroupsSequence[-1].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 1
    seg.save_as(path)
    with pytest.raises(InputError, match=r"a_seg\.dcm: two frames of one segment are on the same slice"):
        read_masks(path.parent)


def test_what_is_no_mask(tmp_path):
    write_seg(tmp_path / "two_pred.dcm", series(), np.stack([half(), truth()], axis=-1), segments=2)
    fractions = half() * np.float32(0.4)
    write_seg(tmp_path / "fractions_pred.dcm", series(), fractions, kind="FRACTIONAL")
    series()[0].save_as(tmp_path / "scan_pred.dcm", enforce_file_format=True)
    (tmp_path / "text_pred.dcm").write_text("no DICOM")
    write_seg(tmp_path / "large_pred.dcm", series(), half())
    large = pydicom.dcmread(tmp_path / "large_pred.dcm")
    large.Rows, large.Columns = 60_000, 60_000
    large.save_as(tmp_path / "large_pred.dcm")
    with pytest.raises(InputError) as raised:
        read_masks(tmp_path)
    for words in (
        "two_pred.dcm: segment 2 overlaps another one, but a voxel has one label only; give a label map as NIfTI",
        "fractions_pred.dcm: fractional values, which are not a mask; give a binary segmentation",
        "scan_pred.dcm: modality MR, but a mask must be a segmentation (SEG)",
        "text_pred.dcm: not a DICOM segmentation, or a damaged one",
        "large_pred.dcm: its header declares 3 frames of 60000 x 60000 voxels; give 1 to 268435456 voxels in all",
    ):
        assert words in str(raised.value)
