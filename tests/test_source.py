"""Finding and reading sources, and refusing invalid ones: every kind of bad data, with its file in the message."""

import csv
import hashlib
import io
import shutil
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainseg_jax.data.source import list_cases
from brainseg_jax.data.validation import read_source
from brainseg_jax.errors import InputError

FIRST, SECOND = "TCGA_DU_0001_19990101", "TCGA_HT_0002_20000202"
HEADER = ["Patient", "neoplasm_histologic_grade", "histological_type", "age_at_initial_pathologic", "gender"]


def read(path):
    return read_source(path, on_start=lambda total: None, on_slice=lambda: None)


def draw(case: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and a mask of 0 and 255, unique for each case and number."""
    rng = np.random.default_rng([*case.encode(), number])
    mask = np.zeros((256, 256), np.uint8)
    mask[:number, :10] = 255  # 10 tumor pixels a slice number
    return rng.integers(0, 256, (256, 256, 3), np.uint8), mask


def write_case(tree: Path, case: str, slices: int) -> None:
    (tree / case).mkdir(parents=True)
    for number in range(1, slices + 1):
        image, mask = draw(case, number)
        Image.fromarray(image).save(tree / case / f"{case}_{number}.tif")
        Image.fromarray(mask).save(tree / case / f"{case}_{number}_mask.tif")


def write_table(tree: Path, *rows: list[str], header: list[str] = HEADER) -> None:
    with (tree / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def zip_tree(tree: Path, target: Path, tops: tuple[str, ...]) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for top in tops:
            for file in sorted(tree.rglob("*")):
                archive.write(file, f"{top}/{file.relative_to(tree)}")
    return target


@pytest.fixture
def tree(tmp_path) -> Path:
    """Two patients, of 3 and 2 slices, with a clinical table."""
    tree = tmp_path / "given" / "kaggle_3m"
    write_case(tree, FIRST, 3)
    write_case(tree, SECOND, 2)
    write_table(tree, ["TCGA_DU_0001", "2", "1", "45", "1"], ["TCGA_HT_0002", "", "3", "", "2"])
    return tree


def test_counts_and_fingerprint_are_those_of_the_drawn_arrays(tree):
    source = read(tree)
    assert [(case.name, case.institution, len(case.slices)) for case in source.cases] == [
        (FIRST, "DU", 3),
        (SECOND, "HT", 2),
    ]
    assert source.slices == 5
    assert source.tumor_slices == 5
    assert source.tumor_pixels == 10 * (1 + 2 + 3) + 10 * (1 + 2)
    lines = []
    for case, clinical, count in ((FIRST, "2 1 45 1", 3), (SECOND, "-1 3 -1 2", 2)):
        for number in range(1, count + 1):
            image, mask = draw(case, number)
            digests = [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in (image, mask // 255)]
            lines.append(f"{case} {clinical} {number} {digests[0]} {digests[1]}\n")
    assert source.fingerprint == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_every_form_of_the_same_data_is_the_same_source(tree, tmp_path):
    expected = read(tree).fingerprint
    once = zip_tree(tree, tmp_path / "once.zip", ("kaggle_3m",))
    twice = zip_tree(tree, tmp_path / "archive.zip", ("kaggle_3m", "lgg-mri-segmentation/kaggle_3m"))
    nested = zip_tree(tree, tmp_path / "nested.zip", ("lgg-mri-segmentation/kaggle_3m",))
    before = sorted(tmp_path.rglob("*"))
    for form in (tree, tree.parent, once, twice, nested):
        source = read(form)
        assert (source.fingerprint, source.slices) == (expected, 5), form
    assert sorted(tmp_path.rglob("*")) == before, "reading a zip must extract nothing"


@pytest.mark.parametrize("changed", ["image", "mask", "clinical"])
def test_fingerprint_follows_the_content(tree, changed):
    before = read(tree).fingerprint
    image, mask = draw(FIRST, 2)
    if changed == "image":
        image[17, 5, 1] ^= 1
        Image.fromarray(image).save(tree / FIRST / f"{FIRST}_2.tif")
    elif changed == "mask":
        mask[255, 255] = 255
        Image.fromarray(mask).save(tree / FIRST / f"{FIRST}_2_mask.tif")
    else:
        write_table(tree, ["TCGA_DU_0001", "3", "1", "45", "1"], ["TCGA_HT_0002", "", "3", "", "2"])
    assert read(tree).fingerprint != before


def test_slices_are_in_the_order_of_their_numbers(tmp_path):
    write_case(tmp_path, FIRST, 11)
    (case,), faults = list_cases(tmp_path)
    assert not faults
    assert [item.number for item in case.slices] == list(range(1, 12))
    assert case.slices[9].image.name == f"{FIRST}_10.tif"


def test_clinical_fields(tree):
    first, second = (case.clinical for case in read(tree).cases)
    assert first._asdict() == {"grade": 2, "histological_type": 1, "age": 45, "gender": 1}
    assert second._asdict() == {"grade": -1, "histological_type": 3, "age": -1, "gender": 2}


def test_without_a_table_only_the_clinical_fields_are_lost(tree, caplog):
    (tree / "data.csv").unlink()
    source = read(tree)
    assert source.slices == 5
    assert {tuple(case.clinical) for case in source.cases} == {(-1, -1, -1, -1)}
    assert "data.csv" in caplog.text


def test_files_of_operating_systems_are_ignored(tree):
    expected = read(tree).fingerprint
    for name in (".DS_Store", "Thumbs.db", f"._{FIRST}_1.tif"):
        (tree / FIRST / name).write_bytes(b"x")
    (tree / "__MACOSX").mkdir()
    (tree / "README.md").write_text("about the set")
    assert read(tree).fingerprint == expected


def color_tiff_16_bit() -> bytes:
    """A 256 x 256 color TIFF of 16 bits, which Pillow would silently read as 8 bits."""
    entries = [(256, 256), (257, 256), (258, 8), (259, 1), (262, 2), (273, 0), (277, 3), (278, 256), (279, 393216)]
    bits_at = 8 + 2 + 12 * len(entries) + 4
    values = dict(entries) | {258: bits_at, 273: bits_at + 6}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items() if tag != 258)
    bits = struct.pack("<HHII", 258, 3, 3, bits_at)
    directory = directory[:24] + bits + directory[24:]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory + struct.pack("<I", 0)
    return head + struct.pack("<HHH", 16, 16, 16) + bytes(range(256)) * (393216 // 256)


def encoded(pixels: np.ndarray | Image.Image, file_format: str = "TIFF", **options) -> bytes:
    buffer = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


IMAGE, MASK = f"{FIRST}_2.tif", f"{FIRST}_2_mask.tif"
WHOLE = encoded(draw(FIRST, 2)[0])
GRAY = np.zeros((256, 256), np.uint8)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        (IMAGE, WHOLE[:-5000], "truncated"),
        (MASK, encoded(GRAY)[:-5000], "truncated"),
        (IMAGE, WHOLE[:6], "a truncated or damaged TIFF"),
        (IMAGE, b"", "an empty file"),
        (IMAGE, b"not an image", "not a TIFF image"),
        (IMAGE, encoded(draw(FIRST, 2)[0], "PNG"), "not a TIFF image"),
        (IMAGE, encoded(np.ones((128, 200, 3), np.uint8)), "200 x 128 pixels; expected 256 x 256"),
        (MASK, encoded(np.zeros((128, 200), np.uint8)), "200 x 128 pixels; expected 256 x 256"),
        (IMAGE, encoded(GRAY), "1 channel(s); expected 3"),
        (IMAGE, encoded(np.ones((256, 256, 4), np.uint8)), "4 channel(s); expected 3"),
        (MASK, encoded(np.ones((256, 256, 3), np.uint8)), "3 channel(s); expected 1"),
        (IMAGE, color_tiff_16_bit(), "16 bits per value"),
        (MASK, encoded(np.zeros((256, 256), np.uint16)), "16 bits per value"),
        (MASK, encoded(np.zeros((256, 256), bool)), "1 bits per value"),
        (MASK, encoded(GRAY, save_all=True, append_images=[Image.fromarray(GRAY)]), "2 pages"),
        (MASK, encoded(GRAY + 1), "mask values 1; a mask contains only 0 and 255"),
        (MASK, encoded(np.tile(np.uint8([0, 7, 200, 255]), (256, 64))), "mask values 0, 7, 200, 255;"),
    ],
)
def test_a_bad_file_is_named_with_what_it_is(tree, name, data, words):
    (tree / FIRST / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        read(tree)
    assert "1 fault in" in str(caught.value)
    assert f"{FIRST}/{name}: " in str(caught.value)
    assert words in str(caught.value)


def test_16_bit_color_would_pass_unnoticed_through_pillow():
    """The reason for the check of the tag in `_decode`: if this test fails, remove the check."""
    assert Image.open(io.BytesIO(color_tiff_16_bit())).mode == "RGB"


def rename(folder: Path, old: str, new: str) -> None:
    (folder / old).rename(folder / new)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: (t / FIRST / IMAGE).unlink(), f"{FIRST}/{MASK}: a mask without an image"),
        (lambda t: (t / FIRST / MASK).unlink(), f"{FIRST}/{IMAGE}: an image without a mask"),
        (
            lambda t: [(t / FIRST / name).unlink() for name in (IMAGE, MASK)],
            f"{FIRST}: a gap in the numbering, which must run from 1 to 3: no 2",
        ),
        (lambda t: (t / "holiday").mkdir(), "kaggle_3m/holiday: a folder that is not a case"),
        (lambda t: (t / "TCGA_DU_0009_20010101").mkdir(), "TCGA_DU_0009_20010101: a case without a slice"),
        (lambda t: (t / FIRST / "notes.txt").write_text("x"), f"{FIRST}/notes.txt: unexpected in a case folder"),
        (lambda t: (t / FIRST / f"{SECOND}_9.tif").write_bytes(WHOLE), f"{FIRST}/{SECOND}_9.tif: unexpected"),
        (lambda t: (t / f"{FIRST}_1.tif").write_bytes(WHOLE), f"kaggle_3m/{FIRST}_1.tif: a slice outside of a case"),
        (lambda t: rename(t / SECOND, f"{SECOND}_2.tif", f"{SECOND}_02.tif"), f"{SECOND}/{SECOND}_02.tif: unexpected"),
        (lambda t: write_case(t, "TCGA_DU_0001_20050505", 1), "a second scan of patient TCGA_DU_0001"),
        (
            lambda t: (t / SECOND / f"{SECOND}_1.tif").write_bytes((t / FIRST / IMAGE).read_bytes()),
            f"{SECOND}/{SECOND}_1.tif: the same image as {FIRST}/{IMAGE} of another patient",
        ),
        (lambda t: write_table(t, ["2"], header=["grade"]), "data.csv: no column Patient, neoplasm_histologic_grade"),
        (
            lambda t: write_table(t, ["TCGA_DU_0001", "2", "1", "45", "male"]),
            "data.csv: line 2 (TCGA_DU_0001): gender is 'male'",
        ),
        (
            lambda t: write_table(t, ["TCGA_DU_0001", "2"]),
            "data.csv: line 2: the number of fields differs from the header",
        ),
        (lambda t: write_table(t, ["", "2", "1", "4", "1"]), "data.csv: line 2: no patient"),
        (
            lambda t: write_table(t, *[["TCGA_DU_0001", "2", "1", "4", "1"]] * 2),
            "line 3: patient TCGA_DU_0001 is listed twice",
        ),
        (lambda t: (t / "data.csv").write_bytes(b"\xff\xfe\x00"), "data.csv: not readable as a table"),
    ],
)
def test_a_bad_tree_is_refused_with_the_place(tree, spoil, words):
    spoil(tree)
    with pytest.raises(InputError) as caught:
        read(tree)
    assert words in str(caught.value)


def test_all_faults_are_reported_at_once(tmp_path):
    tree = tmp_path / "kaggle_3m"
    write_case(tree, FIRST, 60)
    for file in (tree / FIRST).glob("*[0-9].tif"):
        file.write_bytes(b"")
    (tree / FIRST / f"{FIRST}_1_mask.tif").write_bytes(b"text")  # image and mask of one slice are both bad
    with pytest.raises(InputError) as caught:
        read(tree)
    lines = str(caught.value).splitlines()
    assert "61 faults" in lines[0]
    assert len(lines) == 1 + 61
    assert f"{FIRST}_1.tif" in lines[1]
    assert f"{FIRST}_1_mask.tif" in lines[2]


def test_constant_images_and_repeats_within_a_patient_are_no_fault(tree):
    black = encoded(np.zeros((256, 256, 3), np.uint8))
    for case in (FIRST, SECOND):
        (tree / case / f"{case}_1.tif").write_bytes(black)
    (tree / FIRST / f"{FIRST}_3.tif").write_bytes((tree / FIRST / f"{FIRST}_2.tif").read_bytes())
    assert read(tree).slices == 5


def test_paths_that_are_no_source(tree, tmp_path):
    empty = tmp_path / "empty"
    (empty / "photos").mkdir(parents=True)
    text = tmp_path / "notes.txt"
    text.write_text("notes")
    whole = zip_tree(tree, tmp_path / "whole.zip", ("kaggle_3m",))
    broken = tmp_path / "broken.zip"
    broken.write_bytes(whole.read_bytes()[:-3000])
    for path, words in (
        (tmp_path / "nowhere", "no such file or folder"),
        (empty, "no case in it (found: photos)"),
        (text, "neither a folder nor a complete zip"),
        (broken, "download it again"),
    ):
        with pytest.raises(InputError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert words in str(caught.value)


def test_a_folder_without_permission_is_reported(tree, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=r"kaggle_3m: cannot be read \(.*Permission denied"):
        read(tree)


def test_a_damaged_member_of_a_zip_is_named(tree, tmp_path):
    path = zip_tree(tree, tmp_path / "damaged.zip", ("kaggle_3m",))
    data = bytearray(path.read_bytes())
    at = data.find(draw(FIRST, 2)[0].tobytes()[:64])  # stored, not compressed: the file contains the pixels unchanged
    data[at + 1000] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"{FIRST}/{IMAGE}: damaged or truncated \(Bad CRC-32"):
        read(path)


def test_a_zip_that_reaches_out_writes_nothing(tree, tmp_path):
    """Absolute names, names with .. and links: a zip is read in place, never unpacked to disk."""
    path = zip_tree(tree, tmp_path / "evil.zip", ("kaggle_3m",))
    outside = tmp_path / "outside.tif"
    link = zipfile.ZipInfo(f"kaggle_3m/{FIRST}/{FIRST}_4.tif")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, f"../../../{outside.name}")
        archive.writestr(f"kaggle_3m/{FIRST}/{FIRST}_4_mask.tif", encoded(GRAY))
    before = set(tmp_path.rglob("*"))
    outside.write_bytes(WHOLE)
    with pytest.raises(InputError, match=rf"{FIRST}_4\.tif: not a TIFF image"):  # its target's name, not its target
        read(path)
    for name in (str(outside), "kaggle_3m/../outside.tif"):
        copy = tmp_path / "copy.zip"
        shutil.copy(path, copy)
        with zipfile.ZipFile(copy, "a") as archive:
            archive.writestr(name, WHOLE)
        with pytest.raises(InputError, match=f"copy.zip: its member '{name}' is not a plain path within the zip"):
            read(copy)
        copy.unlink()
    outside.unlink()
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", [f"{FIRST}/{IMAGE}", "data.csv"])
def test_a_member_that_swells_is_let_go(tree, tmp_path, name):
    (tree / name).write_bytes(bytes(2**27))
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(tree.rglob("*")):
            archive.write(file, f"kaggle_3m/{file.relative_to(tree)}")
    assert path.stat().st_size < 4 * 2**20
    tracemalloc.start()
    with pytest.raises(InputError, match=rf"{Path(name).name}: .*larger than the limit of 8 MB"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()
