"""Evidence maps are exact: with the bias they sum to the logits that the network gives."""

import jax
import numpy as np
import pytest

from flexpool_jax.insight.evidence_maps import evidence_maps, why_not_exact
from flexpool_jax.models.classifier import Head
from flexpool_jax.pools import POOLS

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(3, 4, 5, 6)).astype(np.float32)
EXACT = [
    "avg",
    "flexpool",
    "flexpool_softmax",
    "channel_scale",
    "flexpool_shared",
    "gdconv",
    "flatten",
]


def head_of(pool, hidden=()):
    """A head whose parameters are far from their start."""
    head = Head(7, pool, hidden_features=hidden)
    params = head.init(jax.random.key(0), FEATURES)["params"]
    moved = jax.tree.map(
        lambda leaf: (leaf + RNG.normal(size=leaf.shape)).astype(np.float32), jax.device_get(params)
    )
    return head, moved


@pytest.mark.parametrize("pool", EXACT)
def test_sums_with_the_bias_are_the_logits(pool):
    head, params = head_of(pool)
    logits = np.asarray(head.apply({"params": params}, FEATURES))
    maps = evidence_maps(pool, params, FEATURES)
    assert maps.shape == (3, 4, 5, 7)
    sums = maps.sum(axis=(1, 2)) + params["classifier"]["bias"]
    scale = np.abs(maps).sum(axis=(1, 2)).max()
    np.testing.assert_allclose(sums, logits, atol=4 * np.finfo(np.float32).eps * scale)
    # They do not sum to the logits of other weights.
    params["classifier"]["kernel"] = params["classifier"]["kernel"] * 1.01
    other = evidence_maps(pool, params, FEATURES).sum(axis=(1, 2)) + params["classifier"]["bias"]
    assert np.abs(other - logits).max() > 1e-3


@pytest.mark.parametrize("pool", ["flexpool", "avg", "flexpool_softmax"])
def test_a_map_is_the_change_of_the_logits_without_its_position(pool):
    head, params = head_of(pool)
    without = FEATURES.copy()
    without[:, 2, 3] = 0
    difference = head.apply({"params": params}, FEATURES) - head.apply({"params": params}, without)
    maps = evidence_maps(pool, params, FEATURES)
    np.testing.assert_allclose(maps[:, 2, 3], difference, atol=1e-4)


def test_it_is_the_gradient_times_the_features_with_position_dependent_weights():
    head, params = head_of("flexpool")
    gradients = jax.jacobian(lambda f: head.apply({"params": params}, f[None])[0])(FEATURES[0])
    hirescam = np.sum(np.asarray(gradients) * FEATURES[0], axis=-1)
    maps = evidence_maps("flexpool", params, FEATURES[:1])[0]
    np.testing.assert_allclose(maps, np.moveaxis(hirescam, 0, -1), atol=1e-4)
    # Grad-CAM averages the gradients over positions first, and is another map.
    grad_cam = np.sum(np.mean(gradients, axis=(1, 2), keepdims=True) * FEATURES[0], axis=-1)
    assert np.abs(grad_cam - hirescam).max() > 0.1


def test_every_other_pool_says_why_there_is_none():
    others = [pool for pool in POOLS if pool not in EXACT]
    assert {"max", "gem", "attention"} <= set(others)
    for pool in others:
        params = {"classifier": {"kernel": np.ones((6, 7))}}
        assert pool in why_not_exact(pool, params, (4, 5, 6))
        with pytest.raises(ValueError, match=pool):
            evidence_maps(pool, params, FEATURES)


def test_hidden_dense_layers_say_why_there_is_none():
    _, params = head_of("flexpool", hidden=(8,))
    with pytest.raises(ValueError, match="hidden dense layers"):
        evidence_maps("flexpool", params, FEATURES)
