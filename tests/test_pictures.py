"""Pictures: all promised elements are drawn."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from brainseg_jax.evaluation import pictures
from brainseg_jax.evaluation.case_pictures import target_style
from brainseg_jax.evaluation.pictures import (
    PREDICTION_COLOR,
    TRUTH_COLOR,
    PictureSlice,
    draw_curves,
    draw_grid,
    draw_overlay,
    draw_panel,
    shown_slices,
)
from brainseg_jax.scans.description import Description, Target

TWO = Description(("T1",), (Target("left", (1,)), Target("right", (2,))))


def picture(*, truth, prediction, attention):
    square = np.zeros((64, 64), bool)
    square[20:40, 20:40] = True
    return PictureSlice(
        title="patient, slice 3",
        scan=np.full((64, 64), 90, np.uint8),
        truth=(square & truth)[..., None],
        prediction=(square.T & prediction)[..., None],
        attention=square.astype(float) if attention else None,
    )


def pixels_of(path, color):
    with Image.open(path) as image:
        difference = np.asarray(image.convert("RGB"), np.int32) - np.round(255 * np.array(to_rgb(color))).astype(int)
    return int((np.abs(difference).max(axis=-1) < 40).sum())


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize(("truth", "prediction"), [(True, False), (False, True), (False, False)])
def test_outlines_are_there_where_there_is_a_mask(tmp_path, truth, prediction, attention):
    path = tmp_path / "panel.png"
    draw_panel(path, [picture(truth=truth, prediction=prediction, attention=attention)] * 2)
    assert (pixels_of(path, TRUTH_COLOR) > 50) is truth
    assert (pixels_of(path, PREDICTION_COLOR) > 50) is prediction


@pytest.mark.parametrize("shape", [(40, 1), (1, 40), (1, 1)])
def test_slices_of_a_single_row_or_column_are_drawn(tmp_path, shape):
    mask = np.ones((*shape, 1), bool)
    slice_ = PictureSlice("patient, slice 3", np.full(shape, 90, np.uint8), mask, mask, None)
    draw_panel(tmp_path / "panel.png", [slice_])
    assert pixels_of(tmp_path / "panel.png", PREDICTION_COLOR) > 50


def test_an_attention_map_is_one_more_column(tmp_path):
    widths = []
    for attention in (False, True):
        draw_panel(tmp_path / "panel.png", [picture(truth=True, prediction=True, attention=attention)])
        with Image.open(tmp_path / "panel.png") as image:
            widths.append(image.width)
    assert widths[1] * 4 == widths[0] * 5


def two_targets(*, empty):
    square = np.zeros((64, 64, 2), bool)
    square[20:40, 4:24, 0] = square[20:40, 34:54, 1] = True
    return square & ~np.array([False, empty])


@pytest.mark.parametrize("draw", ["panel", "grid", "overlay"])
@pytest.mark.parametrize("empty", [False, True])
def test_targets_have_colors_and_a_legend(tmp_path, draw, empty):
    """A target's color is in the picture if the target is there, and in the legend in any case."""
    masks, scan = two_targets(empty=empty), np.full((64, 64), 90, np.uint8)
    path = tmp_path / "picture.png"
    one = PictureSlice("patient, slice 3", scan, masks, masks, None)
    if draw == "panel":
        draw_panel(path, [one], description=TWO)
    elif draw == "grid":
        draw_grid(path, {"a": [one], "b": [one]}, description=TWO)
    else:
        draw_overlay(path, scan=scan[None], masks=masks[None], numbers=(3,), targets=TWO.names)
    first, second = (pixels_of(path, target_style(k).color) for k in range(2))
    assert first > 80 and (second > 0.5 * first if not empty else 0 < second < 0.7 * first)
    assert pixels_of(path, TRUTH_COLOR) == pixels_of(path, PREDICTION_COLOR) == 0


def test_an_overlay_of_one_target_has_its_outline_and_no_legend(tmp_path):
    mask = two_targets(empty=True)[None, ..., :1]
    draw_overlay(tmp_path / "overlay.png", scan=np.full((1, 64, 64), 90, np.uint8), masks=mask, numbers=(3,))
    assert pixels_of(tmp_path / "overlay.png", PREDICTION_COLOR) == 4 * 19
    with Image.open(tmp_path / "overlay.png") as image:
        assert image.size == (64, 64)


def tall(count, *ranges):
    """Masks of 8 x 8 pixels with this number of slices, filled in slices `first` to `last`."""
    masks = np.zeros((count, 8, 8, 2), bool)
    for first, last in ranges:
        masks[first : last + 1, 2:5, 2:5, 1] = True
    return masks


def test_a_small_scan_is_shown_whole():
    assert shown_slices(tall(80, (3, 3))) == (list(range(80)), "")


def test_of_a_large_scan_an_overlay_shows_what_is_predicted_and_its_neighbors():
    shown, reason = shown_slices(tall(300, (0, 1), (100, 102), (299, 299)))
    assert shown == [0, 1, 2, 99, 100, 101, 102, 103, 298, 299] and "one on either side" in reason


def test_of_a_large_prediction_an_overlay_shows_evenly_spaced_slices():
    shown, reason = shown_slices(tall(300, (10, 169)))
    assert len(shown) == 80 and (shown[0], shown[-1]) == (9, 170) and set(np.diff(shown)) == {2, 3}
    assert "among 162 with" in reason


def test_of_a_large_scan_without_a_prediction_evenly_spaced_slices_are_shown():
    shown, reason = shown_slices(tall(191))
    assert shown == list(range(0, 191, 10)) and "nothing is predicted" in reason


@pytest.mark.parametrize("count", [20, 300])
def test_a_picture_lists_the_slices_that_it_does_not_show(tmp_path, monkeypatch, count):
    texts = []
    wrap = pictures.textwrap.wrap
    monkeypatch.setattr(pictures.textwrap, "wrap", lambda text, width: texts.append(text) or wrap(text, width))
    numbers, masks = tuple(reversed(range(count))), tall(count, (5, 6), (15, 15))
    draw_overlay(tmp_path / "a.png", scan=np.full((count, 8, 8), 9, np.uint8), masks=masks[..., 1:], numbers=numbers)
    words = (
        "7 of 300 slices: those with a prediction, and one on either side. Not shown: 299 to 296, 291 to 286, 282 to 0"
    )
    assert texts == ([words] if count == 300 else [])
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == (160 if count == 300 else 5 * 8) and (image.height > 4 * 8) is (count == 300)


def test_the_caption_of_a_mask_is_below_it(tmp_path):
    mask, scan = two_targets(empty=True)[None, ..., :1], np.full((1, 64, 64), 90, np.uint8)
    lines = ["expected Dice 0.87", "a line of its own that is longer than the picture is wide"]
    draw_overlay(tmp_path / "overlay.png", scan=scan, masks=mask, numbers=(3,), lines=lines)
    with Image.open(tmp_path / "overlay.png") as image:
        assert image.size == (160, 64 + (16 + 4) + (3 * 16 + 4))  # one line, and three
        assert (np.asarray(image)[64:84] > 150).all(axis=-1).any()


def test_a_large_picture_is_reduced_and_keeps_its_outlines(tmp_path):
    """10 slices of 1024 x 1024 are 10 million pixels: each becomes 512 x 512; a one-pixel line stays one."""
    masks, scan = np.zeros((10, 1024, 1024, 1), bool), np.full((10, 1024, 1024), 90, np.uint8)
    masks[4, 200:400, 300:600] = True
    draw_overlay(tmp_path / "overlay.png", scan=scan, masks=masks, numbers=tuple(range(10)))
    with Image.open(tmp_path / "overlay.png") as image:
        assert image.size == (4 * 512, 3 * 512)
        red = (np.asarray(image) == [255, 61, 0]).all(axis=-1)
    rows, columns = np.nonzero(red[512:, :512])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (100, 199, 150, 299)
    assert red.sum() == 2 * (100 + 150) - 4


def test_no_two_targets_look_alike():
    assert len({(style.color, style.dashes) for style in map(target_style, range(16))}) == 16


def test_curves_of_a_single_epoch(tmp_path):
    keys = ("train_loss", "val_loss", "val_dice_mean", "val_dice_median", "learning_rate")
    draw_curves(tmp_path / "curves.png", [{"epoch": 1, **dict.fromkeys(keys, 0.5)}])
    with Image.open(tmp_path / "curves.png") as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 10
