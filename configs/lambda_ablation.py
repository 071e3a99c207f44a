"""Sweep over the weights of SAC's losses (Eq. 3): the paper's, the authors' release's and others.

    python launch.py --mode=sweep --config=configs/lambda_ablation.py --workdir=sweeps/lambda
    python launch.py --mode=report --workdir=sweeps/lambda

Section 4.1 of the paper chose 0.1, 0.2 and 0.7 "after cross validation" and reports no others. To
choose weights by this sweep, measure on a part of the training split, not on test images:
`--config.overrides=dataset.holdout=0.1`.
"""

from ml_collections import ConfigDict

from configs import paper_tables


def get_config() -> ConfigDict:
    """Returns the sweep over the weights of Eq. 3, for average pooling and for FlexPool."""
    config = paper_tables.get_config()
    config.datasets = ("cifar10",)
    config.columns = ("avg", "flexpool+reg")
    config.sac = (
        # No auxiliary classifiers, the baseline.
        "off",
        # The weights of the paper, section 4.1.
        "0.1/0.2/0.7",
        # The weights in the authors' released code, and those that a comment in it suggests.
        "0.01/0.11/0.88",
        "0.05/0.1/0.85",
        # Nearly equal weights, the largest for the first stages that λ1 < λ2 < λ3 allows.
        "0.32/0.33/0.35",
    )
    config.seeds = (0, 1, 2)
    return config
