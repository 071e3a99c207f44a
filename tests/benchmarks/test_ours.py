"""The steps of this project that the benchmarks time and compare are those of a run that works."""

from benchmarks import ours
from configs import default
from flexpool_jax.configuration import check_pool_reg_stability


def test_eq_2_is_stable_on_the_largest_map_that_is_pooled():
    config = default.get_config("flexpool,sac")
    config.update_from_flattened_dict(
        {
            "optimizer.name": "sgd",
            "optimizer.momentum": ours.MOMENTUM,
            "learning_rate": ours.LEARNING_RATE,
            "pool_reg": ours.POOL_REG,
        }
    )
    check_pool_reg_stability(config, [ours.IMAGE_SHAPE])
