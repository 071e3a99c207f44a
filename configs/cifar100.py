"""CIFAR-100: 50,000 + 10,000 colour images, 32x32, a hundred classes in twenty superclasses.

    python launch.py --config=configs/cifar100.py:flexpool,reg,dropout --workdir=runs/cifar100

The settings are those of section 4.2 of the paper. The archive is downloaded once, or read from
`--config.dataset.raw_dir`. Add `--config.superclass.epochs=10` for super classing. Test accuracy in
the paper, in per cent: 66.18 (avg), 66.50 (flexpool), 66.73 (+ reg), 68.30 (+ dropout); with SAC
63.79, 64.12, 64.53, 65.57.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant such as "flexpool,reg,dropout,sac"."""
    config = default.get_config()
    config.dataset.name = "cifar100"
    return default.apply_variant(config, variant)
