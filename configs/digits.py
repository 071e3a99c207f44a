"""Digits: 1,797 scans of handwritten digits that scikit-learn ships, resized to 32x32.

    python launch.py --config=configs/digits.py:flexpool,reg --workdir=runs/digits

Nothing is downloaded, and training takes a few minutes on two CPU cores: try this config first.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant such as "flexpool,reg,dropout,sac"."""
    config = default.get_config()
    config.dataset.name = "digits"

    # The paper's batch of 1000 would make one step per epoch of 1,438 images; a batch of 64 makes
    # 22 steps.
    config.batch_size = 64
    config.num_epochs = 12
    # The paper's rate of 0.1 is for batches of 1000; Adam needs a lower rate for batches of 64.
    config.learning_rate = 0.01

    # No flips: a mirrored digit is not a valid digit.
    config.augment.flip = False
    return default.apply_variant(config, variant)
