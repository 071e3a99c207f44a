"""Fashion-MNIST: 60,000 + 10,000 grey images of clothes, 28x28, ten classes.

    python launch.py --config=configs/fashion_mnist.py:flexpool,reg,dropout,sac \\
        --workdir=runs/fashion_mnist

The settings are those of section 4.2 of the paper. The four files are downloaded once, or read from
a folder: `--config.dataset.raw_dir=FOLDER`. Test accuracy in the paper, in per cent: 91.38 (avg),
92.35 (flexpool), 93.48 (+ reg), 93.98 (+ dropout); with SAC 93.55, 93.65, 93.48, 93.84.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant such as "flexpool,reg,dropout,sac"."""
    config = default.get_config()
    config.dataset.name = "fashion_mnist"
    return default.apply_variant(config, variant)
