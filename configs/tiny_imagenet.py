"""Tiny ImageNet: 100,000 + 10,000 colour images, 64x64 shrunk to 32x32, two hundred classes.

    python launch.py --config=configs/tiny_imagenet.py:flexpool,reg,dropout,sac \\
        --workdir=runs/tiny_imagenet

The settings are those of section 4.2 of the paper, whose tables call this data set "ImageNet". The
archive is downloaded once, or read from `--config.dataset.raw_dir`. Test accuracy in the paper, in
per cent: 46.50 (avg), 47.03 (flexpool), 48.11 (+ reg), 48.55 (+ dropout); with SAC 45.13, 47.55,
48.64, 49.01.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant such as "flexpool,reg,dropout,sac"."""
    config = default.get_config()
    config.dataset.name = "tiny_imagenet"
    # Section 4.1: "input image of size 32x32 in the case of tiny ImageNet". 64 is the stored size.
    config.dataset.image_size = 32
    return default.apply_variant(config, variant)
