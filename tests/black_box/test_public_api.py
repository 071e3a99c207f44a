"""The documented functions, as a notebook calls them."""

import numpy as np
import pytest

from configs import digits
from tests.black_box.conftest import metrics, outcome, read_json


@pytest.fixture
def config(launcher, resnet_run):
    """The config of the trained ResNet20, built in Python."""
    config = digits.get_config("flexpool,reg")
    config.dataset.image_size, config.dataset.data_dir = 8, str(launcher.data_dir)
    config.num_epochs, config.learning_rate, config.tensorboard = 2, 1e-3, False
    return config


def test_train_gives_the_result_of_the_command(config, resnet_run, tmp_path):
    from flexpool_jax import train

    train(config, tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(resnet_run)
    assert outcome(tmp_path / "run") == outcome(resnet_run)


def test_evaluate_gives_the_accuracy_of_a_workdir(resnet_copy):
    from flexpool_jax import evaluate

    evaluate(resnet_copy)
    found = read_json(resnet_copy / "evaluation.json")
    assert found["accuracy"] == outcome(resnet_copy)[0]


def test_a_wrong_config_is_a_value_error_that_names_the_field(config, tmp_path):
    from flexpool_jax import train

    config.batch_size = 0
    with pytest.raises(ValueError, match=r"config\.batch_size"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_layer_starts_as_the_average(tmp_path):
    import jax

    from flexpool_jax import FlexPool

    maps = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    pooled, variables = FlexPool().init_with_output(jax.random.key(1), maps)
    assert variables["params"]["w_fp"].shape == (4, 4, 3)
    np.testing.assert_allclose(pooled, maps.mean((1, 2)), rtol=1e-5)
