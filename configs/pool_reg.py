"""Sweep over `pool_reg`, the coefficient that pulls FlexPool's weights to a sum of 1: 0 to 10.

    python launch.py --mode=sweep --config=configs/pool_reg.py --workdir=sweeps/pool_reg
    python launch.py --mode=report --workdir=sweeps/pool_reg

The paper gives no value for this coefficient of its Eq. 2. Accuracy is measured on a quarter of the
training split, a different quarter for each seed; the test split is not used. docs/reproduction.md
has the results.
"""

from ml_collections import ConfigDict

from configs import paper_tables


def get_config() -> ConfigDict:
    """Returns the sweep over `pool_reg`, without SAC, on the digits at 16×16."""
    config = paper_tables.get_config()
    config.datasets = ("digits",)
    config.columns = (
        "flexpool",
        "flexpool+reg=0.001",
        "flexpool+reg=0.01",
        "flexpool+reg=0.1",
        "flexpool+reg=1",
        "flexpool+reg=10",
    )
    config.sac = ("off",)
    config.seeds = (0, 1, 2, 3, 4)
    config.overrides = "dataset.holdout=0.25 dataset.image_size=16"
    return config
