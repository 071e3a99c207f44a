"""Training on superclasses first: what is relabelled, what is carried over, what resumes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flexpool_jax import create_model
from flexpool_jax.data import Dataset, Split, Superclasses
from flexpool_jax.errors import UserError
from flexpool_jax.models.resnet_cifar import ResNetCifar
from flexpool_jax.training import superclass
from flexpool_jax.training.steps import create_train_state

IMAGES = np.zeros((4, 8, 8, 1), np.uint8)


def dataset(superclasses):
    train, test = (Split(IMAGES, np.array(labels, np.int32)) for labels in ([0, 1, 2, 2], [2, 1]))
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
    def state(num_classes, key):
        model = create_model("resnet20", num_classes=num_classes, sac=True)
        model = model.clone(backbone=ResNetCifar(blocks_per_stage=1))
        return create_train_state(model, optax.adam(0.1), jax.random.key(key), (8, 8, 1))

    fresh, trained = state(5, key=0), state(2, key=1)
    trained = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), trained)
    result = superclass.with_new_classifiers(fresh.variables, trained.variables)
    for path, leaf in jax.tree_util.tree_leaves_with_path(result["params"]):
        source = fresh if any(part.key == "classifier" for part in path) else trained
        expected = source.params
        for part in path:
            expected = expected[part.key]
        np.testing.assert_array_equal(leaf, expected)
    jax.tree.map(np.testing.assert_array_equal, result["batch_stats"], trained.batch_stats)
