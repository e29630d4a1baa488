"""Pictures: the parts that they promise are really drawn."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from brainseg_jax.evaluation.case_pictures import target_style
from brainseg_jax.evaluation.pictures import (
    PREDICTION_COLOR,
    TRUTH_COLOR,
    PictureSlice,
    draw_curves,
    draw_grid,
    draw_overlay,
    draw_panel,
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
    """Each color is in the picture where its target is, and in the legend where it is not."""
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


def test_no_two_targets_look_alike():
    assert len({(style.color, style.dashes) for style in map(target_style, range(16))}) == 16


def test_curves_of_a_single_epoch(tmp_path):
    keys = ("train_loss", "val_loss", "val_dice_mean", "val_dice_median", "learning_rate")
    draw_curves(tmp_path / "curves.png", [{"epoch": 1, **dict.fromkeys(keys, 0.5)}])
    with Image.open(tmp_path / "curves.png") as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 10
