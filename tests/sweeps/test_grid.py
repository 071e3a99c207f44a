"""A sweep stands for the runs that a user would start by hand, and mistakes in it cost one line."""

import re
from collections import Counter

import pytest

from configs import digits, lambda_ablation, paper_tables, pool_reg, pools
from flexpool_jax import configuration
from flexpool_jax.configuration import apply_overrides, load_config
from flexpool_jax.configuration.fields import get_field
from flexpool_jax.errors import UserError
from flexpool_jax.pools import POOLS
from flexpool_jax.report import paper
from flexpool_jax.report.results import Arm
from flexpool_jax.sweeps import grid
from tests.sweeps.conftest import CONFIGS_DIR, small_sweep

# Read before any test runs, since tests register pools of their own.
POOL_NAMES = tuple(POOLS)


def test_paper_tables_are_every_cell_of_both_tables_over_five_seeds():
    cells = grid.expand(paper_tables.get_config(), CONFIGS_DIR)
    assert len({cell.name for cell in cells}) == len(cells) == 4 * 2 * 4 * 5
    assert len({cell.digest for cell in cells}) == len(cells)
    found = {
        (cell.config.dataset.name, bool(arm.sac), arm.column, cell.config.seed)
        for cell in cells
        for arm in [Arm.of(cell.config)]
    }
    assert found == {
        (dataset, sac, column, seed)
        for dataset in paper.TABLE_1
        for sac in (False, True)
        for column in paper.COLUMNS
        for seed in range(5)
    }


def test_cell_is_the_run_that_a_user_would_start_by_hand():
    (cell,) = grid.expand(
        small_sweep(
            columns=("flexpool+reg+dropout",),
            sac=("on",),
            seeds=(3,),
            num_epochs=7,
            overrides="batch_size=32 dataset.image_size=16",
        ),
        CONFIGS_DIR,
    )
    by_hand = load_config("configs/digits.py:flexpool,reg,dropout,sac", CONFIGS_DIR)
    apply_overrides(
        by_hand,
        [
            "--config.seed=3",
            "--config.num_epochs=7",
            "--config.batch_size=32",
            "--config.dataset.image_size=16",
        ],
    )
    assert cell.name == "digits/flexpool+reg+dropout+sac/seed-3"
    assert cell.config.to_dict() == by_hand.to_dict()
    assert cell.digest == configuration.digest(by_hand)


def test_without_a_number_of_epochs_each_data_set_has_its_own():
    cells = grid.expand(small_sweep(datasets=("digits", "cifar10")), CONFIGS_DIR)
    epochs = {cell.dataset: cell.config.num_epochs for cell in cells}
    assert epochs == {"digits": digits.get_config().num_epochs, "cifar10": 100}


def test_fields_are_narrowed_on_the_command_line():
    config = paper_tables.get_config()
    apply_overrides(
        config,
        [
            "--config.seeds=0,1",
            "--config.datasets=digits",
            "--config.sac=off",
            "--config.columns=avg,flexpool+reg",
            "--config.overrides=model=resnet32 batch_size=1e2",
        ],
    )
    cells = grid.expand(config, CONFIGS_DIR)
    assert [cell.name for cell in cells] == [
        "digits/avg/seed-0",
        "digits/flexpool+reg/seed-0",
        "digits/avg/seed-1",
        "digits/flexpool+reg/seed-1",
    ]
    assert {(cell.config.model, cell.config.batch_size) for cell in cells} == {("resnet32", 100)}


def test_lambda_ablation_has_the_papers_and_the_releases_weights():
    cells = grid.expand(lambda_ablation.get_config(), CONFIGS_DIR)
    weights = {Arm.of(cell.config).sac for cell in cells}
    assert {(), (0.1, 0.2, 0.7), (0.01, 0.11, 0.88), (0.05, 0.1, 0.85)} < weights
    assert "cifar10/flexpool+reg+sac-0.01-0.11-0.88/seed-0" in {cell.name for cell in cells}


def test_a_column_may_say_how_strong_the_regulariser_is():
    cells = grid.expand(pool_reg.get_config(), CONFIGS_DIR)
    strengths = {cell.name.split("/")[1]: cell.config.pool_reg for cell in cells}
    assert strengths["flexpool"] == 0
    assert strengths["flexpool+reg=0.001"] == 0.001
    assert strengths["flexpool+reg=10"] == 10
    assert all(cell.config.dataset.holdout == 0.25 for cell in cells)


def test_overrides_may_change_the_weights_that_on_stands_for():
    sweep = small_sweep(columns=("avg",), sac=("on",), overrides="sac.weights=0.2,0.3,0.5")
    (cell,) = grid.expand(sweep, CONFIGS_DIR)
    assert cell.config.sac.weights == (0.2, 0.3, 0.5)


def test_pools_are_all_there_are():
    cells = grid.expand(pools.get_config(), CONFIGS_DIR)
    assert {cell.config.pool for cell in cells} == set(POOL_NAMES)
    assert all(cell.config.pool_reg == 0 or cell.config.pool == "flexpool" for cell in cells)


@pytest.mark.parametrize(
    ("column", "fields"),
    [
        ("avg+dropout", {"pool": "avg", "dropout_rate": 0.25}),
        ("flexpool+pool_learning_rate_scale=0.02", {"pool_learning_rate_scale": 0.02}),
        ("flexpool+reg=0.01", {"pool_reg": 0.01}),
        ("reg+gdconv+dropout", {"pool": "gdconv", "pool_reg": 0.1, "dropout_rate": 0.25}),
        ("flexpool_shared+reg=1e-3", {"pool": "flexpool_shared", "pool_reg": 0.001}),
        ("learning_rate=0.02+softmax", {"pool": "flexpool_softmax", "learning_rate": 0.02}),
        ("gem+augment.flip=true", {"pool": "gem", "augment.flip": True}),
        ("max+sac", {"pool": "max", "sac.enabled": True}),
    ],
)
def test_a_columns_words_mean_what_they_mean_after_a_configs_colon(column, fields):
    (cell,) = grid.expand(small_sweep(columns=(column,)), CONFIGS_DIR)
    by_hand = load_config(f"configs/digits.py:{column.replace('+', ',')}", CONFIGS_DIR)
    configuration.resolve(by_hand)
    assert cell.config.to_dict() == by_hand.to_dict()
    assert cell.name == f"digits/{column}/seed-0"
    assert {name: get_field(cell.config, name) for name in fields} == fields


def test_a_column_may_name_a_pool_that_the_config_file_registers(tmp_path, monkeypatch):
    monkeypatch.setattr("flexpool_jax.pools.POOLS", dict(POOLS))
    (tmp_path / "mine.py").write_text(
        "from configs import digits\n"
        "from flexpool_jax import register_pool\n"
        "@register_pool('first')\n"
        "def first(x):\n"
        "    return x[:, 0, 0]\n"
        "def get_config(variant):\n"
        "    return digits.get_config(variant)\n"
    )
    (cell,) = grid.expand(small_sweep(datasets=("mine",), columns=("first+dropout",)), tmp_path)
    assert (cell.name, cell.config.pool) == ("mine/first+dropout/seed-0", "first")
    # The cell's process runs the file, too.
    assert cell.arguments[0] == f"--config={tmp_path}/mine.py:first,dropout"


MISTAKES = [
    ({"columns": ("flexpool+lerning_rate=1",)}, ["'lerning_rate=1'", "--config.learning_rate"]),
    ({"columns": ("flexpool+learning_rate=x",)}, ["'learning_rate=x'", "a number"]),
    ({"columns": ("flexpool+learning_rate=-1",)}, ["learning_rate is -1"]),
    ({"columns": ("flexpool+pool=gem",)}, ["sets pool more than once", "flexpool, pool=gem"]),
    ({"columns": ("flexpool+reg+pool_reg=1",)}, ["pool_reg more than once", "reg, pool_reg=1"]),
    ({"columns": ("avg+model=a/b",)}, ["'avg+model=a/b'", "without /"]),
    ({"columns": ("avg,dropout",)}, ["'avg,dropout'", "comma"]),
    ({"columns": ("",)}, ["a column is empty"]),
    ({"columns": ("avg+",)}, ["unknown variant ''"]),
    ({"columns": ("avg+seed=3",)}, ["sets seed", "config.seeds"]),
    ({"columns": ("avg+dataset.name=npz",)}, ["sets dataset.name", "config.datasets"]),
    ({"columns": ("avg+num_epochs=3",), "num_epochs": 2}, ["sets num_epochs", "config.num_epochs"]),
    (
        {"columns": ("avg+batch_size=8",), "overrides": "batch_size=9"},
        ["sets batch_size", "config.overrides"],
    ),
    ({"columns": ("gem",), "overrides": "pool=max"}, ["sets pool", "config.overrides"]),
    ({"columns": ("avg+sac",), "sac": ("on",)}, ["sets sac.enabled", "config.sac"]),
    ({"columns": ("gdconv+softmax",)}, ["column 'gdconv+softmax' sets pool more than once"]),
    ({"columns": ("flatten+reg",)}, ["flatten+reg/", "Eq. 2"]),
    ({"columns": ("avg+pool_reg=1",)}, ["pool_reg is 1", "no weights"]),
    ({"columns": ("avg+pool_learning_rate_scale=0.1",)}, ["scale is 0.1", "no weights"]),
    ({"columns": ("flexpool+reg=strong",)}, ["'reg=strong'", "a number"]),
    ({"columns": ("flexpool+reg=-1",)}, ["pool_reg is -1"]),
    ({"columns": ("flexpool+reg=nan",)}, ["pool_reg is nan"]),
    ({"columns": ("flexpool+reg+reg=1",)}, ["sets pool_reg more than once: reg, reg=1"]),
    ({"columns": ("flexpool+reg=1", "flexpool+reg=1.0")}, ["reg=1/", "reg=1.0/", "same run"]),
    ({"sac": ("on", "0.1/0.2/0.7")}, ["avg+sac/", "avg+sac-0.1-0.2-0.7/", "same run"]),
    ({"columns": ("avg+reg=1",)}, ["pool_reg", "'avg'"]),
    ({"datasets": ("digit",)}, ["'digit'", "'digits'"]),
    ({"datasets": ("pools",)}, ["pools", "argument after the colon"]),
    ({"datasets": ()}, ["config.datasets is ()"]),
    ({"columns": ("flexpol",)}, ["'flexpol'", "'flexpool'"]),
    ({"columns": ("avg+reg",)}, ["digits/avg+reg/seed-0", "Eq. 2"]),
    ({"columns": ("gem+reg",)}, ["gem+reg/", "Eq. 2"]),
    ({"columns": ("gem+max",)}, ["'gem+max'"]),
    ({"columns": ("avg", "avg")}, ["config.columns", "twice"]),
    ({"sac": ("yes",)}, ["'yes'", "off, on"]),
    ({"sac": ("0.5/0.3/0.2",)}, ["digits/avg+sac-0.5-0.3-0.2/seed-0", "Eq. 3"]),
    ({"seeds": (1, 1)}, ["config.seeds", "twice"]),
    ({"seeds": (-1,)}, ["config.seeds is (-1,)"]),
    ({"num_epochs": -1}, ["config.num_epochs is -1"]),
    ({"overrides": "lerning_rate=1"}, ["digits/avg/seed-0", "learning_rate"]),
    ({"overrides": "learning_rate=-1"}, ["digits/avg/seed-0", "learning_rate is -1"]),
    ({"overrides": "learning_rate"}, ["'learning_rate'", "FIELD=VALUE"]),
    ({"overrides": "model='x"}, ["config.overrides"]),
    ({"overrides": "seed=4"}, ["sets seed", "config.seeds"]),
    ({"overrides": "dataset.name=cifar10"}, ["sets dataset.name", "config.datasets"]),
    ({"overrides": "sac.enabled=True"}, ["sets sac.enabled", "config.sac"]),
    (
        {"sac": ("0.1/0.2/0.7",), "overrides": "sac.weights=0.2,0.3,0.5"},
        ["config.overrides sets sac.weights", "leave that to config.sac"],
    ),
    (
        {"num_epochs": 30, "overrides": "num_epochs=2"},
        ["sets num_epochs", "config.num_epochs"],
    ),
]


@pytest.mark.parametrize(("fields", "words"), MISTAKES)
def test_mistake_in_a_sweep_is_named(fields, words):
    with pytest.raises(UserError) as error:
        grid.expand(small_sweep(**fields), CONFIGS_DIR)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_single_run_is_no_sweep_and_the_other_way_round():
    with pytest.raises(UserError, match="paper_tables"):
        grid.expand(digits.get_config(), CONFIGS_DIR)
    with pytest.raises(UserError, match="--mode=sweep"):
        configuration.resolve(paper_tables.get_config())


def test_the_shards_of_a_sweep_are_its_runs_each_once():
    cells = grid.expand(small_sweep(seeds=(0, 1, 2)), CONFIGS_DIR)
    shards = [grid.take_shard(cells, f"{index}/5") for index in range(5)]
    assert sorted(map(len, shards)) == [2, 2, 2, 3, 3]
    assert sorted(cell.name for shard in shards for cell in shard) == sorted(
        cell.name for cell in cells
    )


def test_each_shard_has_every_column():
    columns = ("avg", "flexpool", "flexpool+reg", "avg+dropout")
    cells = grid.expand(small_sweep(columns=columns, seeds=tuple(range(8))), CONFIGS_DIR)
    for index in range(4):
        shard = grid.take_shard(cells, f"{index}/4")
        assert sorted(cell.config.seed for cell in shard) == list(range(8))
        assert Counter(cell.name.split("/")[1] for cell in shard) == dict.fromkeys(columns, 2)


def test_a_task_of_an_array_takes_its_shard():
    cells = grid.expand(small_sweep(), CONFIGS_DIR)
    variables = {
        "SLURM_ARRAY_TASK_ID": "7",
        "SLURM_ARRAY_TASK_MIN": "5",
        "SLURM_ARRAY_TASK_COUNT": "4",
    }
    assert grid.take_shard(cells, "auto", variables) == grid.take_shard(cells, "2/4")
    # Numbered 5, 7, 9, 11: the last two would have no part.
    with pytest.raises(UserError, match="without gaps"):
        grid.take_shard(cells, "auto", variables | {"SLURM_ARRAY_TASK_ID": "9"})
    with pytest.raises(UserError, match="SLURM sets for the tasks of an array"):
        grid.take_shard(cells, "auto", {})


@pytest.mark.parametrize("shard", ["4/4", "-1/4", "1", "1/0", "1/x", "1/4/2", "1/99", "١/٤"])
def test_what_is_not_a_part_of_a_sweep_is_refused(shard):
    with pytest.raises(UserError, match=f"--shard={re.escape(shard)}"):
        grid.take_shard(grid.expand(small_sweep(), CONFIGS_DIR), shard)
