"""DICOM headers by other software: they are read, or the message names file, tag and value."""

import numpy as np
import pydicom
import pytest
from dicom_series import notes_of, raw_tag, read_series, write_series

from brainseg_jax.errors import InputError

X = np.random.default_rng(0).integers(1, 1000, (6, 16, 16))


def series(folder, **texts):
    """Writes X as a series with these tags set to any text; None removes a tag."""

    def change(one, number):
        for name, text in texts.items():
            raw_tag(one, name, text) if text is not None else delattr(one, name)

    return write_series(folder / "in", X, change=change)


@pytest.mark.parametrize(
    ("texts", "note"),
    [
        ({"SamplesPerPixel": None}, "its header has no SamplesPerPixel: 1 is assumed"),
        ({"PhotometricInterpretation": None}, "its header has no PhotometricInterpretation: MONOCHROME2 is assumed"),
        ({"PixelRepresentation": None}, "its header has no PixelRepresentation: 0 is assumed"),
        ({"BitsStored": None, "HighBit": None}, None),
        ({"RescaleSlope": ""}, None),
        ({"RescaleSlope": "1,5"}, "RescaleSlope has decimal commas; they are read as points"),
        ({"NumberOfFrames": ""}, None),
        ({"Modality": "mr"}, None),
        ({"SliceThickness": None}, None),
        ({"StudyInstanceUID": None}, "its header has no valid StudyInstanceUID: its SEG gets a new one"),
    ],
)
def test_what_can_be_read_is_read_with_a_note(tmp_path, texts, note):
    plain, scan = read_series(write_series(tmp_path / "plain", X)), read_series(series(tmp_path, **texts))
    np.testing.assert_array_equal(scan.voxels, plain.voxels)
    assert notes_of(scan) == ([note] if note else []) and scan.spacing == plain.spacing == (5.0, 1.0, 1.0)


def test_decimal_commas_are_numbers(tmp_path):
    scan = read_series(series(tmp_path, PixelSpacing="0,5\\1,25"))
    assert scan.spacing == (5.0, 0.5, 1.25)
    assert notes_of(scan) == ["PixelSpacing has decimal commas; they are read as points"]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"Rows": None}, r"\d+\.dcm: no Rows in its header"),
        ({"Columns": None}, r"\d+\.dcm: no Columns in its header"),
        ({"PixelSpacing": "1.0"}, r"PixelSpacing is '1\.0' and should be 2 numbers; correct the header"),
        ({"PixelSpacing": "1\\1\\1"}, r"PixelSpacing is '1\\1\\1' and should be 2 numbers"),
        ({"PixelSpacing": "0\\0"}, r"PixelSpacing is \[0\.0, 0\.0\] mm"),
        ({"ImagePositionPatient": "1\\2"}, r"ImagePositionPatient is '1\\2' and should be 3 numbers"),
        ({"ImagePositionPatient": "N/A"}, "ImagePositionPatient is 'N/A' and should be 3 numbers"),
        ({"ImagePositionPatient": "nan\\0\\0"}, "ImagePositionPatient is 'nan"),
        ({"ImageOrientationPatient": "1\\0\\0\\0\\1"}, r"ImageOrientationPatient is '1\\0.* should be 6 numbers"),
        ({"ImageOrientationPatient": "1\\0\\0\\1\\0\\0"}, "ImageOrientationPatient is .* not two perpendicular unit"),
        ({"NumberOfFrames": "abc"}, "NumberOfFrames is 'abc' and should be a number"),
        ({"RescaleSlope": "x"}, "RescaleSlope is 'x' and should be a number"),
        ({"RescaleSlope": "0"}, "RescaleSlope is 0"),
        ({"PixelSpacing": None}, "no PixelSpacing in it"),
    ],
)
def test_other_values_are_named_with_file_and_tag(tmp_path, texts, words):
    with pytest.raises(InputError, match=words) as raised:
        read_series(series(tmp_path, **texts))
    assert str(tmp_path / "in") in str(raised.value) and "compress" not in str(raised.value)


@pytest.mark.parametrize("number", ["1", "IMG7", None])
def test_slices_without_distinct_numbers_are_counted_by_position(tmp_path, number):
    scan = read_series(series(tmp_path, InstanceNumber=number))
    assert scan.numbers == (1, 2, 3, 4, 5, 6)
    (note,) = notes_of(scan)
    assert note.startswith("its InstanceNumbers are missing or not unique: slices are counted from 1")


@pytest.mark.parametrize(
    ("padding", "limit", "signed"),
    [(-2000, None, True), (63536, None, True), (65535, None, False), (-2000, -1990, True), (-1990, -2000, True)],
)
def test_padding_is_background(tmp_path, padding, limit, signed):
    """The padded corner becomes 0; all other values stay the same as without padding."""
    x = X.copy()
    x[:, 8:, :8] = 0
    padded = x.copy()
    padded[:, 8:, :8] = padding if limit is None else -1995
    kind = "SS" if signed and padding < 0 else "US"

    def change(one, number):
        one.PixelRepresentation = int(signed)
        one.PixelData = (padded[number - 1] % 65536).astype(np.uint16).tobytes()
        one.add_new("PixelPaddingValue", kind, padding)
        if limit is not None:
            one.add_new("PixelPaddingRangeLimit", kind, limit)

    plain, scan = (
        read_series(write_series(tmp_path / "a", x)),
        read_series(write_series(tmp_path / "b", x, change=change)),
    )
    assert (scan.voxels[:, 8:, :8] == 0).all()
    np.testing.assert_array_equal(scan.voxels, plain.voxels)
    assert notes_of(scan) == ["25.0% of its voxels are padding and count as background"]


def test_inverted_gray_values_are_turned_back(tmp_path):
    x = X.copy()
    x[0, :4] = 0  # air: white, 4095, in the inverted values

    def change(one, number):
        one.PhotometricInterpretation = "MONOCHROME1"
        one.PixelData = (4095 - x[number - 1]).astype(np.uint16).tobytes()

    scan, plain = read_series(write_series(tmp_path / "in", x, change=change)), write_series(tmp_path / "plain", x)
    np.testing.assert_array_equal(scan.voxels, read_series(plain).voxels)
    assert notes_of(scan) == ["its gray values are inverted (MONOCHROME1), and are inverted back"]


def test_a_file_without_pixels_is_left_out_with_a_note_and_named_where_slices_are_missing(tmp_path):
    folder = series(tmp_path)
    report = pydicom.dcmread(folder / "0577.dcm")
    del report.PixelData
    report.save_as(folder / "report.dcm")
    assert notes_of(read_series(folder)) == [
        "report.dcm left out: no PixelData in it, so it is not a slice of a series; remove it"
    ]
    (folder / "0145.dcm").unlink()
    with pytest.raises(InputError, match=r"a gap in the series: .*\(report.dcm left out"):
        read_series(folder)


def test_a_file_that_is_there_twice_is_used_once(tmp_path):
    folder = series(tmp_path)
    (folder / "copy.dcm").write_bytes((folder / "0577.dcm").read_bytes())
    assert notes_of(read_series(folder)) == ["1 images are copies of others, and are ignored"]
