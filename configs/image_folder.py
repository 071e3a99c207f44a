"""A folder of one's own images: FOLDER/train/CLASS/* and FOLDER/test/CLASS/*, or FOLDER/CLASS/*.

    python launch.py --config=configs/image_folder.py:flexpool,reg --workdir=runs/mine \\
        --config.dataset.raw_dir=FOLDER --config.dataset.image_size=32

Section 4.2's settings; `--config.batch_size` wants to be well below the number of images.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant such as "flexpool,reg,dropout,sac"."""
    config = default.get_config()
    config.dataset.name = "image_folder"
    # Images in a folder differ in size, a network needs them alike; the CIFAR ResNets are built
    # for small ones.
    config.dataset.image_size = 32
    return default.apply_variant(config, variant)
