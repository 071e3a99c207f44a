"""A mistake in a command costs one line and exit status 2, and nothing is written."""

import pytest

from tests.black_box.conftest import run_in_process, run_process

DIGITS = "--config=configs/digits.py:flexpool,reg"
SWEEP = "--config=configs/paper_tables.py"
NEW = "--workdir={new}"

MISTAKES = [
    # What is missing.
    ([], ["--config"]),
    ([DIGITS], ["--workdir"]),
    ([NEW], ["--config"]),
    (["--config.seed=1", NEW], ["--config"]),
    (["--mode=eval"], ["--workdir"]),
    (["--mode=prepare"], ["--config"]),
    (["--mode=sweep", NEW], ["--config"]),
    (["--mode=sweep", SWEEP], ["--workdir"]),
    (["--mode=report"], ["--workdir"]),
    ([DIGITS, "--workdir="], ["--workdir"]),
    ([DIGITS, "--workdir"], ["--workdir"]),
    ([DIGITS, "--workdir", "--mode=train"], ["--workdir"]),
    (["--config", NEW], ["--config"]),
    (["--config=", NEW], ["--config"]),
    # What is misspelt, with the closest name.
    ([DIGITS, NEW, "--mdoe=train"], ["mdoe", "--mode"]),
    ([DIGITS, "--workdr={new}"], ["workdr", "--workdir"]),
    ([DIGITS, NEW, "--mode=trian"], ["'trian'", "train", "eval", "prepare", "sweep", "report"]),
    ([DIGITS, NEW, "--mode="], ["mode"]),
    (["--config=configs/digts.py", NEW], ["configs/digits.py"]),
    (["--config=configs/digits.py:flexpol", NEW], ["'flexpol'", "flexpool"]),
    (["--config=configs/digits.py:flexpool,regg", NEW], ["'regg'", "reg"]),
    (["--config=configs/he_recipe.py:cifar11", NEW], ["'cifar11'", "cifar10"]),
    ([DIGITS, NEW, "--config.lerning_rate=1"], ["lerning_rate", "--config.learning_rate"]),
    ([DIGITS, NEW, "--config.flip=False"], ["--config.augment.flip"]),
    ([DIGITS, NEW, "--config.pool=flexpol"], ["config.pool", "flexpool"]),
    ([DIGITS, NEW, "--config.model=resnet21"], ["config.model", "resnet20"]),
    ([DIGITS, NEW, "--config.dataset.name=digit"], ["dataset.name", "digits"]),
    ([DIGITS, NEW, "--config.schedule=onecicle"], ["config.schedule", "onecycle"]),
    ([DIGITS, NEW, "--config.optimizer.name=adma"], ["optimizer.name", "adam"]),
    # What was meant otherwise.
    (["train"], ["--mode=train"]),
    (["configs/digits.py"], ["--config=configs/digits.py"]),
    ([DIGITS, "{new}"], ["{new}"]),
    ([DIGITS, NEW, "--batch_size=64"], ["batch_size"]),
    ([DIGITS, NEW, "--nomode"], ["nomode"]),
    ([DIGITS, NEW, "--undefok=mdoe", "--mdoe=x"], ["undefok"]),
    ([DIGITS, NEW, "--flagfile={file}"], ["flagfile"]),
    ([DIGITS, NEW, "--", "--config.seed=-1"], ["config.seed", "-1"]),
    ([DIGITS, NEW, "--step=latest"], ["--step"]),
    (["--mode=prepare", DIGITS, "--step=3"], ["--step"]),
    (["--mode=sweep", SWEEP, NEW, "--step=3"], ["--step"]),
    (["--config=configs", NEW], ["configs"]),
    (["--config=README.md", NEW], ["README.md"]),
    (["--config=flexpool_jax/__init__.py", NEW], ["get_config"]),
    (["--config=configs/digits.py:avg,flexpool", NEW], ["avg", "flexpool"]),
    (["--config=configs/digits.py:sac,sac", NEW], ["sac"]),
    (["--config=configs/digits.py:avg,reg", NEW], ["reg"]),
    (["--config=configs/paper_tables.py:avg", NEW], ["paper_tables.py"]),
    ([SWEEP, NEW], ["--mode=sweep"]),
    (["--mode=sweep", "--config=configs/digits.py", NEW], ["configs/paper_tables.py"]),
    (["--mode=report", NEW], ["result.json"]),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=lambda x: " ".join(x) or "nothing")
def test_a_mistake_costs_one_line(arguments, words, tmp_path, refuses):
    (tmp_path / "file").write_text("")
    names = {"new": tmp_path / "new", "file": tmp_path / "file"}
    refuses(*(x.format(**names) for x in arguments), words=[w.format(**names) for w in words])


NAMES = {
    "model": "resnet20 resnet32 resnet44 resnet56 resnet110 resnet18 resnet34 resnet50 vgg11 vgg13 "
    "vgg16 vgg19 inception",
    "pool": "avg max avgmax gem lse softpool attention flexpool flexpool_softmax",
    "schedule": "onecycle cosine step constant",
    "dataset.name": "digits fashion_mnist cifar10 cifar100 tiny_imagenet image_folder",
}


@pytest.mark.parametrize("field", NAMES)
def test_a_name_that_is_like_no_other_is_answered_with_all_that_exist(field, tmp_path, refuses):
    names = NAMES[field].split()
    refuses(DIGITS, f"--workdir={tmp_path}/run", f"--config.{field}=zzzzzzz", words=names)


@pytest.mark.parametrize("pool", NAMES["pool"].split())
def test_every_pool_is_accepted(pool, launcher):
    command = launcher.small(f"--config.pool={pool}", "--mode=prepare", variant="sac")
    assert run_in_process(*command).status == 0


BROKEN_CONFIGS = {
    "a syntax error": ("def get_config(:\n", ["mine.py", "1"]),
    "an exception": ("x = 1 / 0\n", ["mine.py:1", "ZeroDivisionError"]),
    "an exception in its function": (
        "def get_config():\n    return {}['x']\n",
        ["mine.py:2", "KeyError"],
    ),
    "no function": ("config = 1\n", ["mine.py", "get_config"]),
    "another type": ("def get_config():\n    return 3\n", ["ConfigDict"]),
    "an import that fails": ("import no_such_module\n", ["mine.py:1", "no_such_module"]),
    "an exit": ("raise SystemExit(0)\n", ["mine.py:1"]),
    "nothing": ("", ["mine.py", "get_config"]),
}


@pytest.mark.parametrize("name", BROKEN_CONFIGS)
def test_a_config_file_that_fails_is_named_with_its_line(name, tmp_path, refuses):
    text, words = BROKEN_CONFIGS[name]
    (tmp_path / "mine.py").write_text(text)
    refuses(f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/run", words=words)


def test_the_closest_file_beside_a_config_of_ones_own_is_named(tmp_path, refuses):
    (tmp_path / "mine.py").write_text("def f(): pass\n\ndef get_config():\n    return None\n")
    refuses(f"--config={tmp_path}/mein.py", f"--workdir={tmp_path}/run", words=["mine.py"])


def test_the_script_runs_from_any_folder_and_exits_with_its_status(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, output = run_process("--config=configs/digits.py", "--workdir=new", "--mode=trian")
    assert status == 2
    assert "'train'" in output
    assert list(tmp_path.iterdir()) == []
