"""Every mistake in a config costs one line that names the field and what is allowed."""

import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from configs import default, release_recipe
from flexpool_jax import FlexPool, pools, register_pool
from flexpool_jax.configuration import (
    FIELDS,
    apply_overrides,
    check_batch_size,
    check_pool_reg_stability,
    resolve,
    resolve_training_files,
    write_config,
)
from flexpool_jax.configuration.fields import field_names
from flexpool_jax.errors import UserError
from flexpool_jax.models import registry

NAN, INF = float("nan"), float("inf")


def config_with(values, variant=""):
    # As a config file written without configs/default.py may be: no type is checked on the way in.
    plain = default.get_config(variant).to_dict()
    for name, value in values.items():
        group, _, last = name.rpartition(".")
        (plain[group] if group else plain)[last] = value
    return ConfigDict(plain)


# Fields and values that tests/black_box/test_fields.py lacks.
OUT_OF_RANGE = {
    "seed": [None, [{"a": 1}]],
    "projection_shortcuts": [1],
    "init_from": ["a\0b", None],
    "freeze": ["head", None],
    "pool_learning_rate_scale": [0, INF, "1"],
    "sac.weights": [(), (True, False)],
    "dataset.name": ["digits\n", None],
    "dataset.data_dir": ["a\nb"],
    "dataset.raw_dir": ["a\0b", 1],
    "dataset.resize": ["squash", None],
    "dataset.center_crop": [2000, 0.875],
    "dataset.placement": ["host", True],
    "dataset.mean": [(125.3, 123.0, 113.9), (NAN,), 0.5],
    "dataset.std": [(0.0,), (63.0, 62.1, 66.7), 0.5],
    "optimizer.name": ["scale_by_adam", "schedule_free_sgd"],
    "optimizer.decay_pool": ["yes"],
    "optimizer.clip_norm": [-1, INF],
    "warmup_epochs": [-1, 0.5],
    "ema_decay": [1.0, NAN],
    "label_smoothing": [1.0, "0.1"],
    "deterministic": ["no"],
    "grad_accum_steps": [0, 1.5, True],
    "augment.random_resized_crop": [(0.0, 1.0), (0.5, 0.1), (0.1,), 0.08],
    "superclass.mapping": ["a\nb"],
    "steps_per_dispatch": [-1, 2.5],
    "compilation_cache": ["a\0b"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OUT_OF_RANGE.items() for value in values]
)
def test_field_of_wrong_type_or_out_of_range(name, value):
    with pytest.raises(UserError) as error:
        resolve(config_with({name: value}))
    message = str(error.value)
    assert f"config.{name}" in message
    assert "allowed" in message
    assert "\n" not in message


# More of them stand in tests/black_box/test_fields.py.
CONTRADICTIONS = [
    ({"dataset.center_crop": 224}, ["config.dataset.center_crop is 224", "image_size 0"]),
    ({"dataset.resize": "crop"}, ["config.dataset.resize", "image_size"]),
    ({"augment.random_resized_crop": (0.08, 1)}, ["random_resized_crop", "scale (0.8, 1.2)"]),
    ({"pool": "max", "pool_reg": 1e-3}, ["config.pool_reg", "'max'"]),
    ({"pool": "flexpool_softmax", "pool_reg": 0.1}, ["config.pool_reg", "softmax", "Eq. 2"]),
    ({"pool": "flatten", "pool_reg": 0.1}, ["config.pool_reg", "'flatten'", "no weights"]),
    (
        {"pool": "gem", "pool_learning_rate_scale": 0.1},
        ["config.pool_learning_rate_scale is 0.1", "'gem'", "no weights"],
    ),
    ({"sac.enabled": True, "sac.weights": (-0.1, 0.3, 0.8)}, ["sac.weights", "positive"]),
    ({"sac.enabled": True, "sac.weights": (0.1, 0.2, 0.8)}, ["sac.weights", "sum to 1.1"]),
    ({"sac.enabled": True, "sac.weights": (1.0,)}, ["sac.weights", "3 stages"]),
    ({"sac.enabled": True, "sac.weights": (0.1, 0.2, 0.3, 0.4)}, ["sac.weights", "3 stages"]),
    (
        {"model": "vgg11", "projection_shortcuts": True},
        ["projection_shortcuts", "'vgg11'", "resnet20"],
    ),
    ({"freeze": "backbone"}, ["config.freeze is 'backbone'", "config.init_from"]),
    ({"dataset.mean": (0.5,)}, ["dataset.mean is (0.5,)", "dataset.std is ()"]),
    ({"superclass.epochs": 10}, ["superclass.epochs", "cifar10", "superclass.mapping"]),
    ({"superclass.mapping": "animals.json"}, ["superclass.mapping", "superclass.epochs"]),
]


@pytest.mark.parametrize(("values", "words"), CONTRADICTIONS)
def test_fields_that_contradict_each_other(values, words):
    with pytest.raises(UserError) as error:
        resolve(config_with(values))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("pool", ["flexpool", "flexpool_shared", "gdconv", "channel_scale", "mine"])
def test_eq_2_goes_with_every_pool_that_uses_its_weights_as_they_are(pool, monkeypatch):
    class Mine(nn.Module):
        @nn.compact
        def __call__(self, x):
            return 2 * FlexPool(name="inner")(x)

    monkeypatch.setattr(pools, "POOLS", dict(pools.POOLS))
    register_pool("mine")(Mine)
    resolve(config_with({"pool": pool, "pool_reg": 0.1, "pool_learning_rate_scale": 0.02}))


def test_the_softmaxs_weights_learn_at_a_rate_of_their_own_too():
    resolve(config_with({"pool": "flexpool_softmax", "pool_learning_rate_scale": 0.02}))


@pytest.fixture
def backbones():
    """Backbones of a user's own, with one and with five stages."""
    names = {"one_stage": 1, "five_stages": 5}
    for name, num_stages in names.items():
        registry.register_model(name, num_stages=num_stages)(lambda **options: None)
    yield
    for name in names:
        del registry.MODELS[name]


def test_sac_needs_a_stage_for_every_weight(backbones):
    with pytest.raises(UserError, match="one_stage has one stage"):
        resolve(config_with({"model": "one_stage", "sac.enabled": True, "sac.weights": (1.0,)}))
    config = config_with({"model": "five_stages", "sac.weights": (0.05, 0.1, 0.85)}, "sac")
    with pytest.raises(UserError, match="five_stages has 5 stages") as error:
        resolve(config)
    suggestion = str(error.value).rpartition("=")[2]
    apply_overrides(config, [f"--config.sac.weights={suggestion}"])
    assert len(config.sac.weights) == 5
    resolve(config)


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        ("resnet20", (0.1, 0.2, 0.7)),
        ("inception", (0.1, 0.2, 0.7)),
        ("resnet18", (0.05, 0.1, 0.15, 0.7)),
        ("vgg16", (0.03, 0.06, 0.09, 0.12, 0.7)),
    ],
)
def test_default_sac_weights_are_those_of_the_models_stages(model, weights):
    config = default.get_config("flexpool,sac")
    apply_overrides(config, [f"--config.model={model}"])
    resolved = resolve(config)
    assert resolved.sac.weights == weights
    assert config.sac.weights == (0.1, 0.2, 0.7)
    # What config.json will hold is valid again when the run continues.
    assert resolve(resolved).to_dict() == resolved.to_dict()


def test_sac_weights_that_were_given_are_kept():
    config = config_with({"model": "resnet18", "sac.weights": (0.1, 0.2, 0.3, 0.4)}, "sac")
    assert resolve(config).sac.weights == (0.1, 0.2, 0.3, 0.4)


def test_norm_after_relu_is_the_cifar_resnets_own(backbones):
    with pytest.raises(UserError, match=r"config\.norm_after_relu .*resnet20"):
        resolve(config_with({"model": "one_stage", "norm_after_relu": True}))


@pytest.mark.parametrize(
    ("values", "variant"),
    [
        ({}, "flexpool,reg,dropout,sac"),
        ({}, "avg,dropout,sac"),
        ({"sac.weights": (0.5, 0.1)}, ""),
        ({"sac.weights": (0.05, 0.1, 0.85)}, "sac"),
        ({"sac.weights": (0.01, 0.11, 0.88)}, "sac"),
        ({"learning_rate": 1, "pool_reg": 0}, ""),
        ({"augment.scale": (1, 1), "seed": 2**32 - 1}, ""),
        ({"dataset.name": "cifar100", "superclass.epochs": 10}, ""),
    ],
)
def test_sound_configs_pass(values, variant):
    resolve(config_with(values, variant))


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(
        UserError, match=r"config\.lerning_rate; did you mean config\.learning_rate"
    ):
        resolve(config_with({"lerning_rate": 0.1}))
    config = config_with({})
    del config["schedule"]
    with pytest.raises(UserError, match=r"no config\.schedule"):
        resolve(config)


def test_a_tfds_set_prepared_under_data_dir_is_a_data_set(tmp_path):
    values = {"dataset.name": "svhn_cropped", "dataset.data_dir": str(tmp_path)}
    with pytest.raises(UserError, match="svhn_cropped"):
        resolve(config_with(values))
    (tmp_path / "svhn_cropped").mkdir()
    resolve(config_with(values))


def test_missing_mapping_to_superclasses(tmp_path):
    mapping = tmp_path / "animals.json"
    config = config_with({"superclass.epochs": 1, "superclass.mapping": str(mapping)})
    resolve(config)
    with pytest.raises(UserError, match=r"superclass\.mapping"):
        resolve_training_files(config)
    mapping.write_text("{}")
    resolve_training_files(config)


def test_a_run_that_continues_knows_its_normalisation_without_the_initial_weights(tmp_path):
    config = resolve(config_with({"init_from": "nowhere.safetensors"}))
    with pytest.raises(UserError, match=r"config.init_from: nowhere.safetensors: there is no such"):
        resolve_training_files(config, tmp_path)
    saved = config_with({"dataset.mean": (0.5,), "dataset.std": (0.25,)})
    write_config(saved, tmp_path)
    (tmp_path / "checkpoints" / "21").mkdir(parents=True)
    resolve_training_files(config, tmp_path)
    assert (config.dataset.mean, config.dataset.std) == ((0.5,), (0.25,))


def test_a_run_in_its_phase_on_superclasses_continues_without_the_initial_weights(tmp_path):
    fields = {
        "init_from": "nowhere.safetensors",
        "superclass.epochs": 1,
        "dataset.name": "cifar100",
    }
    config = config_with(fields)
    write_config(config_with({"dataset.mean": (0.5,), "dataset.std": (0.25,)}), tmp_path)
    (tmp_path / "superclass/checkpoints/7").mkdir(parents=True)
    resolve_training_files(config, tmp_path)
    assert (config.dataset.mean, config.dataset.std) == ((0.5,), (0.25,))
    config.superclass.epochs = 0  # The folder is then another run's.
    with pytest.raises(UserError, match=r"config.init_from"):
        resolve_training_files(config, tmp_path)


@pytest.mark.parametrize("begun", ["checkpoints/21", "checkpoints_superseded/21", "result.json"])
def test_a_run_past_its_superclasses_needs_no_mapping_to_them(begun, tmp_path):
    config = config_with({"superclass.epochs": 1, "superclass.mapping": "nowhere.json"})
    write_config(config, tmp_path)
    (tmp_path / "superclass/checkpoints/7").mkdir(parents=True)
    with pytest.raises(UserError, match=r"superclass\.mapping"):
        resolve_training_files(config, tmp_path)
    (tmp_path / begun).mkdir(parents=True)
    resolve_training_files(config, tmp_path)


def sum_after_descent(pool_reg, *, rate, momentum, positions, steps=300):
    """Runs SGD with momentum on Eq. 2 for one channel; returns how far its sum is from 1."""
    weights = [1.01 / positions] * positions
    velocity = [0.0] * positions
    for _ in range(steps):
        gradient = 2 * pool_reg * (sum(weights) - 1)
        velocity = [momentum * v + gradient for v in velocity]
        weights = [w - rate * v for w, v in zip(weights, velocity, strict=True)]
    return abs(sum(weights) - 1)


def sgd_config(pool_reg, rate, momentum, sac=False):
    config = release_recipe.get_config("flexpool,reg" + (",sac" if sac else ""))
    config.update({"pool_reg": pool_reg, "learning_rate": rate})
    config.optimizer.momentum = momentum
    return config


@pytest.mark.parametrize(("rate", "momentum"), [(0.05, 0.9), (0.1, 0.0), (0.3, 0.5)])
def test_largest_stable_pool_reg_is_where_descent_stops_converging(rate, momentum):
    bound = (1 + momentum) / (rate * 16)
    check_pool_reg_stability(sgd_config(0.97 * bound, rate, momentum), [(4, 4, 8)])
    with pytest.raises(UserError, match="largest stable"):
        check_pool_reg_stability(sgd_config(1.03 * bound, rate, momentum), [(4, 4, 8)])
    same = {"rate": rate, "momentum": momentum, "positions": 16}
    assert sum_after_descent(0.97 * bound, **same) < 0.01
    assert sum_after_descent(1.03 * bound, **same) > 1


def test_stability_counts_the_rate_of_the_pools_own_weights():
    bound = 1.9 / (0.05 * 0.02 * 16)
    config = sgd_config(0.97 * bound, 0.05, 0.9)
    with pytest.raises(UserError, match="largest stable"):
        check_pool_reg_stability(config, [(4, 4, 8)])
    config.pool_learning_rate_scale = 0.02
    check_pool_reg_stability(config, [(4, 4, 8)])
    config.pool_reg = 1.03 * bound
    with pytest.raises(UserError, match=r"learning_rate 0\.05, pool_learning_rate_scale 0\.02"):
        check_pool_reg_stability(config, [(4, 4, 8)])


def test_the_largest_pooled_map_decides_and_the_value_named_is_stable():
    stages = [(32, 32, 16), (16, 16, 32), (8, 8, 64)]
    check_pool_reg_stability(sgd_config(0.1, 0.05, 0.9), stages[-1:])
    with pytest.raises(UserError, match="32x32") as error:
        check_pool_reg_stability(sgd_config(0.1, 0.05, 0.9, sac=True), stages)
    named = float(str(error.value).rpartition(" ")[2])
    check_pool_reg_stability(sgd_config(named, 0.05, 0.9, sac=True), stages)


def test_adam_holds_any_pool_reg(capsys):
    config = sgd_config(1000.0, 0.1, 0.9)
    config.optimizer.name = "adam"
    check_pool_reg_stability(config, [(32, 32, 16)])
    assert capsys.readouterr().err == ""


def test_of_other_optimizers_it_says_that_nothing_is_checked(capsys):
    config = sgd_config(1000.0, 0.1, 0.9)
    config.optimizer.name = "rmsprop"
    check_pool_reg_stability(config, [(32, 32, 16)])
    assert "'rmsprop'" in capsys.readouterr().err


def test_nesterovs_momentum_holds_less():
    bound = 1.9 / 2.8 / (0.05 * 16)
    config = sgd_config(1.03 * bound, 0.05, 0.9)
    check_pool_reg_stability(config, [(4, 4, 8)])
    with config.unlocked():
        config.optimizer.kwargs = {"nesterov": True}
    with pytest.raises(UserError, match="largest stable"):
        check_pool_reg_stability(config, [(4, 4, 8)])
    config.pool_reg = 0.97 * bound
    check_pool_reg_stability(config, [(4, 4, 8)])
    for factor, converges in ((0.97, True), (1.03, False)):
        weights, velocity, reg = 1.01, 0.0, factor * bound
        for _ in range(300):
            # All 16 positions move alike, so that their sum moves 16 times as far.
            gradient = 2 * reg * (weights - 1)
            velocity = 0.9 * velocity + gradient
            weights -= 0.05 * 16 * (gradient + 0.9 * velocity)
        assert (abs(weights - 1) < 0.01) is converges


@pytest.mark.parametrize(
    ("size", "devices", "words"),
    [
        (100, 8, ["100", "8 devices", "96 or 104"]),
        (3, 8, ["multiples of 8", "e.g. 8"]),
        (1001, 2, ["1000 or 1002"]),
    ],
)
def test_batch_that_devices_cannot_share(size, devices, words):
    with pytest.raises(UserError) as error:
        check_batch_size(config_with({"batch_size": size}), devices)
    for word in words:
        assert word in str(error.value)


def test_batch_that_cannot_be_divided_into_parts():
    check_batch_size(config_with({"batch_size": 120, "grad_accum_steps": 3}), 8)
    words = "8 devices cannot share evenly in 3 parts each .*multiples of 24, e.g. 96 or 120"
    with pytest.raises(UserError, match=words):
        check_batch_size(config_with({"batch_size": 104, "grad_accum_steps": 3}), 8)


def test_one_device_is_not_several():
    with pytest.raises(UserError, match=r"which cannot be divided evenly into 3 parts \("):
        check_batch_size(config_with({"batch_size": 64, "grad_accum_steps": 3}), 1)


def test_batch_larger_than_the_data_set():
    check_batch_size(config_with({"batch_size": 1347}), 1, 1347)
    with pytest.raises(UserError, match="1347"):
        check_batch_size(config_with({"batch_size": 1348}), 1, 1347)


def test_fields_are_those_of_the_default_config():
    assert set(FIELDS) == set(field_names(default.get_config()))


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("lbfgs", {}, ["config.optimizer.name", "'lbfgs'", "value"]),
        ("noisy_sgd", {}, ["config.optimizer.name", "random key"]),
        ("lion", {"b3": 0.9}, ["config.optimizer.kwargs", "'b3'"]),
        ("sgd", {"nesterov": "flase"}, ["nesterov is 'flase'; allowed: True, False"]),
        ("rmsprop", {"centered": 2}, ["centered is 2; allowed: True, False"]),
        ("adam", {"b1": "high"}, ["config.optimizer.kwargs", "high"]),
        ("adamw", {"weight_decay": 0.1}, ["by optimizer.weight_decay"]),
        ("sgd", {"decay": 0.5}, ["config.optimizer.momentum"]),
        ("lion", {"b1": (0.9,)}, ["config.optimizer.kwargs.b1", "allowed"]),
        ("lion", {"b1": NAN}, ["config.optimizer.kwargs.b1", "allowed"]),
        ("lion", {"b1": None}, ["config.optimizer.kwargs.b1", "allowed"]),
        ("lion", {"group": {"b1": 0.9}}, ["config.optimizer.kwargs.group.b1"]),
    ],
)
def test_an_optimizer_that_cannot_be_built_is_refused(name, kwargs, words):
    with pytest.raises(UserError) as error:
        resolve(config_with({"optimizer.name": name, "optimizer.kwargs": kwargs}))
    for word in words:
        assert word in str(error.value)


def test_keywords_of_the_optimizer_are_checked_and_kept():
    config = config_with({"optimizer.name": "lion", "optimizer.kwargs": {"b1": 0.95}})
    assert resolve(config).optimizer.kwargs.b1 == 0.95


@pytest.mark.parametrize(
    "values",
    [
        {"warmup_epochs": 1},
        {"warmup_epochs": 100, "schedule": "warmup_cosine"},
        {
            "warmup_epochs": 2,
            "schedule": "warmup_cosine",
            "superclass.epochs": 2,
            "dataset.name": "cifar100",
        },
    ],
)
def test_a_warmup_that_cannot_take_place_is_refused(values):
    with pytest.raises(UserError, match=r"config\.warmup_epochs"):
        resolve(config_with(values))
    resolve(config_with({"warmup_epochs": 5, "schedule": "warmup_cosine"}))
