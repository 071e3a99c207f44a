"""What a probe does to a pool's weights keeps what it says, and its numbers are the formulas'."""

import numpy as np
import pytest

from flexpool_jax.insight import weights


@pytest.fixture(scope="module")
def w():
    """Weights around 1/(H·W), some negative; more positions than channels."""
    rng = np.random.default_rng(0)
    return (0.05 + 0.1 * rng.normal(size=(4, 5, 6))).astype(np.float32)


def by_name(w):
    """The interventions, as float64, by name and rank."""
    return {
        "".join(map(str, named.values())): drawn.astype(np.float64)
        for named, drawn in weights.interventions(w)
    }


def test_interventions_are_those_of_docs_probe_md(w):
    assert list(by_name(w)) == [
        *("unchanged", "channel_means", "permute_positions", "permute_maps"),
        *("permute_deviations", "rank1", "rank2", "rank4"),
    ]


def test_unchanged_weights_are_the_same_bits(w):
    ((named, drawn), *_) = weights.interventions(w)
    assert named == {"name": "unchanged"}
    np.testing.assert_array_equal(drawn, w[None])


def test_channel_means_are_constant_over_positions_and_keep_the_sums(w):
    (means,) = by_name(w)["channel_means"]
    np.testing.assert_array_equal(means, np.broadcast_to(means[:1, :1], w.shape))
    np.testing.assert_allclose(means[0, 0], w.mean(axis=(0, 1)), rtol=1e-6)


def test_positions_are_permuted_within_each_channel_independently(w):
    # Every channel holds the numbers of its positions, so that a channel shows its permutation.
    numbers = np.broadcast_to(np.arange(20.0).reshape(4, 5, 1), (4, 5, 6))
    for drawn in (by_name(w)["permute_positions"], by_name(numbers)["permute_positions"]):
        assert len(drawn) == 5
    for found in by_name(w)["permute_positions"]:
        np.testing.assert_array_equal(
            np.sort(found.reshape(20, 6), axis=0), np.sort(w.reshape(20, 6), axis=0)
        )
    orders = by_name(numbers)["permute_positions"].reshape(5, 20, 6)
    channels = orders.transpose(0, 2, 1).reshape(30, 20)
    assert len(np.unique(channels, axis=0)) == 30


def test_maps_are_permuted_whole(w):
    drawn = by_name(w)["permute_maps"]
    assert len(np.unique(drawn.reshape(5, -1), axis=0)) == 5
    maps = sorted(w.reshape(20, 6).T.tolist())
    for found in drawn:
        assert sorted(found.reshape(20, 6).T.tolist()) == maps
        assert not np.array_equal(found, w)


def test_deviations_are_permuted_as_the_maps_are_but_the_sums_stay(w):
    v = w - w.mean(axis=(0, 1), dtype=np.float64)
    interventions = by_name(w)
    for found, maps in zip(
        interventions["permute_deviations"], interventions["permute_maps"], strict=True
    ):
        np.testing.assert_allclose(found.sum(axis=(0, 1)), w.sum(axis=(0, 1)), rtol=1e-5)
        order = [w[0, 0].tolist().index(first) for first in maps[0, 0].astype(np.float32).tolist()]
        np.testing.assert_allclose(found - found.mean(axis=(0, 1)), v[:, :, order], atol=1e-7)


@pytest.mark.parametrize("rank", weights.RANKS)
def test_rank_cut_is_the_best_approximation_of_the_deviation(w, rank):
    (found,) = by_name(w)[f"rank{rank}"]
    np.testing.assert_allclose(found.sum(axis=(0, 1)), w.sum(axis=(0, 1)), rtol=1e-5)
    v = (w - w.mean(axis=(0, 1), dtype=np.float64)).reshape(20, 6)
    cut = (found - found.mean(axis=(0, 1))).reshape(20, 6)
    assert np.linalg.matrix_rank(cut, tol=1e-5) == rank
    # Eckart and Young: what is left out is as small as the singular values that are left out.
    left_out = np.linalg.svd(v, compute_uv=False)[rank:]
    assert np.linalg.norm(v - cut) == pytest.approx(np.linalg.norm(left_out), rel=1e-5)


def test_rank_cut_at_full_rank_changes_nothing(w):
    few = w[:, :, :4]
    np.testing.assert_allclose(by_name(few)["rank4"], few[None], atol=1e-8)


def test_spatially_constant_weights_are_changed_by_their_exchange_alone():
    # No fraction of these is exact in binary.
    w = np.broadcast_to(np.array([1, 0.3, -2], np.float32) / 49, (7, 7, 3))
    for named, drawn in weights.interventions(w):
        same = np.array_equal(drawn, np.broadcast_to(w, drawn.shape))
        assert same == (named["name"] != "permute_maps"), named
    found = weights.weight_statistics(w, np.ones((7, 7, 3)))
    assert found["deviation_share"] == 0
    assert found["singular_values"] == [0, 0, 0]
    assert found["mirror_correlation"] is None
    assert (found["activation_correlation"], found["activation_channels"]) == (None, 0)
    assert found["negative_share"] == pytest.approx(1 / 3)


def test_statistics_are_numpys(w):
    mean_map = np.random.default_rng(1).uniform(size=w.shape)
    mean_map[:, :, 2] = 0  # A channel that is never active.
    found = weights.weight_statistics(w, mean_map)
    wide = w.astype(np.float64)
    v = wide - wide.mean(axis=(0, 1))
    sums = wide.sum(axis=(0, 1))
    assert found["channel_sums"] == {
        "mean": pytest.approx(np.mean(sums)),
        "sd": pytest.approx(np.std(sums)),
        "min": min(sums),
        "max": max(sums),
        "values": list(sums),
    }
    assert (found["mean"], found["sd"]) == pytest.approx((wide.mean(), wide.std()))
    assert found["negative_share"] == sum(x < 0 for x in w.ravel()) / w.size
    assert found["deviation_share"] == pytest.approx(
        np.var(wide, axis=(0, 1)).sum() * 20 / np.sum(wide**2)
    )
    # The singular values are the roots of the eigenvalues of VᵀV.
    eigenvalues = np.linalg.eigvalsh(v.reshape(20, 6).T @ v.reshape(20, 6))[::-1]
    np.testing.assert_allclose(np.square(found["singular_values"]), eigenvalues)
    mirrored = np.flip(v, axis=1)
    assert found["mirror_correlation"] == pytest.approx(
        np.corrcoef(v.ravel(), mirrored.ravel())[0, 1]
    )
    shares = np.sum(v**2, axis=(0, 1)) / np.sum(v**2)
    each = [np.corrcoef(v[..., k].ravel(), mirrored[..., k].ravel())[0, 1] for k in range(6)]
    assert found["mirror_correlation"] == pytest.approx(shares @ each)
    each = [
        np.corrcoef(np.abs(v[..., k]).ravel(), mean_map[..., k].ravel())[0, 1]
        for k in (0, 1, 3, 4, 5)
    ]
    assert found["activation_correlation"] == pytest.approx(np.mean(each))
    assert found["activation_channels"] == 5


def test_entropy_is_1_for_even_weights_and_0_for_a_single_position():
    even = np.full((3, 4, 2), -0.2)
    assert weights.weight_statistics(even, even)["entropy"] == pytest.approx(1)
    single = np.zeros((3, 4, 2))
    single[1, 2] = (5.0, 0.0)  # the second channel has no weights, and does not count
    assert weights.weight_statistics(single, even)["entropy"] == 0
    half = np.zeros((2, 2, 1))
    half[0] = 0.5
    assert weights.weight_statistics(half, half)["entropy"] == pytest.approx(0.5)
    assert weights.weight_statistics(np.zeros((2, 2, 1)), half)["entropy"] is None


@pytest.mark.parametrize("rank", [1, 3])
def test_effective_rank_is_the_rank_of_equally_strong_maps(rank):
    basis = np.linalg.qr(np.c_[np.ones(16), np.random.default_rng(0).normal(size=(16, 3))])[0]
    w = (basis[:, 1 : rank + 1] @ np.eye(rank, 6)).reshape(4, 4, 6) + 1 / 16
    assert weights.weight_statistics(w, w)["effective_rank"] == pytest.approx(rank)
    even = np.full((4, 4, 6), 1 / 16)
    assert weights.weight_statistics(even, even)["effective_rank"] is None
