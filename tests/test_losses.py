"""Eq. 3 and Eq. 4 and the total, against NumPy and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexpool_jax import sac_loss
from flexpool_jax.losses import cross_entropy, total_loss

RNG = np.random.default_rng(0)
STAGE_LOGITS = [RNG.normal(size=(4, 5)).astype(np.float32) for _ in range(3)]
LABELS = np.array([0, 4, 2, 2], np.int32)
WEIGHTS = (0.1, 0.2, 0.7)
SAC = {"aux_logits": STAGE_LOGITS[:2], "sac_weights": WEIGHTS}


def numpy_cross_entropy(logits, labels):
    """Eq. 4: -Σ_c y_c log h_c with h the softmax, averaged over the batch."""
    logits = logits.astype(np.float64)
    h = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    y = np.eye(logits.shape[1])[labels]
    return -(y * np.log(h)).sum(axis=1).mean()


def test_cross_entropy_is_equation_4():
    expected = numpy_cross_entropy(STAGE_LOGITS[0], LABELS)
    np.testing.assert_allclose(cross_entropy(STAGE_LOGITS[0], LABELS), expected, rtol=1e-6)


def test_label_smoothing_mixes_the_labels_with_the_uniform_distribution():
    h = jax.nn.softmax(STAGE_LOGITS[0])
    uniform = -np.log(h).mean()
    expected = 0.9 * numpy_cross_entropy(STAGE_LOGITS[0], LABELS) + 0.1 * uniform
    np.testing.assert_allclose(cross_entropy(STAGE_LOGITS[0], LABELS, 0.1), expected, rtol=1e-6)


def test_label_smoothing_acts_on_every_stage():
    expected = sum(
        weight * cross_entropy(logits, LABELS, 0.1)
        for weight, logits in zip(WEIGHTS, STAGE_LOGITS, strict=True)
    )
    np.testing.assert_allclose(sac_loss(STAGE_LOGITS, LABELS, WEIGHTS, 0.1), expected, rtol=1e-6)


def test_cross_entropy_is_finite_for_extreme_and_exact_for_half_precision_logits():
    assert float(cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([1]))) == pytest.approx(2e4)
    half = cross_entropy(jnp.array([[0.0, 1.0]], jnp.bfloat16), jnp.array([0]))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, np.log1p(np.e), rtol=1e-6)


def test_sac_loss_is_equation_3_from_first_to_last_stage():
    expected = sum(
        weight * numpy_cross_entropy(logits, LABELS)
        for weight, logits in zip(WEIGHTS, STAGE_LOGITS, strict=True)
    )
    np.testing.assert_allclose(sac_loss(STAGE_LOGITS, LABELS, WEIGHTS), expected, rtol=1e-6)


def test_sac_gradient_equals_finite_differences():
    with jax.enable_x64(True):
        logits = [jnp.asarray(x, jnp.float64) for x in STAGE_LOGITS]

        def loss(first):
            return sac_loss([first, *logits[1:]], LABELS, WEIGHTS)

        gradient = jax.grad(loss)(logits[0])
        for index in [(0, 0), (3, 1)]:
            bump = jnp.zeros_like(gradient).at[index].set(1e-6)
            difference = (loss(logits[0] + bump) - loss(logits[0] - bump)) / 2e-6
            np.testing.assert_allclose(gradient[index], difference, rtol=1e-6)


@pytest.mark.parametrize(
    "weights",
    [
        (0.2, 0.1, 0.7),
        (0.1, 0.1, 0.8),
        (0.7, 0.2, 0.1),
        (0.3, 0.7),
        (-0.1, 0.4, 0.7),
        (0.1, 0.2, float("nan")),
        (0.1, 0.2, float("inf")),
    ],
)
def test_sac_refuses_weights_that_do_not_strictly_increase(weights):
    with pytest.raises(ValueError, match="SAC"):
        sac_loss(STAGE_LOGITS, LABELS, weights)


def test_total_is_the_cross_entropy_without_sac_and_regularizer():
    loss, parts = total_loss(STAGE_LOGITS[2], LABELS)
    np.testing.assert_allclose(loss, numpy_cross_entropy(STAGE_LOGITS[2], LABELS), rtol=1e-6)
    assert set(parts) == {"cross_entropy", "regularizer"}


def test_total_is_equation_3_plus_the_weighted_regularizer_and_names_its_parts():
    loss, parts = total_loss(
        STAGE_LOGITS[2],
        LABELS,
        **SAC,
        regularizer=3.0,
        pool_reg=0.5,
    )
    np.testing.assert_allclose(loss, sac_loss(STAGE_LOGITS, LABELS, WEIGHTS) + 1.5, rtol=1e-6)
    for name, logits in zip(
        ["cross_entropy_stage1", "cross_entropy_stage2", "cross_entropy"], STAGE_LOGITS, strict=True
    ):
        np.testing.assert_allclose(parts[name], numpy_cross_entropy(logits, LABELS), rtol=1e-6)
    np.testing.assert_allclose(parts["sac"], sac_loss(STAGE_LOGITS, LABELS, WEIGHTS), rtol=1e-6)
    assert float(parts["regularizer"]) == 3.0


def test_label_smoothing_acts_on_the_total_and_on_each_of_its_parts():
    loss, parts = total_loss(
        STAGE_LOGITS[2],
        LABELS,
        **SAC,
        label_smoothing=0.1,
    )
    stages = [parts[f"cross_entropy{stage}"] for stage in ("_stage1", "_stage2", "")]
    expected = [cross_entropy(logits, LABELS, 0.1) for logits in STAGE_LOGITS]
    np.testing.assert_allclose(stages, expected, rtol=1e-6)
    np.testing.assert_allclose(loss, np.dot(WEIGHTS, expected), rtol=1e-6)


def test_weights_of_sac_without_auxiliary_logits_are_refused():
    with pytest.raises(ValueError, match="1 stages, got 3 weights"):
        total_loss(STAGE_LOGITS[2], LABELS, sac_weights=WEIGHTS)
    loss, parts = total_loss(STAGE_LOGITS[2], LABELS, sac_weights=(0.5,))
    np.testing.assert_allclose(loss, parts["cross_entropy"] / 2, rtol=1e-6)


def test_sac_weights_may_be_an_array_inside_a_jitted_function():
    weights = jnp.array(WEIGHTS)
    compiled = jax.jit(lambda logits: sac_loss(logits, LABELS, weights))(STAGE_LOGITS)
    np.testing.assert_allclose(compiled, sac_loss(STAGE_LOGITS, LABELS, WEIGHTS), rtol=1e-6)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 4, 2, 5], "labels are 0 to 5; allowed: 0 to 4"),
        ([0, -1, 2, 2], "labels are -1 to 2; allowed: 0 to 4"),
        ([0, 4, 2], r"labels \[B\]; got the shapes .* and \(3,\)"),
        ([[0, 4, 2, 2]], r"labels \[B\]; got the shapes .* and \(1, 4\)"),
    ],
)
def test_labels_that_cannot_be_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(STAGE_LOGITS[0], jnp.array(labels))


def test_labels_are_not_looked_at_under_jit():
    compiled = jax.jit(cross_entropy)(STAGE_LOGITS[0], LABELS)
    np.testing.assert_allclose(compiled, cross_entropy(STAGE_LOGITS[0], LABELS), rtol=1e-6)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray, list])
def test_labels_with_values_are_checked_inside_a_jitted_function(array):
    def compiled(values):
        labels = array(values)
        return jax.jit(lambda logits: cross_entropy(logits, labels))(STAGE_LOGITS[0])

    expected = cross_entropy(STAGE_LOGITS[0], LABELS)
    np.testing.assert_allclose(compiled(LABELS), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="labels are 0 to 5; allowed: 0 to 4"):
        compiled([0, 4, 2, 5])


def test_sac_needs_a_stage():
    with pytest.raises(ValueError, match="at least one stage"):
        sac_loss([], LABELS, ())
