"""Optimizers, schedules, and what else shapes the updates."""

import pytest

from tests.black_box.conftest import metrics


@pytest.fixture
def curve(launcher, tmp_path):
    """A function that trains and returns a column of the log."""
    count = iter(range(100))

    def train(*fields, split="train", name="loss", variant="avg"):
        workdir = tmp_path / f"run-{next(count)}"
        launcher.train(workdir, *(f"--config.{field}" for field in fields), variant=variant)
        return [line[name] for line in metrics(workdir, split)]

    return train


def rates(curve, *fields):
    """The learning rate of each of 22 steps."""
    return curve("num_epochs=2", "log_every_steps=1", *fields, name="learning_rate")


def test_warmup_cosine_rises_for_its_epochs_and_then_falls(curve):
    found = rates(curve, "schedule=warmup_cosine", "warmup_epochs=1")
    peak = found.index(max(found))
    assert peak in (10, 11)
    assert found[0] < 0.002
    assert max(found) == pytest.approx(0.01, rel=0.02)
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert found[-1] < 5e-4


def test_weight_decay_changes_what_is_learned(curve):
    without, with_l2, decoupled = (
        curve("schedule=constant", *fields)
        for fields in (
            (),
            ("optimizer.weight_decay=0.1",),
            ("optimizer.weight_decay=0.1", "optimizer.weight_decay_kind=decoupled"),
        )
    )
    assert len({without[-1], with_l2[-1], decoupled[-1]}) == 3


def test_momentum_is_that_of_sgd(curve):
    sgd = ("optimizer.name=sgd", "schedule=constant")
    with_momentum, without = (
        curve(*sgd, *fields, variant="flexpool") for fields in ((), ("optimizer.momentum=0.0",))
    )
    assert with_momentum[-1] < without[-1]


@pytest.mark.parametrize("name", ["adamw", "lion", "rmsprop", "nadam", "adabelief", "muon"])
def test_any_optimizer_of_optax_is_chosen_by_its_name(curve, name):
    losses = curve(f"optimizer.name={name}", "learning_rate=1e-3", "schedule=constant")
    assert losses[-1] < losses[0]


def test_adamw_is_adam_with_decoupled_decay(curve):
    decay = ("optimizer.weight_decay=0.1", "schedule=constant")
    adam = curve("optimizer.weight_decay_kind=decoupled", *decay)
    adamw = curve("optimizer.name=adamw", *decay)
    assert adamw == pytest.approx(adam, rel=1e-3)


def test_clipping_bounds_the_updates(curve):
    sgd = ("optimizer.name=sgd", "schedule=constant")
    losses = curve(*sgd, "optimizer.clip_norm=1e-6")
    # From ten classes that are as good as equally likely the network does not move.
    assert losses[-1] == pytest.approx(losses[0], abs=0.02)
    assert curve(*sgd)[-1] < losses[-1] - 0.1


def test_label_smoothing_raises_the_loss_of_training_alone(curve):
    plain, smooth = (curve(f"label_smoothing={value}") for value in ("0.0", "0.2"))
    assert smooth[-1] > plain[-1] + 0.1
    assert curve("label_smoothing=0.2", split="test")[-1] < smooth[-1]


def test_averaged_weights_change_what_is_evaluated_and_not_what_is_trained(curve):
    plain, averaged = (
        [curve(field, split=split) for split in ("train", "test")]
        for field in ("ema_decay=0.0", "ema_decay=0.9")
    )
    assert averaged[0] == pytest.approx(plain[0], rel=1e-6)
    assert averaged[1] != pytest.approx(plain[1], rel=1e-3)


def test_weight_decay_reaches_the_pool_only_when_told_to(curve):
    decay = ("optimizer.weight_decay=0.5", "optimizer.name=adamw", "schedule=constant")
    default, off, on = (
        curve(*decay, *fields, name="regularizer", variant="flexpool,reg")
        for fields in ((), ("optimizer.decay_pool=False",), ("optimizer.decay_pool=True",))
    )
    assert default == off
    assert on != off


NEW_FIELDS = {
    "optimizer.clip_norm": "-1 nan x",
    "label_smoothing": "-0.1 1 nan x",
    "ema_decay": "-0.1 1 nan x",
    "warmup_epochs": "-1 nan x",
    "optimizer.decay_pool": "2 x",
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(name, value) for name, text in NEW_FIELDS.items() for value in text.split()],
)
def test_a_new_field_out_of_range_is_refused(launcher, tmp_path, refuses, field, value):
    done = refuses(*launcher.small(f"--workdir={tmp_path}/run", f"--config.{field}={value}"))
    assert "unknown field" not in done.stderr
    assert field in done.stderr


def test_an_optimizer_that_is_misspelt_is_answered_with_the_closest(launcher, tmp_path, refuses):
    command = launcher.small(f"--workdir={tmp_path}/run", "--config.optimizer.name=rmsprob")
    refuses(*command, words=["optimizer.name", "rmsprop"])
