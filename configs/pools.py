"""Sweep over all pools: do learned weights help, and which part of FlexPool matters?

    python launch.py --mode=sweep --config=configs/pools.py --workdir=sweeps/pools
    python launch.py --mode=report --workdir=sweeps/pools

The paper compares FlexPool with average pooling only; the docstrings of flexpool_jax/pools.py and
pooling.py name the sources of the other pools. With `--config.sac=on`, the pool is used on every
stage.
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
        # The pool of the authors' released code.
        "softmax",
        # Controls: FlexPool without one of its parts; flatten has weights for every position and
        # class.
        "channel_scale",
        "flexpool_shared",
        "gdconv",
        "flatten",
    )
    config.sac = ("off",)
    config.seeds = (0, 1, 2)
    return config
