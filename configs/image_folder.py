"""A folder of your own images: FOLDER/train/CLASS/* and FOLDER/test/CLASS/*, or FOLDER/CLASS/*.

    python launch.py --config=configs/image_folder.py:flexpool,reg --workdir=runs/mine \\
        --config.dataset.raw_dir=FOLDER --config.dataset.image_size=32 \\
        --config.batch_size=64 --config.learning_rate=0.01

With FOLDER/CLASS/*, the test split is a fifth of each class, drawn with the seed, so that runs of
several seeds have different test images. With FOLDER/train and FOLDER/test, they have the same.

Without the last two flags, the settings are those of section 4.2 of the paper: batches of 1000
images and a rate of 0.1. There must be at least as many training images as a batch has.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant such as "flexpool,reg,dropout,sac"."""
    config = default.get_config()
    config.dataset.name = "image_folder"
    # Images in a folder may differ in size, but a network needs images of one size. The CIFAR
    # ResNets are designed for 32x32.
    config.dataset.image_size = 32
    return default.apply_variant(config, variant)
