from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from brainseg_jax.data.augment import perturb_intensity, replace_channels, warp
from brainseg_jax.scans.description import LGG
from brainseg_jax.training.step import augmentation_keys

OFF = {"rotation": 0.0, "scale": 0.0, "shift": 0.0, "shear": 0.0, "flip": 0.0}
QUIET = {"contrast": 0.0, "gamma": 0.0, "noise": 0.0}
ALL_ON = {"rotation": 20.0, "scale": 0.2, "shift": 0.1, "shear": 10.0, "flip": 0.5}
KEYS = [jax.random.key(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def image() -> jax.Array:
    """Random pixels [40, 48, 3], so that any wrong interpolation tap shows."""
    return jnp.asarray(np.random.default_rng(0).random((40, 48, 3), np.float32))


@pytest.fixture(scope="module")
def mask() -> jax.Array:
    return jnp.asarray(
        ndimage.gaussian_filter(np.random.default_rng(1).standard_normal((40, 48, 1)), 2) > 0, jnp.float32
    )


def recover_affine(key: jax.Array, **amounts: float) -> tuple[np.ndarray, np.ndarray]:
    """Recovers the map that `warp` applies, from images whose pixels contain their own row and column.

    Rows and columns are linear, so bilinear sampling returns exactly the input position of each output pixel.
    """
    row, column = np.mgrid[0:40, 0:48].astype(np.float32)
    ones = np.ones_like(row)
    places, _ = warp(key, jnp.asarray(np.stack([row, column, ones], axis=-1)), jnp.zeros((40, 48, 1)), **amounts)
    inside = np.asarray(places[..., 2]) > 0.999999
    outputs = np.stack([row[inside], column[inside], ones[inside]], axis=-1)
    solution, _, _, _ = np.linalg.lstsq(outputs.astype(np.float64), np.asarray(places)[inside][:, :2], rcond=None)
    return solution[:2].T, solution[2]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("amounts", [ALL_ON, {**OFF, "rotation": 45.0}, {**OFF, "shear": 20.0}], ids=str)
def test_warp_is_one_affine_resampling_as_in_scipy(image, mask, seed, amounts):
    key = jax.random.key(seed)
    matrix, offset = recover_affine(key, **amounts)
    warped, warped_mask = warp(key, image, mask, **amounts)
    for channel in range(3):
        expected = ndimage.affine_transform(
            np.asarray(image[..., channel]), matrix, offset, order=1, mode="grid-constant", cval=0
        )
        np.testing.assert_allclose(warped[..., channel], expected, atol=1e-3)
    expected = ndimage.affine_transform(np.asarray(mask[..., 0]), matrix, offset, order=0, mode="grid-constant", cval=0)
    assert np.mean(np.asarray(warped_mask[..., 0]) != expected) < 0.002  # a place halfway between two pixels may differ


def decompose(matrix: np.ndarray) -> dict[str, float]:
    """Rotation and shear in degrees, scale and flip of `R(angle) @ [[1, 0], [tan(shear), 1]] @ mirror / scale`."""
    scale = 1 / np.sqrt(abs(np.linalg.det(matrix)))
    flip = np.linalg.det(matrix) < 0
    unit = matrix * scale @ np.diag([1, -1 if flip else 1])
    angle = np.arctan2(-unit[0, 1], unit[1, 1])
    slant = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) @ unit
    np.testing.assert_allclose([slant[0, 0], slant[0, 1], slant[1, 1]], [1, 0, 1], atol=1e-4)
    return {
        "rotation": np.rad2deg(angle),
        "scale": scale - 1,
        "shear": np.rad2deg(np.arctan(slant[1, 0])),
        "flip": flip,
    }


def test_amounts_are_bounds_and_are_reached_in_both_directions():
    found = [decompose(recover_affine(jax.random.key(seed), **ALL_ON)[0]) for seed in range(60)]
    for name in ("rotation", "scale", "shear"):
        values = np.array([one[name] for one in found])
        assert np.abs(values).max() <= ALL_ON[name] * 1.001
        assert values.min() < -0.8 * ALL_ON[name] and values.max() > 0.8 * ALL_ON[name]
    assert 15 < sum(one["flip"] for one in found) < 45
    correlations = np.corrcoef([[one[name] for one in found] for name in ("rotation", "scale", "shear", "flip")])
    assert np.abs(correlations - np.eye(4)).max() < 0.4  # each has its own randomness


def test_shift_is_a_fraction_of_the_width():
    offsets = np.array([recover_affine(jax.random.key(seed), **{**OFF, "shift": 0.1})[1] for seed in range(40)])
    assert np.abs(offsets).max() <= 4.8 + 1e-4
    assert (offsets.max(axis=0) > 4.1).all() and (offsets.min(axis=0) < -4.1).all()  # 10 % of the height is 4


def test_the_center_of_the_image_stays_when_nothing_is_shifted():
    for key in KEYS:
        matrix, offset = recover_affine(key, **{**ALL_ON, "shift": 0.0})
        np.testing.assert_allclose(matrix @ [19.5, 23.5] + offset, [19.5, 23.5], atol=1e-3)


def test_crop_is_a_window_of_the_moved_image_at_every_offset(image, mask):
    offsets = set()
    for seed in range(60):
        key = jax.random.key(seed)
        whole, whole_mask = warp(key, image, mask, **ALL_ON)
        window, window_mask = warp(key, image, mask, **ALL_ON, crop=38)
        assert window.shape == (38, 38, 3) and window_mask.shape == (38, 38, 1)
        found = [
            (row, column)
            for row in range(3)
            for column in range(11)
            if np.allclose(window, whole[row : row + 38, column : column + 38], atol=1e-4)
        ]
        assert len(found) == 1
        (row, column) = found[0]
        np.testing.assert_array_equal(window_mask, whole_mask[row : row + 38, column : column + 38])
        offsets.add((row, column))
    assert {row for row, _ in offsets} == set(range(3)) and {column for _, column in offsets} == set(range(11))
    assert len(offsets) > 20  # rows and columns are drawn apart


def test_all_off_returns_the_very_same_bits(image, mask):
    for transform in (partial(warp, **OFF), jax.jit(partial(warp, **OFF))):
        same_image, same_mask = transform(KEYS[0], image, mask)
        np.testing.assert_array_equal(same_image, image)
        np.testing.assert_array_equal(same_mask, mask)
    np.testing.assert_array_equal(jax.jit(partial(perturb_intensity, **QUIET))(KEYS[0], image), image)


def test_flip_mirrors_left_and_right_and_twice_is_nothing(image, mask):
    always = partial(warp, **{**OFF, "flip": 1.0})
    once = always(KEYS[0], image, mask)
    np.testing.assert_array_equal(once[0], image[:, ::-1])
    np.testing.assert_array_equal(once[1], mask[:, ::-1])
    twice = always(KEYS[1], *once)
    np.testing.assert_array_equal(twice[0], image)
    np.testing.assert_array_equal(twice[1], mask)


def test_mask_stays_binary_and_on_top_of_the_image(mask):
    """The image is the mask: after the warp the two differ at most where a boundary was interpolated."""
    for key in KEYS:
        warped, warped_mask = warp(key, jnp.repeat(mask, 3, axis=-1), mask, **ALL_ON)
        assert set(np.unique(warped_mask)) == {0.0, 1.0}
        assert 0 < warped_mask.mean() < 1
        sure = np.abs(np.asarray(warped[..., :1]) - 0.5) > 0.25  # for certain on one side of the middle
        agreeing = (warped[..., :1] > 0.5) == (warped_mask > 0.5)
        assert np.asarray(agreeing)[sure].mean() > 0.97


@pytest.fixture(scope="module")
def pixels(image) -> jax.Array:
    return image * 4 - 1  # negative values too, as normalized images have them


def perturb_each(pixels: jax.Array, **amounts: float) -> list[np.ndarray]:
    results = [np.asarray(perturb_intensity(key, pixels, **{**QUIET, **amounts})) for key in KEYS]
    assert len({float(result[0, 0, 0]) for result in results}) == len(KEYS)
    return results


def test_contrast_stretches_about_the_mean_by_one_factor_a_channel(pixels):
    before = np.asarray(pixels)
    mean = before.mean(axis=(0, 1))
    for result in perturb_each(pixels, contrast=0.3):
        factors = result.std(axis=(0, 1)) / before.std(axis=(0, 1))
        assert (np.abs(factors - 1) < 0.3).all() and len(set(factors.round(4))) == 3
        np.testing.assert_allclose(result, mean + factors * (before - mean), atol=1e-4)


def test_gamma_is_one_exponent_a_channel_between_its_darkest_and_brightest_pixel(pixels):
    low, high = (np.asarray(extreme(pixels, axis=(0, 1))) for extreme in (jnp.min, jnp.max))
    for result in perturb_each(pixels, gamma=0.5):
        unit, new_unit = ((np.asarray(value) - low) / (high - low) for value in (pixels, result))
        middle = (unit > 0.3) & (unit < 0.7)
        for channel in range(3):
            chosen = middle[..., channel]
            exponents = np.log(new_unit[..., channel][chosen]) / np.log(unit[..., channel][chosen])
            np.testing.assert_allclose(exponents, exponents.mean(), rtol=1e-3)
            assert abs(np.log(exponents.mean())) < 0.5
        np.testing.assert_allclose([result.min(axis=(0, 1)), result.max(axis=(0, 1))], [low, high], atol=1e-5)


def test_noise_is_gaussian_and_bounded_in_units_of_the_image(pixels):
    for result in perturb_each(pixels, noise=0.2):
        difference = result - np.asarray(pixels)
        assert 0 < difference.std() < 0.21 * np.asarray(pixels).std() and abs(difference.mean()) < 0.05
        assert abs(np.mean(np.abs(difference) < difference.std()) - 0.6827) < 0.02


def test_noise_is_gaussian_in_its_tails_and_of_one_pixel_says_nothing_of_another():
    pixels = jax.random.normal(KEYS[0], (99, 99, 3))  # an odd number
    for key in KEYS:
        noise = np.asarray(perturb_intensity(key, pixels, **{**QUIET, "noise": 5.0}) - pixels, np.float64)
        noise /= noise.std()
        assert stats.kstest(noise.ravel(), "norm").statistic < 1.95 / np.sqrt(noise.size)  # p 0.001
        assert 3.3 < np.abs(noise).max() < 4.5
        flat = noise.ravel()
        for apart in (1, 2, 3, 99 * 3):
            assert abs(np.mean(flat[apart:] * flat[:-apart])) < 4 / np.sqrt(flat.size)


def test_noise_takes_65536_levels():
    """N draws hit 65536 (1 - exp(-n / 65536)) levels, here 23 500 +- 56. Nothing is rounded on black."""
    pixels = jnp.zeros((99, 99, 3)).at[0].set(1.0)
    for key in KEYS:
        noise = np.asarray(perturb_intensity(key, pixels, **{**QUIET, "noise": 5.0}))[1:]
        assert abs(len(np.unique(noise)) - 65536 * (1 - np.exp(-noise.size / 65536))) < 4 * 56


def test_a_constant_image_stays_finite():
    flat = jnp.full((8, 8, 3), -0.7)
    result = perturb_intensity(KEYS[0], flat, contrast=0.3, gamma=0.5, noise=0.2)
    np.testing.assert_allclose(result, flat, atol=1e-6)


def test_jit_and_vmap_do_what_eager_does_and_a_key_says_it_all(image, mask):
    keys = jnp.stack(KEYS)
    images, masks = (jnp.stack([value] * len(KEYS)) for value in (image, mask))
    move, perturb = partial(warp, **ALL_ON), partial(perturb_intensity, contrast=0.2, gamma=0.2, noise=0.1)
    moved, moved_masks = jax.jit(jax.vmap(move))(keys, images, masks)
    perturbed = jax.jit(jax.vmap(perturb))(keys, images)
    for index in range(len(KEYS)):
        eager = move(keys[index], image, mask)
        np.testing.assert_allclose(moved[index], eager[0], atol=1e-4)
        assert np.mean(np.asarray(moved_masks[index] != eager[1])) < 0.002  # halfway places again
        np.testing.assert_allclose(perturbed[index], perturb(keys[index], image), atol=1e-5)
        np.testing.assert_array_equal(eager[0], move(KEYS[index], image, mask)[0])
    assert not np.array_equal(moved[0], moved[1])


def test_flair_replaces_one_other_sequence_or_both():
    image = jnp.broadcast_to(jnp.array([10.0, 20.0, 30.0]), (4, 5, 3))
    changed = jax.vmap(lambda key: replace_channels(key, image, description=LGG, probability=0.6))(
        jax.random.split(jax.random.key(0), 3000)
    )
    assert (changed == changed[:, :1, :1]).all()  # whole channels
    kinds, counts = np.unique(np.asarray(changed[:, 0, 0]), axis=0, return_counts=True)
    assert kinds.tolist() == [[10, 20, 20], [10, 20, 30], [20, 20, 20], [20, 20, 30]]
    # 0.6 / 3 each and 0.4 unchanged, within 4 standard deviations of a binomial of 3000
    np.testing.assert_allclose(counts / 3000, [0.2, 0.4, 0.2, 0.2], atol=0.036)


def test_flair_stand_in_can_be_off(image):
    np.testing.assert_array_equal(replace_channels(jax.random.key(0), image, description=LGG, probability=0.0), image)


def test_no_two_draws_of_a_batch_depend_on_each_other(monkeypatch):
    """Every number that the augmentation draws, correlated with every other one over 4096 examples of 512 steps.

    For independent draws the correlation has a standard deviation of 1 / 64. All of about 2 000 pairs stay below five
    of these. Equal keys would give 0.5 and more.
    """
    drawn = []

    def recording(draw):
        def recorded(*args, **options):
            drawn.append(draw(*args, **options))
            return drawn[-1]

        return recorded

    for name in ("uniform", "bernoulli", "randint", "bits"):
        monkeypatch.setattr(jax.random, name, recording(getattr(jax.random, name)))
    image, mask = jax.random.normal(jax.random.key(7), (2, 2, 3)), jnp.ones((2, 2, 1))

    def all_draws(for_warp, for_intensity, for_stand_in):
        drawn.clear()
        warp(for_warp, image, mask, **ALL_ON)
        replace_channels(for_stand_in, image, description=LGG, probability=0.5)
        perturb_intensity(for_intensity, image, contrast=0.2, gamma=0.2, noise=0.1)
        return jnp.concatenate([jnp.ravel(value).astype(jnp.float32) for value in drawn])

    keys = jax.vmap(lambda step: jnp.stack(augmentation_keys(3, step, 8)), out_axes=1)(jnp.arange(512))
    draws = np.asarray(jax.jit(jax.vmap(all_draws))(*keys.reshape(3, -1)))
    # Rotation, scale, shear, flip, two of shift; change and which; contrast and gamma of three channels, level; noise.
    assert draws.shape == (4096, 6 + 2 + 7 + 6)
    lagged = [draws[:-8], draws[1:-7], draws[8:]]  # the same example, the next one, the same place one step later
    correlations = np.corrcoef(np.concatenate(lagged, axis=1), rowvar=False)
    assert np.abs(correlations - np.eye(len(correlations))).max() < 5 / 64


def test_a_channel_is_changed_alike_in_neighboring_slices(image):
    """Contrast and replaced channels are drawn for a channel, not for each of its slices."""
    stacked = jnp.concatenate([image, image], axis=-1)
    changed = perturb_intensity(jax.random.key(3), stacked, contrast=0.5, gamma=0.3, noise=0.0, channels=3)
    np.testing.assert_array_equal(changed[..., :3], changed[..., 3:])
    assert np.abs(changed[..., :3] - image).max() > 0.01
    other = stacked.at[..., 3:].multiply(2.0)
    replaced = jax.vmap(lambda key: replace_channels(key, other, description=LGG, probability=1.0))(
        jax.random.split(jax.random.key(0), 20)
    )
    np.testing.assert_allclose(replaced[..., 3:], 2.0 * replaced[..., :3], rtol=1e-6)
    np.testing.assert_array_equal(replaced[..., 4], jnp.broadcast_to(other[..., 4], (20, *image.shape[:2])))
