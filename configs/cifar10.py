"""CIFAR-10: 50,000 + 10,000 colour images, 32x32, ten classes.

    python launch.py --config=configs/cifar10.py:flexpool,reg,dropout,sac --workdir=runs/cifar10

The settings are those of section 4.2 of the paper. The archive is downloaded once, or read from
`--config.dataset.raw_dir`. Test accuracy in the paper, in per cent: 91.63 (avg), 91.91 (flexpool),
91.87 (+ reg), 92.32 (+ dropout); with SAC 89.31, 91.61, 91.86, 92.03.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant such as "flexpool,reg,dropout,sac"."""
    config = default.get_config()
    config.dataset.name = "cifar10"
    return default.apply_variant(config, variant)
