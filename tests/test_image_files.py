"""Single images: sizes, palettes, alpha channels, and numbers in names that are dates."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scored import read_masks

from brainseg_jax.errors import InputError
from brainseg_jax.scans.images import read_image
from brainseg_jax.scans.slices import SliceSource, stack_slices

GRAY = np.arange(240, dtype=np.uint8).reshape(15, 16)
COLOR = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=-1)


def alpha(value):
    return np.full(GRAY.shape, value, np.uint8)


def with_alpha(value):
    return Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(alpha(value))])


def palette(colors):
    picture = Image.fromarray(GRAY % 8).convert("L")
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette([int(value) for color in colors for value in color])
    return picture


GRAYS = [(30 * n, 30 * n, 30 * n) for n in range(8)]
COLORS = [(30 * n, 0, 255 - n) for n in range(8)]
READ = {
    "RGBA": (Image.fromarray(np.dstack([COLOR, alpha(255)])), COLOR),
    "LA": (with_alpha(255), GRAY),
    "gray palette": (palette(GRAYS), (GRAY % 8) * 30),
    "colors": (palette(COLORS), np.array(COLORS, np.uint8)[GRAY % 8]),
}


@pytest.mark.parametrize("name", READ)
def test_what_holds_the_values_of_a_slice_is_read(tmp_path, name):
    picture, expected = READ[name]
    picture.save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def transparent_palette(path):
    palette(GRAYS).save(path, transparency=3)


@pytest.mark.parametrize(
    ("save", "words"),
    [
        (lambda p: Image.fromarray(np.dstack([COLOR, alpha(255) - (GRAY == 7)])).save(p), "alpha from 254 to 255, so"),
        (lambda p: with_alpha(0).save(p), "transparent: alpha from 0 to 0, so"),
        (transparent_palette, "transparent: alpha from 0 to 255, so its gray values are undefined; save it"),
        (lambda p: Image.fromarray(GRAY.astype(np.uint16)).save(p), "16 bits per value, but slices must have 8"),
        (lambda p: Image.new("1", (4097, 4096)).save(p), "4097 x 4096 pixels; the limit is 16 million"),
    ],
)  # fmt: skip
def test_what_does_not_is_refused(tmp_path, save, words):
    save(tmp_path / "a.png")
    with pytest.raises(InputError, match=f"a.png: .*{words}"):
        read_image(tmp_path / "a.png")


def test_a_large_slice_is_read_whatever_its_bytes(tmp_path):
    """2048 x 2048 of three channels without compression: 12 MB."""
    values = np.zeros((2048, 2048, 3), np.uint8)
    values[5, 6] = 1, 2, 3
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert (tmp_path / "a.tif").stat().st_size > 12 * 2**20
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), values)


def test_a_date_in_the_name_of_a_single_file_is_no_number_of_a_slice(tmp_path):
    path = tmp_path / "scan_20240101120000.png"
    Image.fromarray(GRAY).save(path)
    source = SliceSource("scan", Path(), ((20240101120000, path),), notes=("found so",))
    scan = source.read()
    assert scan.numbers == (1,) and scan.notes[0] == "found so"
    mask = tmp_path / "masks" / "scan_20240101120000_pred.tif"
    mask.parent.mkdir()
    Image.fromarray((GRAY > 9).astype(np.uint8)).save(mask)
    assert read_masks(mask.parent)["scan"].numbers == (1,)


LABELS = (GRAY // 60 % 3).astype(np.uint8)  # 0, 1, 2
FEW = {
    "labels": (Image.fromarray(LABELS), "0, 1, 2: a label map"),
    "255": (Image.fromarray((GRAY > 99).astype(np.uint8) * np.uint8(255)), "0 and 255: a mask"),
    "1 bit": (Image.fromarray(GRAY > 99), "0 and (1|255): a mask"),
    "color": (Image.fromarray(np.stack([LABELS] * 3, axis=-1)), "0, 1, 2: a label map"),
}


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_slices_of_labels_are_no_scan(tmp_path, name, suffix):
    picture, words = FEW[name]
    found = tuple((number, tmp_path / f"a_{number}.{suffix}") for number in (1, 2))
    for _, path in found:
        picture.save(path)
    with pytest.raises(InputError, match=rf"a_1.{suffix} and the other slices: has only the values {words}"):
        SliceSource("a", tmp_path, found).read()
    other = GRAY if picture.mode != "RGB" else COLOR
    Image.fromarray(other).save(found[1][1])  # an empty slice, or one of few values, next to a full one
    assert len(SliceSource("a", tmp_path, found).read().numbers) == 2


def test_noise_above_the_head_is_a_slice(tmp_path):
    """As in the Kaggle set: three sequences of 0 to 4 in one slice, 125 colors at most."""
    noise = np.random.default_rng(0).integers(0, 5, (15, 16, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a_1.tif")
    np.testing.assert_array_equal(SliceSource("a", tmp_path, ((1, tmp_path / "a_1.tif"),)).read().voxels, noise[None])


def test_a_handful_of_pixels_may_be_anything(tmp_path):
    Image.fromarray(LABELS[::2, ::2]).save(tmp_path / "a_1.png")  # 8 x 8
    assert SliceSource("a", tmp_path, ((1, tmp_path / "a_1.png"),)).read().numbers == (1,)


def test_gaps_are_counted_and_ten_are_listed():
    """By differences, since a list of all numbers would take all memory and a day."""
    found = tuple((number, Path(f"a_{number}.png")) for number in (3, 5, 20240101120000))
    with pytest.raises(InputError) as raised:
        stack_slices("a", found, lambda _: GRAY)
    assert str(raised.value) == (
        "a: a gap in the numbers 3 to 20240101120000: 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, ... missing; "
        "add the missing slices"
    )
    with pytest.raises(InputError, match="a gap in the numbers 3 to 8: 4, 6, 7 missing; add"):
        stack_slices("a", (found[0], found[1], (8, Path("a_8.png"))), lambda _: GRAY)
