"""Slices on their way to the network and back: sizes and positions by hand."""

import numpy as np
import pytest
from scipy import ndimage

from brainseg_jax.data.canvas import Canvas, with_neighbors
from brainseg_jax.errors import InputError


def test_a_slice_is_fitted_to_the_image_in_millimeters():
    # 100 rows of 1 mm and 80 columns of 2 mm: 160 mm, so 160 rows and 80 columns, which become 64 x 64.
    canvas = Canvas.around((3, 100, 80), (5.0, 1.0, 2.0), image_size=64)
    assert canvas == Canvas((100, 80), (160, 80), 64, 0)
    assert Canvas.around((9, 256, 256), None, image_size=128) == Canvas((256, 256), (256, 256), 128, 0)


def test_at_a_pixel_spacing_nothing_is_resampled_that_has_it():
    """31 x 43 pixels of 1 mm in the middle of 64 x 64: 16 rows above, 10 columns to the left."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(1, 256, (2, 31, 43, 2)).astype(np.uint8)
    canvas = Canvas.around((2, 31, 43), (1.0, 1.0, 1.0), image_size=64, pixel_spacing=1.0)
    images = canvas.to_network(voxels)
    assert images.shape == (2, 64, 64, 2)
    np.testing.assert_array_equal(images[:, 16:47, 10:53], voxels)
    assert images.sum() == voxels.sum(dtype=np.int64)
    np.testing.assert_array_equal(canvas.from_network(images.astype(np.float32)), voxels)


def test_half_the_spacing_is_twice_the_pixels():
    # 40 x 20 pixels of 0.5 x 2 mm are 20 x 40 mm: at 1 mm a pixel 20 x 40 pixels of the image's 48 x 48.
    canvas = Canvas.around((1, 40, 20), (3.0, 0.5, 2.0), image_size=48, pixel_spacing=1.0)
    assert canvas == Canvas((40, 20), (96, 24), 48, 0)
    images = canvas.to_network(np.full((1, 40, 20, 1), 200, np.uint8))
    inside = images[0, :, :, 0] > 100
    assert inside.any(axis=1).sum() == 20 and inside.any(axis=0).sum() == 40
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    assert (rows[0], columns[0]) == (14, 4)


def test_a_slice_larger_than_the_image_makes_the_image_larger():
    canvas = Canvas.around((1, 100, 70), (1.0, 1.0, 1.0), image_size=64, pixel_spacing=1.0, multiple=16)
    assert canvas.side == 112 and canvas.padded == (112, 112)
    assert Canvas.around((1, 64, 64), None, image_size=64, pixel_spacing=1.0, multiple=16).side == 64


@pytest.mark.parametrize(("view", "axis"), [("axial", 0), ("coronal", 1), ("sagittal", 2)])
def test_a_view_takes_slices_along_its_axis(view, axis):
    volume = np.random.default_rng(0).integers(0, 256, (8, 9, 10, 1)).astype(np.uint8)
    canvas = Canvas.around((8, 9, 10), None, image_size=16, pixel_spacing=1.0, view=view)
    images = canvas.to_network(volume)
    assert images.shape == ((8, 9, 10)[axis], 16, 16, 1)
    height, width = (n for i, n in enumerate((8, 9, 10)) if i != axis)
    top, left = (16 - height) // 2, (16 - width) // 2
    np.testing.assert_array_equal(images[3, top : top + height, left : left + width], np.take(volume, 3, axis=axis))
    np.testing.assert_array_equal(canvas.from_network(images.astype(np.float32)), volume)


def test_maps_come_back_as_scipy_interpolates_them():
    rng = np.random.default_rng(0)
    canvas = Canvas((100, 80), (160, 80), 40, 0)
    maps = rng.random((2, 40, 40, 3), np.float32)
    expected = ndimage.zoom(maps, (1, 4, 2, 1), order=1, grid_mode=True, mode="nearest")[:, 30:130]
    np.testing.assert_allclose(canvas.from_network(maps), expected, atol=1e-5)


def test_masks_are_resized_target_by_target():
    masks = np.zeros((1, 8, 8, 2), bool)
    masks[0, :3, :, 0] = True  # at 4 x 4 pixels: one and a half rows, and half a pixel belongs to the mask
    masks[0, 0, 0, 1] = True  # a quarter of a pixel does not
    resized = Canvas((8, 8), (8, 8), 4, 0).masks_to_network(masks)
    np.testing.assert_array_equal(resized[0, :, 0, 0], [True, True, False, False])
    assert not resized[..., 1].any()


def test_neighbors_are_further_channels_and_the_ends_are_repeated():
    images = np.arange(4 * 2, dtype=np.uint8).reshape(4, 1, 1, 2)  # slices (0, 1), (2, 3), (4, 5), (6, 7)
    assert with_neighbors(images, 0) is images
    stacked = with_neighbors(images, 2)[:, 0, 0].tolist()
    assert stacked == [
        [0, 1, 0, 1, 0, 1, 2, 3, 4, 5],
        [0, 1, 0, 1, 2, 3, 4, 5, 6, 7],
        [0, 1, 2, 3, 4, 5, 6, 7, 6, 7],
        [2, 3, 4, 5, 6, 7, 6, 7, 6, 7],
    ]


def test_a_spacing_that_no_scan_has_is_refused_before_memory_is_taken():
    with pytest.raises(InputError, match=r"40 x 40 pixels of 200 x 200 mm would become images of 8000 .* at 1 mm"):
        Canvas.around((9, 40, 40), (1.0, 200.0, 200.0), image_size=64, pixel_spacing=1.0)
    with pytest.raises(InputError, match=r"images of 64000 pixels a side.* Correct the spacing"):
        Canvas.around((9, 40, 40), (1.0, 0.001, 1.6), image_size=64)
