"""One step and its pmapped programs, on a model small enough to be checked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from flexpool_jax.losses import total_loss
from flexpool_jax.models.classifier import Classifier
from flexpool_jax.pooling import flexpool_regularizer
from flexpool_jax.training import steps
from flexpool_jax.training.eval_loop import summarise
from flexpool_jax.training.steps import create_train_state

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 4, 4, 3), np.uint8)
LABELS = RNG.integers(0, 5, 40).astype(np.int32)
DATA = steps.DeviceSplit(IMAGES, LABELS)
SCHEDULE = optax.linear_schedule(0.1, 0.0, 10)
TX = optax.sgd(SCHEDULE, momentum=0.9)
KEY = jax.random.key(0)


class TwoStages(nn.Module):
    """Two stages without a convolution, so that the tests compile in no time."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.BatchNorm(not train, momentum=0.9)(images)
        return {"stage1": x, "stage2": nn.tanh(nn.Dense(6)(x))}


class OneStage(nn.Module):
    """One stage without a norm."""

    @nn.compact
    def __call__(self, images, train=False):
        return {"stage1": nn.tanh(nn.Dense(6)(images))}


MODEL = Classifier(TwoStages(), num_classes=5, pool="flexpool", sac=True, dropout_rate=0.5)
PLAIN = MODEL.clone(dropout_rate=0.0)


def normalise(images):
    return images.astype(jnp.float32) / 255


def train_step(model, augment=lambda images, keys: images, ema_decay=0.0, grad_accum_steps=1):
    return steps.make_train_step(
        model,
        TX,
        SCHEDULE,
        augment=augment,
        normalise=normalise,
        sac_weights=(0.3, 0.7) if model.sac else (),
        pool_reg=0.01,
        ema_decay=ema_decay,
        grad_accum_steps=grad_accum_steps,
    )


def run(model, indices, steps_per_dispatch=1, **fields):
    """Runs the given steps, [steps, B], from the initial state."""
    program = steps.pmap_train_step(train_step(model, **fields))
    state = create_train_state(model, TX, KEY, (4, 4, 3), keep_average="ema_decay" in fields)
    collected = []
    for start in range(0, len(indices), steps_per_dispatch):
        chosen = indices[start : start + steps_per_dispatch][None]
        state, metrics = program(state, DATA, chosen, KEY)
        collected.append(jax.device_get(metrics))
    return state, {k: np.concatenate([m[k] for m in collected]) for k in collected[0]}


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_a_step_descends_the_gradient_of_the_total_loss():
    indices = np.arange(16, dtype=np.int32)[None]
    state = create_train_state(PLAIN, TX, KEY, (4, 4, 3))

    def objective(params):
        logits, updates = PLAIN.apply(
            {"params": params, "batch_stats": state.batch_stats},
            normalise(jnp.asarray(IMAGES[:16])),
            train=True,
            mutable=["batch_stats", "aux_logits"],
        )
        loss, _ = total_loss(
            logits,
            LABELS[:16],
            aux_logits=updates["aux_logits"]["logits"],
            sac_weights=(0.3, 0.7),
            regularizer=flexpool_regularizer(params),
            pool_reg=0.01,
        )
        return loss, logits

    (loss, logits), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, state.params, gradient)
    new, metrics = run(PLAIN, indices)
    np.testing.assert_allclose(metrics["loss"], [loss], rtol=1e-6)
    assert metrics["accuracy"] == np.mean(logits.argmax(axis=-1) == LABELS[:16])
    assert_trees_close(new.params, expected, rtol=1e-5, atol=1e-6)
    assert int(new.step) == 1
    assert metrics["learning_rate"] == pytest.approx(0.1)
    assert not np.allclose(
        new.params["head"]["pool"]["w_fp"], state.params["head"]["pool"]["w_fp"], atol=1e-7
    )


def test_many_steps_a_dispatch_are_the_same_steps():
    indices = RNG.permutation(40).astype(np.int32)[:36].reshape(6, 6)
    one, metrics_of_one = run(MODEL, indices)
    three, metrics_of_three = run(MODEL, indices, steps_per_dispatch=3)
    assert_trees_close(one.params, three.params, rtol=1e-5, atol=1e-6)
    assert_trees_close(metrics_of_one, metrics_of_three, rtol=1e-5, atol=1e-6)
    assert metrics_of_one["loss"].shape == (6,)


def test_the_average_follows_the_parameters_which_do_not_depend_on_it():
    indices = RNG.permutation(40).astype(np.int32)[:36].reshape(6, 6)
    program = steps.pmap_train_step(train_step(PLAIN))
    plain = create_train_state(PLAIN, TX, KEY, (4, 4, 3))
    expected = jax.device_get(plain.params)
    for batch in indices:
        plain, _ = program(plain, DATA, batch[None, None], KEY)
        expected = jax.tree.map(lambda a, w: 0.75 * a + 0.25 * w, expected, plain.params)
    assert plain.ema_params is None
    for steps_per_dispatch in (1, 3):
        state, _ = run(PLAIN, indices, steps_per_dispatch, ema_decay=0.75)
        assert_trees_close(state.params, plain.params, rtol=1e-5, atol=1e-6)
        assert_trees_close(state.ema_params, expected, rtol=1e-4, atol=1e-6)
        assert state.variables["params"] is state.ema_params


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    # Without BatchNorm, whose statistics are those of what is computed at once.
    model = Classifier(OneStage(), num_classes=5, pool="flexpool")
    indices = RNG.permutation(40).astype(np.int32)[:36].reshape(3, 12)

    def augment(images, keys):
        return images + jax.vmap(jax.random.uniform)(keys)[:, None, None, None]

    whole, metrics_of_whole = run(model, indices, augment=augment)
    parts, metrics_of_parts = run(model, indices, augment=augment, grad_accum_steps=4)
    assert_trees_close(parts.params, whole.params, rtol=1e-5, atol=1e-6)
    assert_trees_close(metrics_of_parts, metrics_of_whole, rtol=1e-5, atol=1e-6)
    # With it, each part counts as a batch in the running statistics.
    mean = run(PLAIN, indices[:1], grad_accum_steps=4)[0].batch_stats["backbone"]["BatchNorm_0"]
    expected = np.zeros(3)
    for part in indices[0].reshape(3, 4).T:
        expected = 0.9 * expected + 0.1 * normalise(IMAGES[part]).mean((0, 1, 2))
    np.testing.assert_allclose(mean["mean"], expected, rtol=1e-5)


def test_the_state_has_no_device_axis_and_its_buffers_are_donated():
    program = steps.pmap_train_step(train_step(PLAIN))
    state = create_train_state(PLAIN, TX, KEY, (4, 4, 3))
    shapes = jax.tree.map(jnp.shape, state)
    indices = np.arange(8, dtype=np.int32).reshape(1, 1, 8)
    first, _ = program(state, DATA, indices, KEY)
    program(first, DATA, indices, KEY)
    assert jax.tree.map(jnp.shape, first) == shapes
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.params))


def test_augmentation_has_a_key_of_its_own_for_each_step_and_place():
    seen = []

    def augment(images, keys):
        jax.debug.callback(lambda data: seen.append(np.asarray(data)), jax.random.key_data(keys))
        return images

    state, _ = run(PLAIN, np.arange(24, dtype=np.int32).reshape(3, 8), augment=augment)
    jax.block_until_ready(state)
    jax.effects_barrier()
    keys = np.concatenate(seen)
    assert len(np.unique(keys, axis=0)) == 24


def test_evaluation_counts_each_valid_example_once():
    model = PLAIN
    state = create_train_state(model, TX, KEY, (4, 4, 3))
    program = steps.pmap_eval_step(steps.make_eval_step(model, normalise=normalise))
    indices = np.array([[3, 5, 7, -1, -1]], np.int32)
    sums, examples = program(state.variables, DATA, indices)
    assert sums == {}
    logits = model.apply(state.variables, normalise(jnp.asarray(IMAGES[[3, 5, 7]])))
    np.testing.assert_allclose(examples["logits"][0, :3], logits, rtol=1e-5, atol=1e-6)
    host = jax.device_get([({}, examples)])
    measured = summarise(host, LABELS[[3, 5, 7]]).metrics
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS[[3, 5, 7]])
    np.testing.assert_allclose(measured["loss"], losses.mean(), rtol=1e-5)
    assert measured["accuracy"] == np.mean(logits.argmax(-1) == LABELS[[3, 5, 7]])


class Drawing(nn.Module):
    """Keeps the last two numbers that it drew from a stream on each of two devices."""

    stream: str

    @nn.compact
    def __call__(self, images, train=False):
        drawn = self.variable("batch_stats", "drawn", jnp.zeros, (2, 2))
        if train:
            device, number = (
                jax.lax.axis_index(steps.AXIS),
                jax.random.uniform(self.make_rng(self.stream)),
            )
            drawn.value = drawn.value.at[device].set(jnp.stack([drawn.value[device, 1], number]))
        return {"stage1": images}


def on_two_devices(model, augment=lambda images, keys: images, **fields):
    """A step of two devices; `jax.vmap` takes their place, so one is enough."""
    step = steps.make_train_step(
        model, TX, SCHEDULE, augment=augment, normalise=normalise, **fields
    )
    state = create_train_state(model, TX, KEY, (4, 4, 3))
    batch = {"image": IMAGES[:16].reshape(2, 8, 4, 4, 3), "label": LABELS[:16].reshape(2, 8)}
    program = jax.jit(jax.vmap(step, (None, 0, None), axis_name=steps.AXIS))
    return lambda number: program(state.replace(step=jnp.int32(number)), batch, KEY)[0]


def test_statistics_that_are_not_synchronised_are_averaged():
    found = on_two_devices(PLAIN, sac_weights=(0.3, 0.7))(0)
    mean = found.batch_stats["backbone"]["BatchNorm_0"]["mean"]
    expected = 0.1 * normalise(IMAGES[:16]).mean((0, 1, 2))
    np.testing.assert_allclose(mean, np.stack([expected] * 2), rtol=1e-5)


@pytest.mark.parametrize("stream", ["dropout", "a_users_own"])
def test_random_streams_draw_anew_at_each_step_on_each_device_and_in_each_part(stream):
    run_step = on_two_devices(Classifier(Drawing(stream), num_classes=5), grad_accum_steps=2)
    drawn = [run_step(number).batch_stats["backbone"]["drawn"][0] for number in (0, 1)]
    assert len(np.unique(drawn)) == 8


def test_statistics_of_all_devices_are_equal_and_keep_their_dtype():
    class Counting(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
            mean = self.variable("batch_stats", "mean", jnp.zeros, 3)
            if train:
                count.value += 1
                mean.value = images.mean((0, 1, 2))
            return {"stage1": images}

    found = on_two_devices(Classifier(Counting(), num_classes=5))(0).batch_stats["backbone"]
    assert (found["count"].dtype, found["count"].tolist()) == (jnp.int32, [1, 1])
    expected = normalise(IMAGES[:16]).mean((0, 1, 2))
    np.testing.assert_allclose(found["mean"], np.stack([expected] * 2), rtol=1e-5)


def test_parts_hold_the_same_examples_on_any_number_of_devices():
    two = on_two_devices(PLAIN, sac_weights=(0.3, 0.7), grad_accum_steps=2)(0)
    one, _ = run(PLAIN, np.arange(16, dtype=np.int32)[None], grad_accum_steps=2)
    means = [s.batch_stats["backbone"]["BatchNorm_0"]["mean"] for s in (two, one)]
    np.testing.assert_allclose(means[0], np.stack([means[1]] * 2), rtol=1e-5)


def test_normalised_images_are_augmented_alike_on_any_number_of_devices():
    def augment(images, keys):
        assert images.dtype == jnp.float32
        return images + jax.vmap(jax.random.uniform)(keys)[:, None, None, None]

    two = on_two_devices(PLAIN, augment, sac_weights=(0.3, 0.7))(0)
    one, _ = run(PLAIN, np.arange(16, dtype=np.int32)[None], augment=augment)
    means = [s.batch_stats["backbone"]["BatchNorm_0"]["mean"] for s in (two, one)]
    np.testing.assert_allclose(means[0], np.stack([means[1]] * 2), rtol=1e-5)


def test_initial_weights_do_not_depend_on_the_level_of_optimisation(monkeypatch):
    model = Classifier(OneStage(), num_classes=5, pool="attention")
    states = [create_train_state(model, TX, KEY, (4, 4, 3))]
    monkeypatch.setattr(jax, "default_backend", lambda: "another")
    states.append(create_train_state(model, TX, KEY, (4, 4, 3)))
    jax.tree.map(np.testing.assert_array_equal, *states)
