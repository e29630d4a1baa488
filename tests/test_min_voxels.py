"""The minimum size of a component is the same share of the image on every grid; the learning rate after a plateau."""

import numpy as np
import pytest
from PIL import Image

from brainseg_jax import sharding
from brainseg_jax.data.canvas import Canvas
from brainseg_jax.evaluation.pictures import PictureSlice, draw_panel
from brainseg_jax.inference.postprocess import CANDIDATES, PostProcess
from brainseg_jax.training.loop_state import LoopState, lower_on_plateau
from brainseg_jax.training.state import TrainState


@pytest.mark.parametrize(
    ("size", "spacing", "least"),
    [
        ((256, 256), None, 50),
        ((512, 512), None, 200),  # four pixels for one
        ((128, 128), None, 13),  # 12.5: a component of 12 is smaller than the minimum, one of 13 is not
        ((512, 384), None, 200),  # the network sees a square of 512, with black next to the slice
        ((256, 128), (5.0, 1.0, 2.0), 25),  # a square in mm is 256 x 128 of these pixels
    ],
)
def test_the_minimum_is_a_share_of_the_image_that_the_network_sees(size, spacing, least):
    post = PostProcess(min_voxels=50).on_grid(Canvas.around((1, *size), spacing, image_size=128).padded)
    assert post == PostProcess(min_voxels=least)
    volume = np.zeros((2, 20, 20), bool)
    volume[1].flat[:least] = True  # whole rows and a piece of one: connected
    assert post(volume.astype(np.float32)).sum() == least
    volume[1].flat[least - 1] = False
    assert not post(volume.astype(np.float32)).any()


def test_what_keeps_everything_keeps_it_on_every_grid():
    for post in (PostProcess(), PostProcess(min_voxels=1)):
        assert post.on_grid((2048, 2048)) == post
    for post in CANDIDATES:
        assert post.on_grid((256, 256)) == post


@pytest.mark.parametrize(("scale", "expected"), [(0.002, 0.002), (0.05, 0.01), (1.0, 0.1), (0.01, 0.01)])
def test_a_plateau_never_raises_the_rate(scale, expected):
    one = sharding.put(np.asarray(scale, np.float32), sharding.replicated(sharding.data_mesh()))
    state = TrainState(one, {}, {}, (), None, learning_rate_scale=one)
    mesh = sharding.data_mesh()
    state, loop = lower_on_plateau(state, LoopState(plateau_wait=5), patience=5, factor=0.1, minimum=0.01, mesh=mesh)
    assert float(state.learning_rate_scale) == pytest.approx(expected) and loop.plateau_wait == 0


def test_one_bright_pixel_does_not_make_a_panel_black(tmp_path):
    flair = np.full((64, 64), 40, np.uint8)
    flair[0, 0] = 255
    nothing = np.zeros((64, 64, 1), bool)
    draw_panel(tmp_path / "panel.png", [PictureSlice("a slice", flair, nothing, nothing, None)])
    with Image.open(tmp_path / "panel.png") as image:
        gray = np.asarray(image.convert("L"))
    first = gray[gray.shape[0] // 2, gray.shape[1] // 8]  # in the middle of the FLAIR
    assert first == 255  # 40 is the 99.5th percentile; it was 40
