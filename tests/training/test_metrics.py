"""What a run writes for programs: metrics on their way, metrics.jsonl, TensorBoard's files."""

import json
import math
import os
import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from flexpool_jax.training import metrics
from flexpool_jax.training.metrics import Meter, MetricsWriter
from flexpool_jax.training.steps import NotFinite


def metrics_lines(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def write_steps(log, *steps):
    for step in steps:
        log.write(step=step, epoch=step / 10, split="train", loss=1 / step, accuracy=0.5)


def test_each_line_is_an_object_of_its_own_and_readable_at_once(tmp_path):
    with MetricsWriter(tmp_path / "new" / "workdir", tensorboard=False) as log:
        write_steps(log, 1, 2)
        # Before anything is closed: a run that is killed has its lines.
        lines = metrics_lines(tmp_path / "new" / "workdir")
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[1] == {"step": 2, "epoch": 0.2, "split": "train", "loss": 0.5, "accuracy": 0.5}


def test_values_that_json_lacks_become_null_and_array_scalars_numbers(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=True) as log:
        log.write(
            step=1,
            epoch=0.1,
            split="train",
            loss=math.nan,
            sac=-math.inf,
            images_per_second=None,
            accuracy=np.float32(0.25),
            regularizer=jnp.float32(2.0),
        )
    (line,) = metrics_lines(tmp_path)
    assert line["loss"] is line["sac"] is line["images_per_second"] is None
    assert line["accuracy"] == 0.25
    assert line["regularizer"] == 2.0


def test_lines_are_on_the_disk_before_their_position_is_saved(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(metrics.os, "fsync", lambda number: synced.append(os.fstat(number).st_ino))
    with MetricsWriter(tmp_path, tensorboard=False) as log:
        write_steps(log, 1)
        assert log.position() == (tmp_path / "metrics.jsonl").stat().st_size
    assert synced == [(tmp_path / "metrics.jsonl").stat().st_ino]


def test_resuming_cuts_off_what_was_written_after_the_checkpoint(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False, resume_bytes=0) as log:
        write_steps(log, 1, 2)
        position = log.position()
        write_steps(log, 3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "epo')  # killed while it wrote
    with MetricsWriter(tmp_path, tensorboard=False, resume_bytes=position) as log:
        assert log.position() == position
        write_steps(log, 3, 4)
    assert [line["step"] for line in metrics_lines(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("resumes", [False, True])
def test_an_evaluation_that_is_repeated_writes_no_second_line(tmp_path, resumes):
    def write(log, step, split="test"):
        log.write(step=step, epoch=step / 10, split=split, loss=0.5)

    with MetricsWriter(tmp_path) as log:
        for split in ("train", "test"):
            write(log, 10, split)
        position = log.position()
        write(log, 10)
    with MetricsWriter(tmp_path, resume_bytes=position if resumes else None) as log:
        write(log, 10)
        write(log, 20)
    lines = [(line["step"], line["split"]) for line in metrics_lines(tmp_path)]
    assert lines == [(10, "train"), (10, "test"), (20, "test")]
    steps = [event.step for event in tensorboard_events(tmp_path) if event.summary.value]
    # Two writers of one second have files in any order.
    assert sorted(steps) == [10, 10, 20]


def test_position_is_the_length_of_the_file(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as log:
        assert log.position() == 0
        write_steps(log, 1, 2)
        assert log.position() == (tmp_path / "metrics.jsonl").stat().st_size > 0


@pytest.mark.parametrize(("resume_bytes", "kept"), [(None, [1, 2]), (10_000, [1, 2]), (0, [])])
def test_a_torn_last_line_is_dropped_whatever_the_position(tmp_path, resume_bytes, kept):
    with MetricsWriter(tmp_path, tensorboard=False) as log:
        write_steps(log, 1, 2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3')
    with MetricsWriter(tmp_path, tensorboard=False, resume_bytes=resume_bytes) as log:
        write_steps(log, 9)
    assert [line["step"] for line in metrics_lines(tmp_path)] == [*kept, 9]


def tensorboard_events(workdir):
    """Reads event files as TFRecord lays them down: length, its checksum, data, its checksum."""
    events = []
    for path in sorted((workdir / "tensorboard").iterdir(), key=lambda path: path.stat().st_ino):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            events.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return events


def test_tensorboard_gets_every_finite_value_under_its_split_without_tensorflow(tmp_path):
    with MetricsWriter(tmp_path) as log:
        write_steps(log, 1, 2)
        log.write(step=2, epoch=0.2, split="test", loss=math.nan, accuracy=0.75)
    scalars = {
        (value.tag, event.step): value.simple_value
        for event in tensorboard_events(tmp_path)
        for value in event.summary.value
    }
    assert scalars == {
        ("train/loss", 1): 1.0,
        ("train/loss", 2): 0.5,
        ("train/accuracy", 1): 0.5,
        ("train/accuracy", 2): 0.5,
        ("test/accuracy", 2): 0.75,
    }
    assert "tensorflow" not in sys.modules


def test_what_precedes_a_checkpoint_is_in_tensorboards_file_before_it_is_closed(tmp_path):
    with MetricsWriter(tmp_path) as log:
        write_steps(log, 1, 2)
        log.position()
        events = tensorboard_events(tmp_path)
    assert {event.step for event in events if event.summary.value} == {1, 2}


def test_a_resumed_run_tells_tensorboard_from_where_to_forget_and_keeps_older_files(tmp_path):
    for first_step in (1, 3):
        # Twice within one second: neither file may take the other's place.
        with MetricsWriter(tmp_path, purge_step=first_step) as log:
            write_steps(log, first_step, first_step + 1)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    events = tensorboard_events(tmp_path)
    starts = {event.step for event in events if event.HasField("session_log")}
    assert starts == {1, 3}
    assert {event.step for event in events if event.summary.value} == {1, 2, 3, 4}


def test_without_tensorboard_there_are_no_event_files(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as log:
        write_steps(log, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def dispatch(*losses):
    steps = len(losses)
    return {"loss": np.float32(losses), "learning_rate": np.linspace(1.0, 0.5, steps)}


def test_meter_stays_one_dispatch_behind():
    meter = Meter(batch_size=10)
    meter.add(2, dispatch(4.0, 3.0))
    assert meter.step == 2  # The timing begins when the first dispatch has come back.
    meter.add(4, dispatch(2.0, 1.0))
    assert meter.step == 2
    assert [row["loss"] for row in meter.rows] == [4.0, 3.0]
    meter.wait()
    assert meter.step == 4
    assert meter.means() == {"loss": 2.5, "learning_rate": 0.5}


def test_images_per_second_leave_out_compilation_and_pauses(clock):
    meter = Meter(batch_size=10)
    for seconds, step in ((300.0, 1), (2.0, 2), (2.0, 3)):
        clock.now += seconds
        meter.add(step, dispatch(1.0))
        meter.wait()
    assert meter.images_per_second == pytest.approx(5.0)
    clock.now += 60.0  # An evaluation.
    meter.pause()
    clock.now += 2.0
    meter.add(4, dispatch(1.0))
    meter.wait()
    assert meter.images_per_second == pytest.approx(5.0)


def test_images_per_second_leave_out_every_compilation(clock):
    meter = Meter(batch_size=10)
    # The rest of each epoch is one step, and so a program of its own.
    for count, compilation in ((2, 30.0), (2, 0.0), (1, 30.0), (2, 0.0), (2, 0.0), (1, 0.0)):
        meter.expect(count)
        clock.now += compilation + 2.0 * count
        meter.add(meter.step + count, dispatch(*[1.0] * count))
        meter.wait()
    assert meter.images_per_second == pytest.approx(5.0)


class Slow:
    """An array for which a reader has to wait."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def __array__(self, dtype=None, copy=None):
        self.clock.now += self.seconds
        return np.float32([1.0, 1.0])


@pytest.mark.parametrize(("in_call", "after"), [(0.25, 7.75), (7.75, 0.25)])
def test_a_step_is_timed_in_the_first_dispatch_that_does_not_compile(clock, in_call, after):
    meter = Meter(batch_size=10)
    # A run that continues within an epoch begins with a dispatch of another length.
    for step, program, compilation in ((2, "rest", 300.0), (4, "full", 300.0), (6, "full", 0.0)):
        assert meter.seconds_per_step is None
        meter.expect(program)
        clock.now += compilation + in_call
        meter.add(step, {"loss": Slow(clock, after)})
    assert meter.step == 6
    assert meter.seconds_per_step == pytest.approx(4.0)
    assert meter.is_blocked is (in_call > after)


def test_share_of_waiting_leaves_out_the_compilation_as_the_seconds_do(clock):
    meter = Meter(batch_size=10)

    def parts():
        for seconds in (300.0, 1.0, 1.0):
            clock.now += seconds
            yield seconds

    for step, _ in enumerate(meter.waiting_for(parts()), start=1):
        clock.now += 3.0
        meter.add(step, dispatch(1.0))
        meter.wait()
    assert meter.data_wait == pytest.approx(1 / 4)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_its_step(loss):
    meter = Meter(batch_size=10)
    with pytest.raises(NotFinite, match=str(loss)) as caught:
        meter.add(12, dispatch(1.0, loss, 1.0))
    assert caught.value.step == 11
