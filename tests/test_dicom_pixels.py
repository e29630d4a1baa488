"""Pixels of DICOM files: all compressed syntaxes are decoded, and unpacking stops at the size in the header."""

import struct
import sys
import tracemalloc
import zlib
from io import BytesIO

import imagecodecs
import numpy as np
import pydicom
import pytest
from dicom_series import read_series, write_series
from pydicom.encaps import encapsulate
from pydicom.filewriter import write_file_meta_info

from brainseg_jax.errors import InputError

X = (np.random.default_rng(0).random((4, 16, 16)).cumsum(axis=2) * 100).astype(np.uint16)  # up to some 1 000
JPEG = "1.2.840.10008.1.2.4."


def lossless(values):
    return imagecodecs.ljpeg_encode(values, bitspersample=16)  # liblj92; libjpeg-turbo decodes


def compressed(folder, syntax, encode, values=X, **tags):
    """A series with pixels encoded by `encode`."""

    def change(one, number):
        one.file_meta.TransferSyntaxUID = syntax
        one.PixelData = encapsulate([encode(values[number - 1])])
        one["PixelData"].VR = "OB"
        for name, value in tags.items():
            setattr(one, name, value)

    return write_series(folder, values, change=change)


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (JPEG + "57", lossless),
        (JPEG + "70", lossless),
        (JPEG + "70", lambda x: imagecodecs.jpeg8_encode(x, lossless=True, predictor=1, bitspersample=16)),
        (JPEG + "80", imagecodecs.jpegls_encode),
        (JPEG + "90", lambda x: imagecodecs.jpeg2k_encode(x, level=0, codecformat="J2K")),
        (JPEG + "91", lambda x: imagecodecs.jpeg2k_encode(x, level=0, codecformat="J2K")),
        (JPEG + "201", lambda x: imagecodecs.htj2k_encode(x, reversible=True)),
    ],
)
def test_a_compressed_series_is_read_as_the_plain_one(tmp_path, syntax, encode):
    plain = read_series(write_series(tmp_path / "plain", X)).voxels
    np.testing.assert_array_equal(read_series(compressed(tmp_path / "in", syntax, encode)).voxels, plain)


def test_rle_is_read_as_the_plain_series(tmp_path):
    folder = write_series(tmp_path / "in", X)
    plain = read_series(folder).voxels
    for path in folder.iterdir():
        one = pydicom.dcmread(path)
        one.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        one.save_as(path)
    np.testing.assert_array_equal(read_series(folder).voxels, plain)


def test_twelve_bits_of_lossy_jpeg(tmp_path):
    encode = lambda x: imagecodecs.jpeg8_encode(x, level=100, bitspersample=12)
    plain = read_series(write_series(tmp_path / "plain", X)).voxels.astype(int)
    read = read_series(compressed(tmp_path / "in", JPEG + "51", encode, BitsStored=12, HighBit=11)).voxels
    assert np.abs(read - plain).max() <= 2  # lossy


def test_signed_values_of_a_stream_that_knows_no_sign(tmp_path):
    signed = X.astype(np.int16) - 500
    folder = compressed(
        tmp_path / "in", JPEG + "70", lambda x: lossless(x.view(np.uint16)), signed, PixelRepresentation=1
    )
    np.testing.assert_array_equal(read_series(folder).voxels, read_series(write_series(tmp_path / "p", X)).voxels)


def test_without_the_decoder_the_message_has_syntax_and_command(tmp_path, monkeypatch):
    folder = compressed(tmp_path / "in", JPEG + "70", lossless)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(
        InputError, match=r"0577.dcm: .*JPEG Lossless, .*4\.70\), .*pip install 'brainseg_jax\[dicom\]'"
    ):
        read_series(folder)


def test_an_unknown_syntax_is_named(tmp_path):
    with pytest.raises(InputError, match=r"0577.dcm: its pixels are stored as MPEG.*100\), which is not supported"):
        read_series(compressed(tmp_path / "in", JPEG + "100", lossless))


def peak_of_refusal(folder, words):
    """Checks that the series is refused with this message; returns the peak memory in bytes."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=words):
            read_series(folder)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def deflated(path, one, zeros=0):
    """Writes a deflated data set with `zeros` more bytes of pixels than its header declares."""
    plain = BytesIO()
    one.save_as(plain, enforce_file_format=True)
    start = 132 + 12 + one.file_meta.FileMetaInformationGroupLength
    data = bytearray(plain.getvalue()[start:])
    if zeros:
        length = len(one.PixelData) + zeros
        data[-len(one.PixelData) - 4 : -len(one.PixelData)] = struct.pack("<I", length)
    packing = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    one.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    with path.open("wb") as file:
        file.write(bytes(128) + b"DICM")
        write_file_meta_info(file, one.file_meta)
        file.write(packing.compress(bytes(data)))
        for _ in range(zeros >> 20):
            file.write(packing.compress(bytes(2**20)))
        file.write(packing.flush())


def test_a_deflated_series_is_read_and_one_of_more_than_it_declares_is_not_unpacked(tmp_path):
    folder = write_series(tmp_path / "in", X)
    plain = read_series(folder).voxels
    for path in folder.iterdir():
        deflated(path, pydicom.dcmread(path))
    np.testing.assert_array_equal(read_series(folder).voxels, plain)
    bomb = write_series(tmp_path / "bomb", X[:1]) / "0577.dcm"
    deflated(bomb, pydicom.dcmread(bomb), zeros=2**27)
    assert bomb.stat().st_size < 200_000
    assert peak_of_refusal(bomb.parent, "0577.dcm: unpacks to more than its header declares") < 2**26


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"Rows": 65535, "Columns": 65535}, r"declares 1 x 65535 x 65535 pixels, more than the limit of 268435456"),
        ({"Rows": 4096, "Columns": 4096}, r"512 bytes of pixels, but its header declares 33554432, so the file"),
        ({"BitsAllocated": 1}, "BitsAllocated 1, but a scan has 8, 16 or 32"),
    ],
)
def test_declared_sizes_are_bounded_before_anything_is_decoded(tmp_path, tags, words):
    change = lambda one, number: [setattr(one, name, value) for name, value in tags.items()]
    assert peak_of_refusal(write_series(tmp_path / "in", X, change=change), words) < 2**25


def test_a_compressed_frame_of_another_size_is_not_decoded(tmp_path):
    large = lambda x: lossless(np.zeros((400, 400), np.uint16))
    words = r"frame 1 has \(400, 400, 1\) rows, columns and channels, but its header declares \(16, 16, 1\)"
    assert peak_of_refusal(compressed(tmp_path / "in", JPEG + "70", large), words) < 2**25
    words = "frame 1 has .* bytes, more than its pixels"
    noise = lambda x: lossless(np.random.default_rng(0).integers(0, 65536, (300, 300)).astype(np.uint16))
    assert peak_of_refusal(compressed(tmp_path / "long", JPEG + "70", noise), words) < 2**25


def test_damaged_streams_are_refused_and_end_nothing(tmp_path):
    """Random bytes of the stream change: GDCM ended the process on such streams."""
    rng, streams = np.random.default_rng(0), [lossless(X[0]), imagecodecs.jpegls_encode(X[0])]
    for syntax, stream in zip((JPEG + "70", JPEG + "80"), streams, strict=True):
        for trial in range(20):
            damaged = np.frombuffer(stream, np.uint8).copy()
            damaged[rng.integers(2, len(damaged), 3)] = rng.integers(0, 256, 3)
            folder = compressed(tmp_path / f"{syntax}-{trial}", syntax, lambda x, d=damaged: d.tobytes(), X[:1])
            try:
                assert read_series(folder).voxels.shape == (1, 16, 16, 3)
            except InputError as error:
                assert "0577.dcm: " in str(error) or str(folder) in str(error)
