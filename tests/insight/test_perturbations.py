"""Shifts move the content where they say; corruptions are the formulas', rounded to uint8."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from flexpool_jax.insight import perturbations


@pytest.fixture(scope="module")
def images():
    """Random images, wider than high, with values at both ends of the range."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (6, 9, 11, 3), np.uint8)


def test_perturbations_are_those_of_docs_probe_md():
    expected = [
        *(
            {"name": "shift", "pixels": pixels, "direction": direction}
            for pixels in (1, 2, 3, 4)
            for direction in ("left", "right", "up", "down")
        ),
        *({"name": "gaussian_noise", "sd": sd} for sd in (0.04, 0.08, 0.10)),
        *({"name": "gaussian_blur", "sigma": sigma} for sigma in (0.4, 0.7, 1.0)),
        *({"name": "contrast", "factor": factor} for factor in (0.75, 0.4, 0.15)),
    ]
    assert [named for named, _ in perturbations.perturbations()] == expected


def test_shifts_are_by_every_distance_in_every_direction_and_enter_black(images):
    shifts = [
        (named, perturb)
        for named, perturb in perturbations.perturbations()
        if named["name"] == "shift"
    ]
    assert len(shifts) == 16
    n, height, width, channels = images.shape
    for named, perturb in shifts:
        by = named["pixels"]
        black_rows = np.zeros((n, by, width, channels), np.uint8)
        black_columns = np.zeros((n, height, by, channels), np.uint8)
        expected = {
            "left": np.concatenate([images[:, :, by:], black_columns], axis=2),
            "right": np.concatenate([black_columns, images[:, :, :-by]], axis=2),
            "up": np.concatenate([images[:, by:], black_rows], axis=1),
            "down": np.concatenate([black_rows, images[:, :-by]], axis=1),
        }[named["direction"]]
        found = perturb(images)
        assert found.dtype == jnp.uint8
        np.testing.assert_array_equal(found, expected, err_msg=str(named))


def test_shift_by_nothing_changes_nothing_and_by_the_width_leaves_nothing(images):
    np.testing.assert_array_equal(perturbations.shift(images, down=0, right=0), images)
    assert not np.any(perturbations.shift(images, down=0, right=images.shape[2]))


@pytest.mark.parametrize("sigma", perturbations.BLUR_SIGMAS)
def test_blur_is_scipys(images, sigma):
    expected = ndimage.gaussian_filter(
        images.astype(np.float64), (0, sigma, sigma, 0), mode="nearest", truncate=4.0
    )
    found = np.asarray(perturbations.blur(images, sigma=sigma))
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, expected, atol=0.5 + 1e-3)


@pytest.mark.parametrize("factor", [*perturbations.CONTRASTS, 1.0])
def test_contrast_shrinks_the_distance_to_each_channels_mean(images, factor):
    mean = images.mean(axis=(1, 2), keepdims=True)
    found = np.asarray(perturbations.contrast(images, factor=factor))
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, mean + factor * (images - mean), atol=0.5 + 1e-3)


def test_noise_has_its_deviation_and_is_clipped_at_black_and_white():
    levels = np.repeat(np.array([0, 128, 255], np.uint8), 40)[:, None, None, None]
    images = np.broadcast_to(levels, (120, 16, 16, 1))
    for sd in perturbations.NOISE_DEVIATIONS:
        found = np.asarray(perturbations.gaussian_noise(images, sd=sd))
        assert found.dtype == np.uint8
        black, grey, white = found.reshape(3, -1).astype(float)
        assert np.std(grey) == pytest.approx(255 * sd, rel=0.03)
        assert np.mean(grey) == pytest.approx(128, abs=1)
        # Half of a Gaussian; a value that wrapped round would be near the other end.
        assert np.mean(black) == pytest.approx(255 * sd / np.sqrt(2 * np.pi), rel=0.05)
        assert np.mean(255 - white) == pytest.approx(255 * sd / np.sqrt(2 * np.pi), rel=0.05)


def test_noise_depends_on_an_images_place_alone(monkeypatch, images):
    found = np.asarray(perturbations.gaussian_noise(images, sd=0.1))
    fewer = np.asarray(perturbations.gaussian_noise(images[:4], sd=0.1))
    np.testing.assert_array_equal(found[:4], fewer)
    # In several parts, the last one not whole.
    monkeypatch.setattr(perturbations, "_IMAGES_AT_ONCE", 4)
    parts = perturbations.gaussian_noise.__wrapped__(jnp.asarray(images), sd=0.1)
    np.testing.assert_array_equal(parts, found)
    # The same draws at each strength.
    grey = np.full_like(images, 128)
    weak, strong = (
        np.asarray(perturbations.gaussian_noise(grey, sd=sd), float) - 128 for sd in (0.04, 0.08)
    )
    np.testing.assert_allclose(strong, 2 * weak, atol=1.6)
    assert not np.array_equal(weak[0], weak[1])


@pytest.mark.parametrize(
    "setting", [lambda: jax.enable_x64(True), lambda: jax.default_prng_impl("rbg")]
)
def test_noise_does_not_depend_on_settings_of_jax(images, setting):
    usual = np.asarray(perturbations.gaussian_noise(images, sd=0.1))
    with setting():
        # Traced anew: JAX would use the program that it has compiled under another setting.
        anew = jax.jit(lambda x: perturbations.gaussian_noise.__wrapped__(x, sd=0.1))
        found = np.asarray(anew(images))
    np.testing.assert_array_equal(found, usual)
