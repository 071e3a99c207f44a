"""The augmentation's distribution, its exact cases, and that a split batch changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexpool_jax.data.augment import make_augment, make_normalise


def jitted(**options):
    """As a step runs it; one compilation is quicker than one for each operation."""
    return jax.jit(make_augment(**options))


def keys_for(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def random_images(*shape, dtype=np.float32):
    rng = np.random.default_rng(0)
    if dtype == np.uint8:
        return jnp.asarray(rng.integers(0, 256, shape, dtype=np.uint8))
    return jnp.asarray(rng.standard_normal(shape), dtype)


def within_four_deviations(count, total, probability):
    """Binomial: false once in some 16,000 fair draws, and the keys are fixed."""
    return abs(count - total * probability) < 4 * np.sqrt(total * probability * (1 - probability))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_everything_off_changes_nothing(dtype):
    images = random_images(4, 6, 5, 3, dtype=dtype)
    augmented = jitted(flip=False, scale=(1.0, 1.0), crop=0)(images, keys_for(4))
    np.testing.assert_array_equal(augmented, images)
    assert augmented.dtype == images.dtype


def test_each_image_is_mirrored_with_probability_one_half():
    images = random_images(2000, 2, 3, 1)
    augmented = np.asarray(jitted(flip=True, scale=(1.0, 1.0))(images, keys_for(2000)))
    mirrored = (augmented == np.asarray(images)[:, :, ::-1]).all(axis=(1, 2, 3))
    untouched = (augmented == np.asarray(images)).all(axis=(1, 2, 3))
    assert (mirrored ^ untouched).all()
    assert within_four_deviations(mirrored.sum(), 2000, 0.5)


def test_crop_is_a_window_of_the_zero_padded_image_uniform_over_all_places():
    crop, count = 2, 5000
    images = random_images(count, 6, 7, 1)
    augmented = np.asarray(jitted(crop=crop)(images, keys_for(count)))
    padded = np.pad(np.asarray(images), [(0, 0), (crop, crop), (crop, crop), (0, 0)])
    windows = [
        padded[:, y : y + 6, x : x + 7] for y in range(2 * crop + 1) for x in range(2 * crop + 1)
    ]
    matches = np.array([(window == augmented).all(axis=(1, 2, 3)) for window in windows])
    assert (matches.sum(axis=0) == 1).all()
    for times_chosen in matches.sum(axis=1):
        assert within_four_deviations(times_chosen, count, 1 / len(windows))


def test_flip_and_crop_together_move_pixels_without_changing_them():
    images = random_images(64, 8, 8, 3) + 1
    augmented = np.asarray(jitted(flip=True, crop=3)(images, keys_for(64)))
    for before, after in zip(np.asarray(images), augmented, strict=True):
        assert np.isin(after, np.append(before, 0)).all()


def footprint(low, high, count=4000, size=64):
    """Where an image of ones lies after scaling: its first and last row, and its sides' lengths."""
    ones = jnp.ones((count, size, size, 1))
    seen = np.asarray(jitted(scale=(low, high))(ones, keys_for(count)))[..., 0] > 0
    rows, columns = seen.any(axis=2), seen.any(axis=1)
    return rows.argmax(axis=1), rows.sum(axis=1), columns.argmax(axis=1), columns.sum(axis=1)


def test_shrinking_factor_is_uniform_and_the_same_for_both_sides():
    _, heights, _, widths = footprint(0.5, 1.0)
    # A length is counted in whole pixels, so two sides of one length may differ by one.
    assert np.abs(heights - widths).max() <= 1
    factors = heights / 64
    np.testing.assert_allclose(factors.mean(), 0.75, atol=0.01)
    np.testing.assert_allclose(factors.std(), 0.5 / np.sqrt(12), atol=0.005)
    assert factors.min() < 0.52
    assert factors.max() > 0.98


def test_a_shrunken_image_lies_anywhere_in_the_frame_independently_in_each_axis():
    tops, heights, lefts, widths = footprint(0.5, 0.5)
    assert set(heights) | set(widths) <= {31, 32, 33}
    for starts in (tops, lefts):
        np.testing.assert_allclose(starts.mean(), 16, atol=0.7)
        np.testing.assert_allclose(starts.std(), 32 / np.sqrt(12), atol=0.4)
        assert starts.min() == 0
        assert starts.max() == 32
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.06


def test_large_and_small_images_are_mirrored_alike():
    count, size = 4000, 64
    ramp = jnp.broadcast_to(jnp.arange(1.0, size + 1)[:, None], (count, size, size, 1))
    augmented = np.asarray(jitted(flip=True, scale=(0.5, 1.0))(ramp, keys_for(count)))
    columns = augmented[..., 0].max(axis=1)
    widths = (columns > 0).sum(axis=1)
    # The ramp falls in mirrored images, so that their first column is the highest.
    mirrored = columns.argmax(axis=1) == (columns > 0).argmax(axis=1)
    assert abs(np.corrcoef(widths, mirrored)[0, 1]) < 4 / np.sqrt(count)


def test_an_enlarged_image_fills_the_frame_and_shows_a_window_anywhere():
    size, count = 32, 2000
    ramp = jnp.broadcast_to(jnp.arange(1.0, size + 1)[:, None, None], (count, size, size, 1))
    augmented = np.asarray(jitted(scale=(2.0, 2.0))(ramp, keys_for(count)))[..., 0]
    assert (augmented > 0).all()
    # Enlarged twice, a row of the frame is half a row of the image.
    np.testing.assert_allclose(np.diff(augmented[:, 2:-2], axis=1), 0.5, atol=1e-4)
    centres = augmented.mean(axis=(1, 2))
    np.testing.assert_allclose(centres.mean(), (size + 1) / 2, atol=0.5)
    np.testing.assert_allclose(centres.std(), size / 2 / np.sqrt(12), atol=0.2)


def test_enlarging_equals_the_librarys_resampling():
    """Above 1 the library's antialiasing filter is plain linear interpolation too."""
    factor, image = 1.25, random_images(12, 10, 3)
    for key in keys_for(5):
        place = jax.random.uniform(jax.random.split(key, 4)[2], (2,))
        expected = jax.image.scale_and_translate(
            image,
            image.shape,
            (0, 1),
            jnp.full(2, factor),
            place * (1 - factor) * jnp.array([12, 10]),
            "linear",
        )
        augmented = jitted(scale=(factor, factor))(image[None], key[None])[0]
        np.testing.assert_allclose(augmented, expected, atol=1e-5)


def test_bfloat16_images_stay_bfloat16_and_are_interpolated_in_float32():
    images = random_images(16, 9, 9, 3).astype(jnp.bfloat16)
    augment = jitted(flip=True, scale=(0.7, 1.4), crop=2)
    expected = augment(images.astype(jnp.float32), keys_for(16)).astype(jnp.bfloat16)
    augmented = augment(images, keys_for(16))
    assert augmented.dtype == jnp.bfloat16
    np.testing.assert_array_equal(augmented, expected)


def test_an_image_is_augmented_alike_in_any_part_of_a_batch():
    images, keys = random_images(8, 16, 16, 3), keys_for(8)
    augment = jitted(flip=True, scale=(0.8, 1.2), crop=2)
    whole = augment(images, keys)
    parts = [augment(images[i : i + 2], keys[i : i + 2]) for i in range(0, 8, 2)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)
    np.testing.assert_array_equal(whole, augment(images, keys))
    assert not np.allclose(whole, augment(images, keys_for(8, seed=1)))


def test_the_same_image_differs_under_different_keys():
    images = jnp.broadcast_to(random_images(16, 16, 3), (32, 16, 16, 3))
    augmented = jitted(scale=(0.8, 1.2))(images, keys_for(32))
    assert len(np.unique(np.asarray(augmented), axis=0)) == 32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalised_images_have_mean_0_and_deviation_1(dtype):
    images = random_images(50, 8, 8, 3, dtype=np.uint8)
    scaled = np.asarray(images, np.float64) / 255
    mean, std = scaled.mean(axis=(0, 1, 2)), scaled.std(axis=(0, 1, 2))
    normalised = make_normalise(mean, std, dtype)(images)
    assert normalised.dtype == dtype
    tolerance = 1e-6 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(
        np.asarray(normalised, np.float32), (scaled - mean) / std, rtol=0, atol=4 * tolerance
    )


def images_of_places(count, height, width):
    """Images whose pixels hold their row and column, so that a result shows where it is from."""
    places = np.stack(np.mgrid[:height, :width], axis=-1).astype(np.float32)
    return jnp.broadcast_to(places, (count, height, width, 2))


def test_a_random_resized_crop_is_a_part_of_the_image_of_the_size_that_is_asked_for():
    count, height, width = 2000, 24, 32
    images = images_of_places(count, height, width)
    augmented = np.asarray(jitted(area=(0.25, 1.0), size=(16, 16))(images, keys_for(count)))
    assert augmented.shape == (count, 16, 16, 2)
    rows, columns = augmented[:, :, 0, 0], augmented[:, 0, :, 1]
    np.testing.assert_allclose(
        augmented[..., 0], np.broadcast_to(rows[:, :, None], (count, 16, 16))
    )
    # Away from the ends the steps between pixels are the side over 16.
    tall, wide = (np.diff(x, axis=1)[:, 8] * 16 for x in (rows, columns))
    np.testing.assert_allclose([tall, wide], np.round([tall, wide]), atol=1e-3)
    shares, ratios = tall * wide / (height * width), wide / tall
    # A whole number of pixels is half a pixel from what was drawn.
    assert 0.25 * 0.9 < shares.min() < 0.3
    assert 0.95 < shares.max() <= 1
    # The whole image, 4:3 as it is, stands in where no part fits.
    assert 0.7 < ratios.min() < 0.8
    assert 1.25 < ratios.max() < 1.4
    for x, side, limit in ((rows, tall, height), (columns, wide, width)):
        assert x.min() >= 0
        assert x.max() <= limit - 1
        free = np.round(limit - side) > 0
        first = (x[:, 7] - 7.5 * side / 16 + 0.5)[free] / np.round(limit - side)[free]
        assert abs(first.mean() - 0.5) < 0.03


def test_half_of_the_random_resized_crops_are_of_the_mirrored_image():
    count, width = 2000, 32
    images, keys = images_of_places(count, 24, width), keys_for(count)
    plain, augmented = (
        np.asarray(jitted(flip=flip, area=(0.25, 1.0), size=(16, 16))(images, keys))[..., 1]
        for flip in (False, True)
    )
    mirrored = augmented[:, 0, 0] > augmented[:, 0, -1]
    assert within_four_deviations(mirrored.sum(), count, 0.5)
    expected = np.where(mirrored[:, None, None], width - 1 - plain, plain)
    np.testing.assert_allclose(augmented, expected, atol=1e-4)


def test_area_and_ratio_of_a_random_resized_crop_are_independent_and_drawn_until_one_fits():
    count, side = 2000, 32
    images = images_of_places(count, side, side)
    # Of the largest of these areas, a third of the rectangles are too high or too wide.
    augmented = np.asarray(jitted(area=(0.6, 0.85), size=(16, 16))(images, keys_for(count)))
    tall = np.diff(augmented[:, 7:9, 0, 0])[:, 0] * 16
    wide = np.diff(augmented[:, 0, 7:9, 1])[:, 0] * 16
    shares = tall * wide / side**2
    assert shares.max() < 0.95
    assert abs(np.corrcoef(shares, np.log(wide / tall))[0, 1]) < 4 / np.sqrt(count)


def test_a_random_resized_crop_reads_linearly_and_never_outside_of_its_part():
    image = random_images(8, 8, 3)
    augmented = jitted(area=(1e-6, 1e-6), size=(5, 5))(image[None], keys_for(1))[0]
    # Less than a pixel is drawn, which does not fit: the whole image.
    positions = np.clip((np.arange(5) + 0.5) * 8 / 5 - 0.5, 0, 7)
    expected = np.asarray(image)
    for axis in (0, 1):
        lower = np.minimum(positions.astype(int), 6)
        weight = (positions - lower).reshape(np.roll([5, 1, 1], axis))
        first, second = (np.take(expected, lower + i, axis) for i in (0, 1))
        expected = first * (1 - weight) + second * weight
    np.testing.assert_allclose(augmented, expected, atol=1e-5)
