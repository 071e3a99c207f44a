"""Training on superclasses first: what is relabelled, what is carried over, what resumes."""

import json
import shutil

import jax
import numpy as np
import pytest

from configs import digits
from flexpool_jax import configuration, create_model, train
from flexpool_jax.data import Dataset, Split, Superclasses
from flexpool_jax.errors import Interrupted, UserError
from flexpool_jax.models.resnet_cifar import ResNetCifar
from flexpool_jax.training import run, superclass
from tests.models.conftest import draw_variables

IMAGES = np.zeros((4, 8, 8, 1), np.uint8)


def dataset(superclasses):
    train = Split(IMAGES, np.array([0, 1, 2, 2], np.int32))
    test = Split(IMAGES[:2], np.array([2, 1], np.int32))
    names, one = ("ant", "bee", "cat"), np.ones(1, np.float32)
    return Dataset("pets", train, test, names, one, one, superclasses)


def test_labels_become_those_of_the_superclasses():
    own = Superclasses(("insect", "mammal"), np.array([0, 0, 1], np.int32))
    coarse = superclass.superclass_dataset(dataset(own))
    assert coarse.class_names == ("insect", "mammal")
    assert coarse.train.labels.tolist() == [0, 0, 1, 1]
    assert coarse.test.labels.tolist() == [1, 0]
    assert coarse.train.images is IMAGES


def test_a_data_set_without_superclasses_wants_a_mapping(tmp_path):
    with pytest.raises(UserError, match=r"pets.*superclass\.mapping"):
        superclass.superclass_dataset(dataset(None))
    mapping = tmp_path / "mapping.json"
    mapping.write_text(json.dumps({"ant": "insect", "bee": "insect", "cat": "mammal"}))
    coarse = superclass.superclass_dataset(dataset(None), str(mapping))
    assert coarse.train.labels.tolist() == [0, 0, 1, 1]


def test_everything_but_the_classifiers_is_carried_over():
    def variables(num_classes):
        model = create_model("resnet20", num_classes=num_classes, sac=True)
        model = model.clone(backbone=ResNetCifar(blocks_per_stage=1))
        return draw_variables(model, np.zeros((1, 8, 8, 1), np.float32))

    fresh = variables(5)
    trained = jax.tree.map(lambda x: x + np.ones((), x.dtype), variables(2))
    result = superclass.with_new_classifiers(fresh, trained)
    assert result.keys() == {"params", "batch_stats"}
    assert jax.tree.map(np.shape, result) == jax.tree.map(np.shape, fresh)
    for path, leaf in jax.tree_util.tree_leaves_with_path(result):
        expected = fresh if any(part.key == "classifier" for part in path) else trained
        for part in path:
            expected = expected[part.key]
        np.testing.assert_array_equal(leaf, expected)


def test_layers_of_a_backbone_are_carried_over_whatever_their_name():
    old, new = np.zeros(2), np.ones(2)
    fresh, trained = (
        {
            "params": {name: {"classifier": {"kernel": value}} for name in ("backbone", "head")},
            "batch_stats": {},
        }
        for value in (new, old)
    )
    params = superclass.with_new_classifiers(fresh, trained)["params"]
    assert params["backbone"]["classifier"]["kernel"] is old
    assert params["head"]["classifier"]["kernel"] is new


@pytest.fixture
def config(tmp_path):
    mapping = tmp_path / "mapping.json"
    mapping.write_text(json.dumps({"insect": ["ant", "bee"], "mammal": ["cat"]}))
    config = digits.get_config("flexpool,model=linear_for_tests,schedule=constant")
    config.batch_size, config.num_epochs, config.superclass.epochs = 2, 1, 1
    config.superclass.mapping = str(mapping)
    return config


def test_a_change_during_the_first_phase_is_kept(tmp_path, config, monkeypatch):
    def stop(*arguments):
        raise Interrupted("stopped")

    workdir = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(run, "_train_phase", stop)
        for config.learning_rate in (0.1, 0.05):
            with pytest.raises(Interrupted):
                train(config, workdir, dataset(None))
            assert configuration.read_config(workdir).learning_rate == config.learning_rate
    train(config, workdir, dataset(None))
    # As if the run were still in its first phase.
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "result.json").unlink()
    config.batch_size = 4
    with pytest.raises(UserError, match="batch_size is 4"):
        train(config, workdir, dataset(None))
    assert configuration.read_config(workdir).batch_size == 2


def test_the_output_says_which_phase_is_trained(tmp_path, config, capfd):
    train(config, tmp_path / "run", dataset(None))
    said = capfd.readouterr().err.splitlines()
    phases = [line for line in said if line.startswith(("phase", "epoch 1/1 | test"))]
    assert [line.partition(" |")[0] for line in phases] == [
        "phase: 2 superclasses",
        "epoch 1/1",
        "phase: 3 classes",
        "epoch 1/1",
    ]
