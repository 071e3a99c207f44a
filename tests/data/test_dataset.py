import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexpool_jax.data.dataset import Split, stratified_split
from flexpool_jax.data.description import describe
from flexpool_jax.errors import UserError


def statistics(images):
    split = Split(images, np.zeros(len(images), np.int32))
    return describe(split, split, ["one"])


def test_channel_statistics_equal_those_in_float64():
    images = np.random.default_rng(0).integers(0, 256, (50, 5, 7, 3)).astype(np.uint8)
    images[..., 1] //= 3
    mean, std, _ = statistics(images)
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 1, 2)), rtol=1e-6)
    assert mean.dtype == std.dtype == np.float32


def test_a_constant_channel_has_deviation_one():
    mean, std, _ = statistics(np.full((2, 3, 3, 1), 51, np.uint8))
    np.testing.assert_allclose([mean, std], [[0.2], [1.0]], rtol=1e-6)


@given(
    st.lists(st.integers(2, 30), min_size=1, max_size=6),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32 - 1),
)
def test_a_stratified_split_takes_the_same_share_of_every_class(counts, fraction, seed):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    left, drawn = stratified_split(labels, fraction, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([left, drawn])), np.arange(len(labels)))
    for label, count in enumerate(counts):
        got = np.count_nonzero(labels[drawn] == label)
        assert 1 <= got <= count - 1
        assert abs(got - count * fraction) <= 1


def test_a_stratified_split_depends_on_the_seed_alone():
    labels = np.arange(100) % 10
    drawn = [stratified_split(labels, 0.2, seed)[1].tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_outside_the_open_interval_is_refused(fraction):
    with pytest.raises(UserError, match="fraction is"):
        stratified_split(np.array([0, 0, 1, 1]), fraction, 0)


def test_images_that_are_not_bytes_are_refused():
    images, labels = np.zeros((2, 1, 1, 1), np.float32), np.zeros(2, np.int32)
    with pytest.raises(UserError, match=r"float32.*allowed: uint8"):
        describe(Split(images, labels), Split(images, labels), ["one"])


def test_a_class_of_one_image_cannot_be_split():
    with pytest.raises(UserError, match=r"class 1 has 1 training image; .* add images"):
        stratified_split(np.array([0, 0, 1]), 0.5, 0)
