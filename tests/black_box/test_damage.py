"""Damaged files of a workdir are noticed: never restored, never reported, never a traceback."""

import os
import shutil

import pytest

from tests.black_box.conftest import (
    edit_json,
    metrics,
    outcome,
    read_json,
    run_in_process,
    saved_steps,
)


def large_files(folder):
    """The files that hold the arrays of a checkpoint."""
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 10_000]


def truncate(folder):
    for path in large_files(folder):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(folder):
    for path in large_files(folder):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)


def empty_all(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


DAMAGE = [truncate, flip_a_byte, empty_all]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(resnet_run, resnet_copy, damage):
    damage(resnet_copy / "checkpoints" / "44")
    done = run_in_process(f"--workdir={resnet_copy}")
    assert done.status == 0, done.output
    assert "44" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((resnet_copy / "checkpoints_damaged").iterdir())
    assert metrics(resnet_copy) == metrics(resnet_run)
    assert outcome(resnet_copy) == outcome(resnet_run)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_step_is_not_evaluated(resnet_copy, damage):
    damage(resnet_copy / "checkpoints" / "44")
    done = run_in_process(f"--workdir={resnet_copy}", "--mode=eval", "--step=44")
    assert done.status == 2
    assert "44" in done.last_line
    assert "accuracy" not in done.stdout
    assert not (resnet_copy / "evaluation.json").exists()


def test_a_run_without_a_whole_checkpoint_does_not_start_over(resnet_copy):
    for step in (22, 44):
        truncate(resnet_copy / "checkpoints" / str(step))
    done = run_in_process(f"--workdir={resnet_copy}")
    assert done.status == 2
    assert "damaged" in done.last_line
    assert len(metrics(resnet_copy)) == 4


def test_the_checkpoint_of_another_model_is_not_evaluated(small_copy, resnet_copy):
    shutil.rmtree(resnet_copy / "checkpoints")
    shutil.copytree(small_copy / "checkpoints", resnet_copy / "checkpoints")
    for mode in ("eval", "train"):
        done = run_in_process(f"--workdir={resnet_copy}", f"--mode={mode}")
        assert done.status == 2
        assert "Traceback" not in done.stderr


CONFIGS = {
    "nothing": "",
    "half of it": '{"seed": 0, "model": "res',
    "a list": "[]",
    "a number": "3",
    "bytes": b"\xff\xfe\x00",
    "nesting without end": '{"seed":' * 100_000,
}
FIELDS = {
    "an unknown field": lambda config: config.update(lerning_rate=0.1),
    "a missing field": lambda config: config.pop("learning_rate"),
    "a missing group": lambda config: config.pop("optimizer"),
    "a group that is a number": lambda config: config.update(dataset=3),
    "a number that is a group": lambda config: config.update(seed={"a": 1}),
    "a number that is a text": lambda config: config.update(batch_size="64"),
    "NaN": lambda config: config.update(learning_rate=float("nan")),
    "a huge number": lambda config: config.update(seed=10**400),
    "a name that is none": lambda config: config.update(pool="flexpol"),
}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_damaged_config_is_refused(resnet_copy, refuses, name, mode):
    content = CONFIGS[name]
    content = content if isinstance(content, bytes) else content.encode()
    (resnet_copy / "config.json").write_bytes(content)
    refuses(f"--workdir={resnet_copy}", f"--mode={mode}", words=["config.json"])


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", FIELDS)
def test_a_config_with_a_wrong_field_is_refused(resnet_copy, refuses, name, mode):
    edit_json(resnet_copy / "config.json", FIELDS[name])
    refuses(f"--workdir={resnet_copy}", f"--mode={mode}", words=["config"])


@pytest.mark.parametrize("what", ["a folder", "a link to nothing", "a pipe"])
def test_a_config_that_is_not_a_file_is_refused(resnet_copy, refuses, what):
    path = resnet_copy / "config.json"
    path.unlink()
    {
        "a folder": path.mkdir,
        "a link to nothing": lambda: path.symlink_to("nothing"),
        "a pipe": lambda: os.mkfifo(path),
    }[what]()
    for mode in ("train", "eval"):
        refuses(f"--workdir={resnet_copy}", f"--mode={mode}", words=["config"])


@pytest.mark.parametrize("content", ["", "[]", '{"epochs": 2}'])
def test_a_damaged_result_is_made_anew(resnet_run, resnet_copy, content):
    (resnet_copy / "result.json").write_text(content)
    done = run_in_process(f"--workdir={resnet_copy}")
    assert done.status == 0, done.output
    assert outcome(resnet_copy) == outcome(resnet_run)


@pytest.mark.parametrize("torn", [b'{"step": 33, "epo', b"\xff\x00\xfe"])
def test_a_torn_line_of_the_metrics_is_removed(launcher, small_run, small_copy, torn):
    with (small_copy / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    done = run_in_process(*launcher.small(f"--workdir={small_copy}", "--config.num_epochs=4"))
    assert done.status == 0, done.output
    assert metrics(small_copy)[:6] == metrics(small_run)
    assert len(metrics(small_copy)) == 8


def test_metrics_that_are_gone_do_not_stop_a_run(launcher, small_copy):
    (small_copy / "metrics.jsonl").unlink()
    done = run_in_process(*launcher.small(f"--workdir={small_copy}", "--config.num_epochs=4"))
    assert done.status == 0, done.output
    assert [line["step"] for line in metrics(small_copy)] == [44, 44]


def test_a_checkpoint_that_was_cut_short_in_writing_is_not_one(resnet_copy):
    shutil.copytree(
        resnet_copy / "checkpoints/44", resnet_copy / "checkpoints/66.orbax-checkpoint-tmp-1"
    )
    done = run_in_process(f"--workdir={resnet_copy}", "--mode=eval")
    assert done.status == 0, done.output
    assert read_json(resnet_copy / "evaluation.json")["step"] == 44
    assert 66 not in saved_steps(resnet_copy)
