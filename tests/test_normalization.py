import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainseg_jax.data.normalization import Normalization, fit, normalize
from brainseg_jax.errors import InputError


@pytest.fixture
def volume():
    """A skewed volume with another distribution per channel; its voxel count puts percentiles between voxels."""
    rng = np.random.default_rng(0)
    return np.stack([rng.gamma(shape, 20, (7, 31, 29)) for shape in (1, 2, 4)], axis=-1).clip(0, 255).astype(np.uint8)


def zscore_with_numpy(volume: np.ndarray) -> np.ndarray:
    clipped = volume.astype(np.float64)
    for channel in range(3):
        lower, upper = np.percentile(clipped[..., channel], [10, 99])
        clipped[..., channel] = clipped[..., channel].clip(lower, upper)
    return (clipped - clipped.mean(axis=(0, 1, 2))) / clipped.std(axis=(0, 1, 2))


def test_volume_zscore_matches_numpy_on_float64(volume):
    constants = fit(volume, "volume_zscore")
    expected = np.percentile(volume.reshape(-1, 3).astype(np.float64), [10, 99], axis=0)
    np.testing.assert_allclose([constants.lower, constants.upper], expected, rtol=1e-6)
    assert all(value.shape == (3,) and value.dtype == np.float32 for value in constants)
    result = normalize(jnp.asarray(volume), Normalization(*(np.tile(value, (len(volume), 1)) for value in constants)))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, zscore_with_numpy(volume), atol=1e-5)


@pytest.mark.parametrize("values", [[3], [3, 250], [0, 1, 2], list(range(101))])
def test_percentiles_of_a_few_voxels_match_numpy(values):
    tiny = np.array(values, np.uint8)[None, :, None, None].repeat(3, axis=-1)
    constants = fit(tiny, "volume_zscore")
    np.testing.assert_allclose([constants.lower[0], constants.upper[0]], np.percentile(values, [10, 99]), rtol=1e-6)


def test_volume_median_matches_numpy(volume):
    result = normalize(jnp.asarray(volume[0]), fit(volume, "volume_median"))
    for channel in range(3):
        voxels = volume[..., channel].astype(np.float64)
        upper = np.percentile(voxels, 99)
        median = np.median(voxels[voxels > upper / 5])
        np.testing.assert_allclose(result[..., channel], voxels[0].clip(None, upper) / median - 1, rtol=1e-5, atol=1e-6)


def test_volume_median_puts_the_brain_on_one_level_whatever_the_fat():
    """Air 0, brain 80, tumor 120, and a different amount of fat (250) in each scan: -1, 0 and 0.5 by hand."""
    for fat in (5, 20, 35):
        voxels = np.array([0] * 50 + [80] * (90 - fat) + [120] * 10 + [250] * fat, np.uint8)
        volume = np.broadcast_to(voxels[None, :, None, None], (1, 150, 1, 3))
        np.testing.assert_allclose(
            normalize(jnp.asarray(volume[0]), fit(volume, "volume_median"))[[0, 50, 90 + 50 - fat], 0, 0],
            [-1.0, 0.0, 0.5],
            atol=1e-6,
        )


def test_rescale_divides_by_255(volume):
    result = normalize(jnp.asarray(volume[0]), fit(volume, "rescale"))
    np.testing.assert_allclose(result, volume[0] / 255.0, rtol=1e-6)


@pytest.mark.parametrize("method", ["volume_zscore", "volume_median"])
@pytest.mark.parametrize("level", [0, 7, 255])
def test_a_constant_volume_gives_zeros(level, method):
    volume = np.full((2, 4, 4, 3), level, np.uint8)
    assert not normalize(jnp.asarray(volume[0]), fit(volume, method)).any()


def test_each_image_has_its_own_constants_under_vmap_and_jit(volume):
    images = jnp.asarray(volume[:2])
    rows = [fit(volume[:2], "volume_zscore"), fit(volume[2:], "volume_zscore")]
    table = Normalization(*(np.stack(values) for values in zip(*rows, strict=True)))
    together = normalize(images, table)
    one_by_one = jnp.stack([normalize(image, row) for image, row in zip(images, rows, strict=True)])
    np.testing.assert_array_equal(together, one_by_one)
    np.testing.assert_allclose(jax.jit(jax.vmap(normalize))(images, table), together, atol=1e-6)
    np.testing.assert_array_equal(normalize(images.astype(jnp.float32), table), together)


def test_unknown_method_is_refused(volume):
    with pytest.raises(InputError, match=r"'zscore'.*volume_zscore, volume_median, rescale"):
        fit(volume, "zscore")
