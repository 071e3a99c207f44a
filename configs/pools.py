"""Every pool in the place of FlexPool: is it the learning of weights that helps, and which part?

    python launch.py --mode=sweep --config=configs/pools.py --workdir=sweeps/pools
    python launch.py --mode=report --workdir=sweeps/pools

The paper compares with average pooling alone; flexpool_jax/pooling.py says where each of the others
is from. `--config.sac=on` puts each on every stage.
"""

from ml_collections import ConfigDict

from configs import paper_tables


def get_config() -> ConfigDict:
    """Returns the sweep over all pools, without SAC."""
    config = paper_tables.get_config()
    config.datasets = ("cifar10",)
    config.columns = (
        "avg",
        "max",
        "avgmax",
        "gem",
        "lse",
        "softpool",
        "attention",
        "flexpool",
        "flexpool+reg",
        # What the authors' released code computes.
        "softmax",
        # Controls: FlexPool without one of its parts, and a weight for every position and class.
        "channel_scale",
        "flexpool_shared",
        "gdconv",
        "flatten",
    )
    config.sac = ("off",)
    config.seeds = (0, 1, 2)
    return config
