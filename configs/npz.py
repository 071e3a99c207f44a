"""Arrays in one .npz file: x_train, y_train, x_test, y_test and, optionally, class_names.

    python launch.py --config=configs/npz.py:flexpool,reg --workdir=runs/mine \\
        --config.dataset.raw_dir=FILE.npz --config.dataset.image_size=32 \\
        --config.batch_size=64 --config.learning_rate=0.01

Images are uint8 [N, H, W, C] or [N, H, W], labels integers [N]. Without the last two flags, the
settings are those of section 4.2 of the paper: batches of 1000 images and a rate of 0.1. There
must be at least as many training images as a batch has.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant such as "flexpool,reg,dropout,sac"."""
    config = default.get_config()
    config.dataset.name = "npz"
    return default.apply_variant(config, variant)
