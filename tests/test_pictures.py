"""Pictures: the parts that they promise are really drawn."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from brainseg_jax.evaluation.pictures import PREDICTION_COLOR, TRUTH_COLOR, Slice, draw_curves, draw_panel


def picture(*, truth, prediction, attention):
    square = np.zeros((64, 64), bool)
    square[20:40, 20:40] = True
    return Slice(
        title="patient, slice 3",
        flair=np.full((64, 64), 90, np.uint8),
        truth=square & truth,
        prediction=square.T & prediction,
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


def test_an_attention_map_is_one_more_column(tmp_path):
    widths = []
    for attention in (False, True):
        draw_panel(tmp_path / "panel.png", [picture(truth=True, prediction=True, attention=attention)])
        with Image.open(tmp_path / "panel.png") as image:
            widths.append(image.width)
    assert widths[1] * 4 == widths[0] * 5


def test_curves_of_a_single_epoch(tmp_path):
    keys = ("train_loss", "val_loss", "val_dice_mean", "val_dice_median", "learning_rate")
    draw_curves(tmp_path / "curves.png", [{"epoch": 1, **dict.fromkeys(keys, 0.5)}])
    with Image.open(tmp_path / "curves.png") as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 10
