"""The experiments are what the paper, the release and He et al. say."""

import itertools

import pytest

from configs import default, he_recipe, recipes, release_recipe
from flexpool_jax import pools, register_pool
from flexpool_jax.configuration import load_config, resolve
from flexpool_jax.configuration.fields import get_field
from flexpool_jax.errors import UserError

# The columns of Tables 1 and 2: the variant, and what it makes of pool, pool_reg and dropout_rate.
COLUMNS = {
    "avg": ("avg", 0.0, 0.0),
    "flexpool": ("flexpool", 0.0, 0.0),
    "flexpool,reg": ("flexpool", default.DEFAULT_POOL_REG, 0.0),
    "flexpool,reg,dropout": ("flexpool", default.DEFAULT_POOL_REG, 0.25),
    "": ("flexpool", 0.0, 0.0),
    "softmax": ("flexpool_softmax", 0.0, 0.0),
}


@pytest.mark.parametrize("variant", COLUMNS)
def test_every_column_of_both_tables_is_a_valid_config(variant):
    for sac in (False, True):
        words = [word for word in variant.split(",") if word] + ["sac"] * sac
        config = load_config(f"configs/cifar10.py:{','.join(words)}", "configs")
        resolve(config)
        assert (config.pool, config.pool_reg, config.dropout_rate) == COLUMNS[variant]
        assert config.sac.enabled is sac


@pytest.mark.parametrize("name", recipes.DATASET_CONFIGS)
def test_a_data_sets_config_is_valid_without_a_variant(name):
    config = load_config(f"configs/{name}.py", "configs")
    resolve(config)
    assert config.dataset.name == name


@pytest.mark.parametrize("name", ["default", "he_recipe", "release_recipe", "imagenet"])
def test_experiment_is_valid_without_a_variant(name):
    resolve(load_config(f"configs/{name}.py", "configs"))


def test_words_may_stand_in_any_order():
    words = ["flexpool", "reg", "dropout", "sac"]
    expected = default.get_config(",".join(words)).to_dict()
    for order in itertools.permutations(words):
        assert default.get_config(", ".join(order)).to_dict() == expected


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("flexpol", ["'flexpol'", "'flexpool'"]),
        ("flexpool,regg", ["'regg'", "'reg'"]),
        ("flexpool;reg", ["'flexpool;reg'"]),
        ("flexpool,,reg", ["''", "allowed"]),
        (",", ["''"]),
        ("AVG", ["'AVG'", "'avg'"]),
        ("avg,flexpool", ["sets pool more than once: avg, flexpool"]),
        ("softmax,flexpool", ["sets pool more than once"]),
        ("reg,reg", ["sets pool_reg more than once: reg, reg"]),
        ("flexpool,reg=", ["'reg='", "a number"]),
        ("augment.scale=0.9,1.1", ["'1.1'", "neither + nor comma"]),
        ("num_epochs=1,num_epochs=2", ["sets num_epochs more than once"]),
        ("sac,sac.enabled=no", ["sets sac.enabled more than once"]),
        ("batch_size=big", ["'batch_size=big'", "a whole number"]),
        ("optimizer=sgd", ["'optimizer=sgd'", "group of fields", "config.optimizer.name"]),
        ("=3", ["'=3'"]),
    ],
)
def test_variant_that_cannot_be_meant(variant, words):
    with pytest.raises(UserError) as error:
        default.get_config(variant)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("variant", ["avg,reg", "softmax,reg", "gem,reg=1", "pool=gem,reg"])
def test_reg_is_refused_beside_a_pool_that_eq_2_cannot_constrain(variant):
    with pytest.raises(UserError, match=r"Eq\. 2.*allowed: .*a variant without reg"):
        resolve(default.get_config(variant))


def test_pools_and_fields_may_stand_beside_the_words():
    config = default.get_config("dropout, learning_rate=1e-2, gem, sac, optimizer.name=sgd")
    assert (config.pool, config.dropout_rate, config.sac.enabled) == ("gem", 0.25, True)
    assert (config.learning_rate, config.optimizer.name) == (0.01, "sgd")
    assert default.get_config("reg=0.5").pool_reg == 0.5
    assert he_recipe.get_config("num_epochs=3,cifar100,max").num_epochs == 3


def test_a_registered_pool_is_a_word(monkeypatch):
    monkeypatch.setattr(pools, "POOLS", dict(pools.POOLS))
    register_pool("corner")(lambda x: x[:, 0, 0])
    config = default.get_config("corner,dropout")
    resolve(config)
    assert (config.pool, config.dropout_rate) == ("corner", 0.25)
    with pytest.raises(UserError, match=r"'corner'.*Eq\. 2"):
        resolve(default.get_config("corner,reg"))


def test_defaults_are_the_papers():
    config = default.get_config()
    assert (config.model, config.pool) == ("resnet20", "flexpool")
    assert (config.optimizer.name, config.learning_rate, config.schedule) == (
        *("adam", 0.1, "onecycle"),
    )
    assert (config.num_epochs, config.batch_size) == (100, 1000)
    assert config.sac.weights == (0.1, 0.2, 0.7)


def test_recipes_take_up_any_data_set():
    for dataset in recipes.DATASET_CONFIGS:
        for recipe in (he_recipe, release_recipe):
            config = recipe.get_config(f"flexpool,{dataset},reg,sac")
            resolve(config)
            assert (config.dataset.name, config.pool) == (dataset, "flexpool")
            assert config.optimizer.name == "sgd"
    assert he_recipe.get_config("digits").augment.flip is False


def test_recipes_have_pools_of_their_own():
    assert he_recipe.get_config().pool == "avg"
    assert release_recipe.get_config("cifar100").pool == "flexpool_softmax"
    for recipe in (he_recipe, release_recipe):
        with pytest.raises(UserError, match="a variant without reg"):
            resolve(recipe.get_config("reg"))


def test_release_recipe_is_that_of_its_multi_scale_script():
    config = release_recipe.get_config("cifar10,sac")
    assert (config.learning_rate, config.schedule) == (0.05, "onecycle")
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 1e-4)
    assert config.sac.weights == (0.01, 0.11, 0.88)


HE_ET_AL = {
    **{"model": "resnet20", "pool": "avg", "dropout_rate": 0.0, "dtype": "float32"},
    **{"optimizer.name": "sgd", "optimizer.momentum": 0.9},
    **{"optimizer.weight_decay": 1e-4, "optimizer.weight_decay_kind": "l2"},
    **{"optimizer.clip_norm": 0.0, "label_smoothing": 0.0, "ema_decay": 0.0},
    **{"batch_size": 128, "num_epochs": 164, "learning_rate": 0.1, "schedule": "step"},
    **{"augment.flip": True, "augment.crop": 4, "augment.scale": (1.0, 1.0)},
    "augment.random_resized_crop": (),
}
GOYAL_ET_AL = {
    **{"model": "resnet50", "dropout_rate": 0.0, "dtype": "bfloat16"},
    **{"optimizer.name": "sgd", "optimizer.momentum": 0.9},
    **{"optimizer.weight_decay": 1e-4, "optimizer.weight_decay_kind": "l2"},
    **{"optimizer.clip_norm": 0.0, "label_smoothing": 0.0, "ema_decay": 0.0},
    **{"batch_size": 256, "num_epochs": 90, "learning_rate": 0.1},
    **{"schedule": "warmup_cosine", "warmup_epochs": 5},
    **{"augment.flip": True, "augment.crop": 0, "augment.scale": (1.0, 1.0)},
    "augment.random_resized_crop": (0.08, 1.0),
    **{"dataset.image_size": 256, "dataset.resize": "crop", "dataset.center_crop": 224},
    **{"dataset.mean": (0.485, 0.456, 0.406), "dataset.std": (0.229, 0.224, 0.225)},
}


@pytest.mark.parametrize(
    ("name", "fields"), [("he_recipe.py:cifar10", HE_ET_AL), ("imagenet.py", GOYAL_ET_AL)]
)
def test_recipe_is_that_of_its_paper(name, fields):
    config = load_config(f"configs/{name}", "configs")
    assert {field: get_field(config, field) for field in fields} == fields


def test_he_recipe_trains_for_64k_iterations():
    config = he_recipe.get_config("cifar10")
    iterations = config.num_epochs * 50_000 / config.batch_size
    assert iterations == pytest.approx(64_000, rel=0.005)


def test_recipe_names_unknown_words_and_two_data_sets():
    with pytest.raises(UserError, match="'cifar11'; did you mean 'cifar10'"):
        he_recipe.get_config("cifar11")
    with pytest.raises(UserError, match="2 data sets"):
        he_recipe.get_config("cifar10,digits")
