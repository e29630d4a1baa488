"""Unusual zip files: the message is one line with the member; unpacking is always bounded."""

import bz2
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from brainseg_jax.data.lgg import prepare
from brainseg_jax.data.source import list_cases
from brainseg_jax.data.validation import read_source
from brainseg_jax.errors import InputError
from brainseg_jax.scans.untrusted import read_bounded

CASE = "TCGA_DU_0001_19990101"
IMAGE = f"kaggle_3m/{CASE}/{CASE}_1.tif"
MASK = f"kaggle_3m/{CASE}/{CASE}_1_mask.tif"


def read(path):
    return read_source(path, on_start=lambda total: None, on_slice=lambda: None)


@pytest.fixture
def archive(tmp_path):
    """A set of one slice: member 0 is the image, member 1 the mask; `write(method)` writes it."""
    rows, columns = np.mgrid[:256, :256].astype(np.uint8)

    def write(method=zipfile.ZIP_DEFLATED):
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w", method) as made:
            for name, pixels in {
                IMAGE: np.stack([rows, columns, rows], -1),
                MASK: (rows > 200) * np.uint8(255),
            }.items():
                Image.fromarray(pixels).save(tmp_path / "one.tif")
                made.write(tmp_path / "one.tif", name)
        return path

    return write


def change(path, offset, local_offset, code, value):
    """Sets a field of the first member, in the central directory and, if present, in its own header."""
    data = bytearray(path.read_bytes())
    struct.pack_into(code, data, data.index(b"PK\1\2") + offset, value)
    if local_offset:
        struct.pack_into(code, data, local_offset, value)
    path.write_bytes(data)


def test_a_whole_one_is_read(archive):
    assert read(archive()).tumor_pixels == 256 * 55


@pytest.mark.parametrize(
    ("offset", "local_offset", "code", "value", "words"),
    [
        (8, 6, "<H", 1, "encrypted; unpack the zip with its password, and give the folder"),
        (10, 8, "<H", 99, r"compressed by method 99 \(unknown\), but only stored and deflated members are supported"),
        (10, 8, "<H", 12, r"compressed by method 12 \(bzip2\), but only stored and deflated members are supported"),
        (16, None, "<I", 7, r"damaged or truncated \(Bad CRC-32"),
        (24, None, "<I", 2**32 - 2, "4096.0 MB, larger than the limit of 8 MB for such a file; save it"),
        (42, None, "<I", 10, r"damaged or truncated \("),
    ],
)  # fmt: skip
def test_an_odd_member_is_named(archive, offset, local_offset, code, value, words):
    path = archive()
    change(path, offset, local_offset, code, value)
    with pytest.raises(InputError, match=rf"set\.zip: 1 fault in the data(?s:.*)\n  {CASE}/{CASE}_1\.tif: {words}"):
        read(path)


def test_a_damaged_directory_is_no_whole_zip(archive):
    for offset, code, value in ((6, "<H", 99), (0, "<I", 0)):
        path = archive()
        change(path, offset, None, code, value)
        with pytest.raises(
            InputError, match=r"set\.zip: neither a folder nor a complete zip \(.*\)\. If it is the zip from Kaggle"
        ):
            read(path)


@pytest.mark.parametrize("name", ["//", "/etc/a.tif", "kaggle_3m/../a.tif", "kaggle_3m//a.tif", "./a.tif"])
def test_a_name_that_is_no_plain_path_is_refused(archive, name):
    """`//` made zipfile.Path run forever in Python before 3.11.10 (CVE-2024-8088)."""
    path = archive()
    with zipfile.ZipFile(path, "a") as made:
        made.writestr(name, b"")
    with pytest.raises(InputError, match=rf"set\.zip: its member '{name}' is not a plain path within the zip"):
        read(path)


def test_zips_that_hold_no_case(archive, tmp_path):
    inner = archive().read_bytes()
    for name, members in {"empty": {}, "nested": {"inner.zip": inner}}.items():
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as made:
            for member, data in members.items():
                made.writestr(member, data)
        with pytest.raises(InputError, match=rf"{name}\.zip: no case in it \(found: {next(iter(members), 'nothing')}"):
            read(tmp_path / f"{name}.zip")


def test_a_bomb_that_zipfile_would_unpack_at_once_is_not_opened(tmp_path):
    """For bzip2, zipfile unpacks 4 kB of a member at once, whatever their size: here 230 MB."""
    data = bz2.compress(bytes(2**20)) * 220
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_STORED) as made:
        made.writestr("bomb", data)
    change(tmp_path / "set.zip", 10, 8, "<H", zipfile.ZIP_BZIP2)
    change(tmp_path / "set.zip", 24, 22, "<I", 100)  # its declared unpacked size
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="compressed by method 12"):
            read_bounded(zipfile.Path(tmp_path / "set.zip") / "bomb")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("number", "words"), [(20240101120000, "from 1 to 20240101120000: no 1, 2, 3, 4, 5, 6, 7, 8")])
def test_a_huge_number_in_a_name_takes_no_memory(tmp_path, number, words):
    folder = tmp_path / CASE
    folder.mkdir()
    for ending in ("", "_mask"):
        (folder / f"{CASE}_{number}{ending}.tif").touch()
    _, faults = list_cases(tmp_path)
    assert faults == [f"{CASE}: a gap in the numbering, which must run {words}, 9, 10, ..."]


def test_a_number_of_thousands_of_digits_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as made:
        made.writestr(f"{CASE}/{CASE}_{'9' * 5000}.tif", b"")  # Python makes no int of more than 4300
    _, faults = list_cases(tmp_path / "set.zip")
    assert len(faults) == 2 and "unexpected in a case folder" in faults[0]


def test_a_large_image_is_reported_with_its_size(tmp_path):
    Image.new("RGB", (2048, 2048)).save(tmp_path / "P1_1.tif")
    with pytest.raises(InputError, match=r"^12\.0 MB, larger than the limit of 8 MB for such a file; save"):
        read_bounded(tmp_path / "P1_1.tif")
    assert len(read_bounded(tmp_path / "P1_1.tif", limit=2**24)) == (tmp_path / "P1_1.tif").stat().st_size


def test_a_clinical_code_of_thousands_of_digits_is_a_fault(archive, tmp_path):
    path = archive()
    fields = "Patient,neoplasm_histologic_grade,histological_type,age_at_initial_pathologic,gender"
    with zipfile.ZipFile(path, "a") as made:
        made.writestr("kaggle_3m/data.csv", f"{fields}\n{CASE[:12]},{'9' * 5000},1,45,1\n")
    with pytest.raises(InputError, match=r"data\.csv: line 2 \(TCGA_DU_0001\): neoplasm_histologic_grade is '999"):
        read(path)


def test_all_faults_are_listed_and_nothing_is_written(archive, tmp_path):
    path = archive()
    change(path, 8, 6, "<H", 1)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.rindex(b"PK\1\2") + 16, 7)  # the checksum of the mask
    path.write_bytes(data)
    with pytest.raises(InputError, match="2 faults in the data, so nothing was written") as raised:
        prepare(str(path), tmp_path / "data", progress=False)
    assert f"{CASE}_1.tif: encrypted" in str(raised.value)
    assert f"{CASE}_1_mask.tif: damaged or truncated (Bad CRC-32" in str(raised.value)
    assert not (tmp_path / "data").exists()
