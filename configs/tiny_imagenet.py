"""Tiny ImageNet: 100,000 + 10,000 colour images, 64x64 shrunk to 32x32, two hundred classes.

    python launch.py --config=configs/tiny_imagenet.py:flexpool,reg,dropout,sac \\
        --workdir=runs/tiny_imagenet

Section 4.2's settings; the tables call this row "ImageNet". The archive is downloaded once, or
taken from `--config.dataset.raw_dir`. Paper: 46.50 (avg), 47.03 (flexpool), 48.11 (+ reg), 48.55
(+ dropout); with SAC 45.13, 47.55, 48.64, 49.01 % test accuracy.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant such as "flexpool,reg,dropout,sac"."""
    config = default.get_config()
    config.dataset.name = "tiny_imagenet"
    # Section 4.1: "input image of size 32x32 in the case of tiny ImageNet". 64 keeps them whole.
    config.dataset.image_size = 32
    return default.apply_variant(config, variant)
