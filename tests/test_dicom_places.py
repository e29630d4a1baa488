"""Positions of DICOM images: enhanced files, tilted gantries, localizers, mosaics, rotated series."""

from pathlib import Path

import numpy as np
import pytest
from dicom_series import AXIAL, notes_of, raw_tag, read_series, source_of, tags, write_enhanced, write_series

from brainseg_jax.errors import InputError
from brainseg_jax.scans.sequences import FLAIR, POST, PRE
from brainseg_jax.scans.series import SeriesSource

X = np.random.default_rng(0).integers(1, 1000, (6, 16, 12))
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def test_an_enhanced_file_is_read_in_order_of_its_places(tmp_path):
    """Frames go from crown to foot, except one, 4 mm apart; rows are 0.5 mm apart, columns 2 mm."""
    depths = [16.0, 20.0, 12.0, 8.0, 4.0, 0.0]
    write_enhanced(tmp_path / "e" / "a.dcm", X, depths)
    scan, order = read_series(tmp_path / "e"), np.argsort(depths)
    plain = read_series(write_series(tmp_path / "plain", 2 * X[order] + 10))
    np.testing.assert_array_equal(scan.voxels, plain.voxels)
    assert scan.spacing == (4.0, 0.5, 2.0)
    assert scan.numbers == (6, 5, 4, 3, 1, 2)  # frames of the file, from 1
    # Column, row, slice to right, front, crown: DICOM's x runs to the left, its y to the back.
    np.testing.assert_allclose(scan.grid.affine, [[-2, 0, 0, 100], [0, -0.5, 0, 100], [0, 0, 4, 0], [0, 0, 0, 1]])


def test_values_of_frames_are_rescaled_each_by_its_own(tmp_path):
    def change(one):
        for number, item in enumerate(one.PerFrameFunctionalGroupsSequence, start=1):
            item.PixelValueTransformationSequence = [tags(RescaleSlope=float(number), RescaleIntercept=float(number))]

    write_enhanced(tmp_path / "e" / "a.dcm", X, range(0, 24, 4), change=change)
    own = np.arange(1, 7)[:, None, None]
    plain = read_series(write_series(tmp_path / "plain", X * own + own))
    np.testing.assert_array_equal(read_series(tmp_path / "e").voxels, plain.voxels)


def several_echoes(one):
    for number, item in enumerate(one.PerFrameFunctionalGroupsSequence):
        item.MREchoSequence = [tags(EffectiveEchoTime=[10.0, 90.0][number % 2])]


@pytest.mark.parametrize(
    ("depths", "change", "words"),
    [
        (
            [0, 0, 4, 4, 8, 8],
            several_echoes,
            "a.dcm: a second image at the position of a.dcm: 6 images at 3 positions, probably",
        ),
        ([0, 4, 8, 16, 20, 24], None, "a gap in the series: 8.00 mm from a.dcm, image 3 to a.dcm, image 4"),
        ([0, 4, 8, 12, 16], None, "a.dcm: NumberOfFrames is 6, but 5 have a position"),
        (range(6), lambda one: raw_tag(one, "NumberOfFrames", "abc"), "a.dcm: NumberOfFrames is 'abc' and should"),
        (range(6), lambda one: delattr(one, "SharedFunctionalGroupsSequence"), "a.dcm: no ImageOrientationPatient in"),
        (
            range(6),
            lambda one: delattr(one, "PerFrameFunctionalGroupsSequence"),
            "a.dcm: 6 images in one file without their positions; convert the series to NIfTI",
        ),
    ],
)
def test_enhanced_files_that_are_no_volume(tmp_path, depths, change, words):
    write_enhanced(tmp_path / "e" / "a.dcm", X, depths, change=change)
    with pytest.raises(InputError, match=words):
        read_series(tmp_path / "e")


def test_a_tilted_gantry_shears_the_grid(tmp_path):
    """Each image lies 5 mm above the last and 2 mm further back: the volume of a voxel is 1 x 1 x 5 mm3."""

    def change(one, number):
        one.ImagePositionPatient = [-100.0, -100.0 + 2.0 * number, 5.0 * number]

    scan = read_series(write_series(tmp_path / "in", X, change=change))
    np.testing.assert_allclose(scan.grid.affine[:3, 2], [0.0, -2.0, 5.0])
    assert abs(np.linalg.det(scan.grid.affine)) == pytest.approx(5.0)


def test_images_that_are_shifted_against_each_other_are_no_volume(tmp_path):
    def change(one, number):
        one.ImagePositionPatient = [-100.0 + 3.0 * (number == 3), -100.0, 5.0 * number]

    with pytest.raises(InputError, match=r"in: its images are shifted against each other by 3\.00 mm"):
        read_series(write_series(tmp_path / "in", X, change=change))


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"ImageOrientationPatient": list(CORONAL)}, "1 of 7 images left out, of another size or direction than the"),
        ({"Rows": 8, "PixelData": bytes(192)}, "1 of 7 images left out, of another size or direction than the"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "0003.dcm left out: a localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}, "0003.dcm left out: a mosaic of many slices in"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "0003.dcm left out: 3 value(s) a pixel, RGB: a c"),
        ({"NumberOfFrames": 2}, "0003.dcm left out: 2 images in one file without their positions"),
    ],
)
def test_what_is_no_slice_of_the_volume_is_left_out_with_a_note(tmp_path, changes, note):
    def change(one, number):
        if number == 7:  # at an end: no gap without it
            for name, value in changes.items():
                setattr(one, name, value)

    scan = read_series(write_series(tmp_path / "in", np.concatenate([X, X[:1]]), change=change))
    np.testing.assert_array_equal(scan.voxels, read_series(write_series(tmp_path / "plain", X)).voxels)
    (found,) = notes_of(scan)
    assert found.startswith(note)


def test_a_localizer_of_three_directions_is_no_volume(tmp_path):
    three = [AXIAL, CORONAL, (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)]
    change = lambda one, number: setattr(one, "ImageOrientationPatient", list(three[number % 3]))
    with pytest.raises(InputError, match=r"6 images of 3 sizes or directions, without a majority .*: a localizer"):
        read_series(write_series(tmp_path / "in", X, change=change))


def test_only_mosaics_are_refused_with_a_message(tmp_path):
    change = lambda one, number: setattr(one, "ImageType", ["ORIGINAL", "PRIMARY", "MOSAIC"])
    with pytest.raises(InputError, match=r"dcm: a mosaic of many slices in one image; convert .* \(dcm2niix\)"):
        read_series(write_series(tmp_path / "in", X, change=change))


def test_a_sequence_that_runs_another_way_is_turned(tmp_path):
    """The same voxels, stored from crown to foot with rows to the front: the same channel."""

    def place(one, number):  # the last row of the last slice comes first
        one.ImagePositionPatient = [-100.0, -100.0 + 15.0, -100.0 + 5.0 * (6 - number)]

    pre = X[::-1] * 2
    files = {
        FLAIR: write_series(tmp_path / "f", X),
        PRE: write_series(tmp_path / "t", pre[::-1, ::-1], orientation=(1, 0, 0, 0, -1, 0), change=place),
        POST: write_series(tmp_path / "p", X),
    }
    files = {sequence: tuple(sorted(folder.iterdir())) for sequence, folder in files.items()}
    scan = SeriesSource("P1", Path(), files, notes=("of the search",)).read()
    assert scan.notes[0] == "of the search"
    flair_alone = read_series(write_series(tmp_path / "pre", pre))
    np.testing.assert_array_equal(scan.voxels[..., 0], flair_alone.voxels[..., 1])
    files[PRE] = tuple(sorted(write_series(tmp_path / "elsewhere", X, step=4.0).iterdir()))
    with pytest.raises(InputError, match="elsewhere: its grid"):
        SeriesSource("P1", Path(), files).read()


def test_a_single_slice_without_a_thickness_is_a_guess(tmp_path):
    scan = source_of(
        write_series(tmp_path / "in", X[:1], change=lambda one, number: delattr(one, "SliceThickness"))
    ).read()
    assert "its header has no SliceThickness: 1 mm is assumed, so its volume may be wrong" in scan.notes
