"""Digits: 1,797 scans of handwritten digits that scikit-learn ships, resized to 32x32.

    python launch.py --config=configs/digits.py:flexpool,reg --workdir=runs/digits

Nothing is downloaded, and two CPU cores need a few minutes: the experiment to try first.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant such as "flexpool,reg,dropout,sac"."""
    config = default.get_config()
    config.dataset.name = "digits"

    # 1,438 training images make barely one step of the paper's 1000; 64 makes 22 an epoch.
    config.batch_size = 64
    config.num_epochs = 12
    # The paper's 0.1 goes with its batch; at 64 images a step Adam wants less.
    config.learning_rate = 0.01

    # No flips: a mirrored digit is not a valid digit.
    config.augment.flip = False
    return default.apply_variant(config, variant)
