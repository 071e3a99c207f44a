"""Fields of a config: what an override means, and which values are refused."""

import pytest

from tests.black_box.conftest import read_json, run_in_process

DIGITS = "--config=configs/digits.py:flexpool,reg"

# Values that no field of the name can have, as they are typed.
WRONG = {
    "seed": "-1 1.5 2e10 nan one",
    "model": "resnet21 RESNET20 20 resnet20,resnet32",
    "norm_after_relu": "2 maybe",
    "pool": "flexpol Avg none",
    "pool_reg": "-1 nan inf -inf 1e7 x",
    "dropout_rate": "-0.1 1 1.5 nan 25%",
    "sac.enabled": "2 x",
    "sac.weights": "nan,1 inf a,b 0.1;0.9 0.1,,0.9 ((0.1,),0.2)",
    "dataset.name": "imagenette ../digits .",
    "dataset.image_size": "-8 7 1025 8.5 big nan",
    "dataset.holdout": "-0.1 1 nan 10%",
    "batch_size": "0 -1 1.5 1e8 nan inf 1e400 many True 1,2",
    "num_epochs": "0 -1 1e7 ten",
    "eval_batch_size": "0 -1 x",
    "optimizer.name": "SGD apply_updates __doc__ sgd.__class__ os.system",
    "optimizer.momentum": "-0.1 1 nan",
    "optimizer.weight_decay": "-1 2 nan",
    "optimizer.weight_decay_kind": "l1",
    "learning_rate": "0 -0.1 nan inf 1e4 fast None 0,1",
    "schedule": "linear OneCycle",
    "dtype": "float16 fp32",
    "sync_batch_norm": "2",
    "augment.flip": "left",
    "augment.scale": "1 1.2,0.8 0,1 1,nan 1,2,3 a,b",
    "augment.crop": "-1 0.5 1025",
    "superclass.epochs": "-1 5",
    "superclass.mapping": "animals.json",
    "eval_every_epochs": "0 -1 x",
    "checkpoint_every_epochs": "0 0.5",
    "log_every_steps": "0 -1",
    "tensorboard": "2",
    "sac": "1 {'enabled':True}",
    "sac.weight": "0.1,0.2,0.7",
    "no.such.field": "1",
    "seed.x": "1",
}
EMPTY = ["seed", "model", "pool", "batch_size", "optimizer.name", "schedule", "dtype"]
EMPTY += ["sac.weights", "augment.scale", "dataset.name", "dataset.data_dir", "tensorboard"]
CASES = [(field, value) for field, values in WRONG.items() for value in values.split()]
CASES += [(field, "") for field in EMPTY]
CASES += [("dataset.name", "a b"), ("dataset.data_dir", "  "), ("dataset.data_dir", "a\0b")]


@pytest.mark.parametrize(("field", "value"), CASES)
def test_a_value_out_of_range_is_refused(field, value, tmp_path, refuses):
    (tmp_path / "file").touch()  # Were a value accepted, the line would not be about its field.
    data_dir = f"--config.dataset.data_dir={tmp_path / 'file'}"
    override = f"--config.{field}={value}"
    refuses(DIGITS, f"--workdir={tmp_path}/run", data_dir, override, words=[field.split(".")[-1]])


CONTRADICTIONS = [
    ("pool=avg", ["config.pool_reg", "avg"]),  # The variant switches Eq. 2 on.
    ("sac.enabled=True sac.weights=0.2,0.8", ["sac.weights", "3"]),
    ("sac.enabled=True sac.weights=0.7,0.2,0.1", ["sac.weights", "increas"]),
    ("sac.enabled=True sac.weights=0.1,0.1,0.8", ["sac.weights", "increas"]),
    ("sac.enabled=True sac.weights=0,0.3,0.7", ["sac.weights", "positive"]),
    ("sac.enabled=True sac.weights=0.1,0.2,0.3", ["sac.weights", "sum"]),
    ("sac.enabled=True model=resnet18 sac.weights=0.2,0.3,0.5", ["0.05,0.1,0.15,0.7"]),
    ("model=resnet18 norm_after_relu=True", ["norm_after_relu", "resnet20"]),
    ("superclass.epochs=5", ["superclass", "digits"]),
    ("superclass.epochs=5 superclass.mapping=/no/such.json", ["/no/such.json"]),
]


@pytest.mark.parametrize(("overrides", "words"), CONTRADICTIONS)
def test_fields_that_contradict_each_other_are_refused(overrides, words, tmp_path, refuses):
    overrides = [f"--config.{override}" for override in overrides.split()]
    refuses(DIGITS, f"--workdir={tmp_path}/run", *overrides, words=words)


def test_a_batch_larger_than_the_data_set_is_refused(launcher, tmp_path, refuses):
    assert run_in_process(*launcher.small("--mode=prepare")).status == 0
    command = launcher.small(f"--workdir={tmp_path}/run", "--config.batch_size=1439")
    refuses(*command, words=["batch_size", "1438"])


# What ml_collections alone would misread without a word, or refuses in a way that helps nobody.
MISREADINGS = [
    (["--config.tensorboard", "x"], ["x"]),
    (["--config.tensorboard", "False", "x"], ["x"]),
    (["--config.sac.weights", "0.1", "0.9"], ["0.9", "comma"]),
    (["--config.sac.weights=.1,.9", "--config.sac.weights=.2,.8"], ["sac.weights", "twice"]),
    (["--config.batch_size"], ["batch_size"]),
    (["--config.batch_size", "--mode=train"], ["batch_size"]),
    (["--config.dataset.raw_dir", "--mode=train"], ["raw_dir"]),
    (["--noconfig.tensorboard=True"], ["noconfig.tensorboard"]),
    (["--noconfig.seed"], ["noconfig.seed"]),
    (["--noconfig.sed"], ["seed"]),
    (["--config.sac"], ["sac"]),
    (["--config.sac.weights[0]=1"], ["sac.weights"]),
    (["--config.=1"], ["config."]),
    (["--config..seed=1"], ["seed"]),
]


@pytest.mark.parametrize(("arguments", "words"), MISREADINGS, ids=lambda x: " ".join(x))
def test_what_cannot_be_meant_is_refused(arguments, words, tmp_path, refuses):
    refuses(DIGITS, f"--workdir={tmp_path}/run", *arguments, words=words)


def test_overrides_mean_what_was_written_before_the_config_and_after_it(launcher, tmp_path):
    done = run_in_process(
        "--config.eval_batch_size=1e2",
        "--config.log_every_steps",
        "64.0",
        "--config.sac.weights=0.05,0.1,0.85",
        "--config.tensorboard",
        "no",
        *launcher.small(f"--workdir={tmp_path / 'run'}", variant="flexpool,reg"),
        "--config.augment.scale=(1, 1)",
        "--noconfig.sync_batch_norm",
        "--config.seed=7",
        "--config.seed=0",
        "-config.checkpoint_every_epochs=3",
        "--config.dataset.raw_dir=a=b, c",
    )
    assert done.status == 0, done.output
    config = read_json(tmp_path / "run/config.json")
    assert config["eval_batch_size"] == 100
    assert config["log_every_steps"] == 64
    assert config["sac"]["weights"] == [0.05, 0.1, 0.85]
    assert config["tensorboard"] is False
    assert config["augment"]["scale"] == [1.0, 1.0]
    assert config["sync_batch_norm"] is False
    assert config["seed"] == 0
    assert config["checkpoint_every_epochs"] == 3
    assert config["dataset"]["raw_dir"] == "a=b, c"


WRONG_TYPES = [
    ("seed", "1.0"),
    ("seed", "True"),
    ("model", "20"),
    ("pool", "('avg',)"),
    ("pool_reg", "'0.1'"),
    ("dropout_rate", "False"),
    ("sac.weights", "0.5"),
    ("sac.weights", "('0.1',)"),
    ("dataset.image_size", "32.0"),
    ("dataset.data_dir", "None"),
    ("batch_size", "'64'"),
    ("learning_rate", "'0.1'"),
    ("augment.scale", "0.8"),
    ("augment.flip", "0"),
    ("tensorboard", "'True'"),
]


@pytest.mark.parametrize(("field", "value"), WRONG_TYPES)
def test_a_config_file_with_a_value_of_another_type_is_refused(field, value, tmp_path, refuses):
    (tmp_path / "mine.py").write_text(
        "from ml_collections import ConfigDict\n"
        "from configs import digits\n"
        "def get_config():\n"
        "    values = digits.get_config().to_dict()\n"
        f"    *groups, last = {field!r}.split('.')\n"
        f"    (values[groups[0]] if groups else values)[last] = {value}\n"
        "    return ConfigDict(values)\n"
    )
    refuses(f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/run", words=[f"config.{field}"])


@pytest.mark.parametrize("change", ["del config.schedule", "config.lerning_rate = 0.1"])
def test_a_config_file_with_a_field_too_few_or_too_many_is_refused(change, tmp_path, refuses):
    (tmp_path / "mine.py").write_text(
        "from configs import digits\n"
        "def get_config():\n"
        "    config = digits.get_config()\n"
        "    with config.unlocked():\n"
        f"        {change}\n"
        "    return config\n"
    )
    word = "config.schedule" if "del" in change else "config.learning_rate"
    refuses(f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/run", words=[word])
