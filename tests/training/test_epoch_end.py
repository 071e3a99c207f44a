"""Between two epochs an accelerator does not wait for the host, and nothing is lost.

The device of these tests computes nothing: its results come back at a time of its own clock, which
the host reads as well. So the gaps between its steps are exact.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from flexpool_jax import train
from flexpool_jax.errors import Interrupted, TrainingDiverged
from flexpool_jax.training import checkpoints, loop, metrics
from flexpool_jax.training import run as whole_run
from flexpool_jax.training.interrupts import StopRequest
from flexpool_jax.training.steps import TrainState, steps_in

STEPS = 11  # Of an epoch of the digits, in batches of 128.
STEP_SECONDS, EVAL_SECONDS, SAVE_SECONDS = 0.25, 0.1, 0.4


class MemoryIsFull(RuntimeError):
    """What JAX raises, when a program is dispatched or when its result is read."""


class Full:
    def __array__(self, dtype=None, copy=None):
        raise MemoryIsFull


class Later:
    """An array that a reader has to wait for."""

    def __init__(self, device, value):
        self.device, self.value, self.ready = device, value, device.free

    def block_until_ready(self):
        self.device.now = max(self.device.now, self.ready)

    def __array__(self, dtype=None, copy=None):
        self.block_until_ready()
        return self.value


class Device:
    """Does what it is told in order, while the host's clock runs on its own."""

    def __init__(
        self,
        accuracies=(),
        stop_at=None,
        diverges_at=None,
        overflows_at=None,
        fails_at=None,
        step_seconds=STEP_SECONDS,
        is_blocking=False,
    ):
        self.accuracies, self.stop_at = accuracies, stop_at
        self.diverges_at, self.overflows_at = diverges_at, overflows_at
        self.fails_at = fails_at  # The number of an evaluation, and whether its call fails.
        self.evaluations = 0
        self.step_seconds, self.is_blocking = step_seconds, is_blocking
        self.now = self.free = 0.0
        self.calls = 0
        self.busy = []  # What it did from when to when.
        self.stop = StopRequest()

    def work(self, kind, seconds):
        start = max(self.now, self.free)
        self.free = start + seconds
        self.busy.append((kind, start, self.free))
        if self.is_blocking:
            self.now = self.free
        self.calls += 1
        self.stop.requested |= self.calls == self.stop_at

    def train_steps(self, state, data, part, key):
        steps, self.key = steps_in(part), key
        self.work("train", steps * self.step_seconds)
        numbers = int(state.step) + np.arange(steps)
        loss = np.where(numbers == self.diverges_at, math.nan, 1 / (1 + numbers))
        # Of donated buffers nothing may be read any more.
        step = state.step + steps
        weight = math.inf if int(step) == self.overflows_at else step
        params = jax.tree.map(lambda x: 0 * x + weight, state.params)
        kept = jax.tree.map(jnp.copy, (state.batch_stats, state.opt_state))
        jax.tree.map(lambda x: x.delete(), state)
        values = {name: Later(self, loss) for name in ("loss", "accuracy", "learning_rate")}
        return TrainState(step, params, *kept), values

    def eval_step(self, variables, data, part):
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(variables))
        self.work("evaluate", EVAL_SECONDS)
        self.evaluations += 1
        if self.fails_at == (self.evaluations, True):
            raise MemoryIsFull
        if self.fails_at == (self.evaluations, False):
            return {}, {"logits": Full()}
        weight = float(jax.tree.leaves(variables)[0].mean())
        epoch = int(weight) // STEPS if math.isfinite(weight) else 0
        accuracy = self.accuracies[epoch - 1] if self.accuracies else epoch / 100
        # As many of the first images get their own class, the others the next one.
        labels = np.asarray(data.labels)
        is_wrong = np.asarray(part) >= int(accuracy * len(labels))
        logits = np.eye(10, dtype=np.float32)[(labels[part] + is_wrong) % 10]
        return {}, {"logits": Later(self, logits)}

    def gaps(self):
        """Seconds between two epochs' steps in which it did not evaluate either."""
        ends = [start for kind, start, _ in self.busy if kind == "train"]
        waits = [0.0] * len(ends)
        for (_, _, end), (_, start, _) in zip(self.busy, self.busy[1:], strict=False):
            following = next((i for i, begin in enumerate(ends) if begin >= start), None)
            if following is not None:
                waits[following] += start - end
        return waits[1:]


@pytest.fixture
def run(tmp_path_factory, monkeypatch):
    """Trains on a `Device`."""
    data_dir = tmp_path_factory.mktemp("data")

    def run(device, backend, workdir, **fields):
        config = digits.get_config("flexpool,reg")
        config.update_from_flattened_dict(
            {
                "model": "linear_for_tests",
                "dataset.data_dir": str(data_dir),
                "dataset.image_size": 8,
                "batch_size": 128,
                "num_epochs": 4,
                "tensorboard": False,
            }
            | fields
        )

        def set_up(*arguments):
            setup = original(*arguments)
            return dataclasses.replace(
                setup, train_steps=device.train_steps, eval_step=device.eval_step
            )

        def save(*arguments):
            device.now += SAVE_SECONDS
            original_save(*arguments)

        def stop_on_signals(*, may_exit=True):
            assert not may_exit  # A program that calls `train` must not be ended by a signal.
            return contextlib.nullcontext(device.stop)

        def finish_epoch(*arguments):
            # What a device computes for the host would wait for the steps that it has been given.
            with jax.transfer_guard_host_to_device("disallow"):
                original_finish(*arguments)

        original, original_save = whole_run.set_up, checkpoints.save
        original_finish = loop.finish_epoch
        with monkeypatch.context() as patch:
            patch.setattr(jax, "default_backend", lambda: backend)
            patch.setattr(whole_run, "set_up", set_up)
            patch.setattr(loop, "finish_epoch", finish_epoch)
            patch.setattr(whole_run, "stop_on_signals", stop_on_signals)
            patch.setattr(checkpoints, "save", save)
            clock = types.SimpleNamespace(monotonic=lambda: device.now)
            for module in (loop, whole_run, metrics):
                patch.setattr(module, "time", clock)
            return train(config, workdir)

    return run


def whole_lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def lines_of(workdir):
    return [{**line, "images_per_second": None} for line in whole_lines_of(workdir)]


def saved_steps(workdir):
    with checkpoints.open_checkpoints(workdir, read_only=True) as manager:
        return manager.all_steps(), manager.best_step()


def test_an_accelerator_waits_for_nothing_between_two_epochs(run, tmp_path):
    gpu, cpu = Device(), Device()
    result = run(gpu, "gpu", tmp_path / "gpu")
    same = run(cpu, "cpu", tmp_path / "cpu")
    # The device's first dispatch that does not compile is in the second epoch.
    assert gpu.gaps()[1:] == pytest.approx([0, 0], abs=0.01 * STEPS * STEP_SECONDS)
    # The measure itself: on a CPU each epoch waits for the save of the one before.
    assert sum(gap > 0.9 * SAVE_SECONDS for gap in cpu.gaps()) == 3
    # Evaluation and compilation are not training; saving beside the steps costs nothing.
    assert result["images_per_second"] == pytest.approx(128 / STEP_SECONDS)
    for backend in ("gpu", "cpu"):
        rates = [line["images_per_second"] for line in whole_lines_of(tmp_path / backend)]
        assert rates[1::2] == pytest.approx([359 / EVAL_SECONDS] * 4)
    assert lines_of(tmp_path / "gpu")[-1] == lines_of(tmp_path / "cpu")[-1]
    for name in ("final_test_accuracy", "best_test_accuracy", "step"):
        assert result[name] == same[name]
    assert saved_steps(tmp_path / "gpu") == saved_steps(tmp_path / "cpu") == ([33, 44], 44)


def test_speeds_are_right_if_a_call_returns_when_its_steps_are_done(run, tmp_path):
    result = run(Device(is_blocking=True), "gpu", tmp_path / "run")
    assert result["images_per_second"] == pytest.approx(128 / STEP_SECONDS)
    rates = [line["images_per_second"] for line in whole_lines_of(tmp_path / "run")]
    assert rates[1::2] == pytest.approx(4 * [359 / EVAL_SECONDS])


@pytest.mark.parametrize("is_blocking", [False, True])
def test_dispatches_of_a_slow_model_are_shorter(run, tmp_path, is_blocking):
    device = Device(step_seconds=0.6, is_blocking=is_blocking)
    run(device, "gpu", tmp_path / "run", num_epochs=3)
    seconds = [end - start for kind, start, end in device.busy if kind == "train"]
    assert seconds == pytest.approx(2 * [STEPS * 0.6] + STEPS * [0.6])


def test_a_stop_at_any_call_loses_nothing(run, tmp_path):
    fields = {"num_epochs": 3, "eval_every_epochs": 2, "eval_batch_size": 200}
    undisturbed, device = tmp_path / "undisturbed", Device()
    result = run(device, "gpu", undisturbed, **fields)
    for call in range(1, device.calls + 1):
        workdir = tmp_path / f"stopped_at_{call}"
        stopped = Device(stop_at=call)
        with pytest.raises(Interrupted):
            run(stopped, "gpu", workdir, **fields)
        assert stopped.calls - call <= 2
        again = run(Device(), "gpu", workdir, **fields)
        assert lines_of(workdir) == lines_of(undisturbed), call
        for name in ("final_test_accuracy", "best_test_accuracy", "step"):
            assert again[name] == result[name]
        assert again["seconds"] >= result["seconds"] - 1e-6, call
        assert saved_steps(workdir)[1] == saved_steps(undisturbed)[1]


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_an_evaluation_that_fails_loses_nothing(run, tmp_path, backend):
    fields = {"num_epochs": 3, "checkpoint_every_epochs": 3}
    undisturbed = tmp_path / "undisturbed"
    run(Device(), backend, undisturbed, **fields)
    for epoch, is_call in itertools.product((1, 2, 3), (True, False)):
        workdir = tmp_path / f"{epoch}_{is_call}"
        with pytest.raises(MemoryIsFull):
            run(Device(fails_at=(epoch, is_call)), backend, workdir, **fields)
        assert saved_steps(workdir)[0][-1] == epoch * STEPS
        run(Device(), backend, workdir, **fields)
        assert lines_of(workdir) == lines_of(undisturbed), (epoch, is_call)


ACCURACIES = (0.1, 0.5, 0.2, 0.4, 0.3, 0.3)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_the_best_state_waits_in_memory_for_the_next_checkpoint(run, tmp_path, backend):
    fields = {"num_epochs": 6, "checkpoint_every_epochs": 4}
    device = Device(ACCURACIES)
    result = run(device, backend, tmp_path / "run", **fields)
    right = [round(359 * result[f"{which}_test_accuracy"]) for which in ("best", "final")]
    assert right == [int(0.5 * 359), int(0.3 * 359)]
    # Epoch 1 was better than none before it, and never saved.
    assert saved_steps(tmp_path / "run") == ([22, 44, 66], 22)


def test_the_best_state_is_saved_when_the_run_stops_or_diverges(run, tmp_path):
    fields = {"num_epochs": 6, "checkpoint_every_epochs": 6, "log_every_steps": 1}
    with pytest.raises(TrainingDiverged, match="last good checkpoint is step 22"):
        run(Device(ACCURACIES, diverges_at=40), "gpu", tmp_path / "diverged", **fields)
    assert saved_steps(tmp_path / "diverged") == ([22], 22)
    device = Device(ACCURACIES, stop_at=3 * (STEPS + 1) + 3)
    with pytest.raises(Interrupted):
        run(device, "gpu", tmp_path / "stopped", **fields)
    steps, best = saved_steps(tmp_path / "stopped")
    assert best == 22
    assert steps[-1] > 33


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (Device(diverges_at=0), "at step 1 .*none was saved; no update was made before it"),
        (Device(diverges_at=1), "at step 2 .*none was saved; .*learning_rate begins anew"),
        (Device(overflows_at=1), "not finite at step 1 .*none was saved; .* begins anew"),
        (Device(diverges_at=12), r"at step 13 \(epoch 2\); .*is step 11; .* continues from there"),
    ],
)
def test_a_run_that_diverges_says_from_where_it_can_be_trained(run, tmp_path, device, words):
    # With a batch that is the whole epoch, the state of step 1 is due to be saved.
    fields = {"batch_size": 1408} if device.overflows_at else {}
    with pytest.raises(TrainingDiverged, match=words):
        run(device, "cpu", tmp_path, **fields)


def test_the_seed_draws_augmentation_and_dropout(run, tmp_path):
    keys = []
    for seed in (0, 1):
        device = Device()
        run(device, "cpu", tmp_path / str(seed), num_epochs=1, seed=seed)
        keys.append(jax.random.key_data(device.key))
    assert not np.array_equal(*keys)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_of_equally_good_states_the_later_is_the_best(run, tmp_path, backend):
    fields = {"num_epochs": 6, "checkpoint_every_epochs": 3}
    run(Device((0.1, 0.5, 0.2, 0.5, 0.3, 0.3)), backend, tmp_path / "run", **fields)
    assert saved_steps(tmp_path / "run")[1] == 44
