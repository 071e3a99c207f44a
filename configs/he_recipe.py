"""He et al. 2015, section 4.2: how the CIFAR ResNets were first trained.

    python launch.py --config=configs/he_recipe.py:cifar10 --workdir=runs/he
    python launch.py --config=configs/he_recipe.py:cifar10,flexpool,reg --workdir=runs/he_flexpool

The argument names a data set's config and a variant, in any order (see recipes.py); without a pool
it is He et al.'s own, `avg`. Published for ResNet20 on CIFAR-10: 91.25 % test accuracy.
"""

from ml_collections import ConfigDict

from configs import default, recipes


def get_config(argument: str = "") -> ConfigDict:
    """Returns He et al.'s recipe for "DATASET,VARIANT", e.g. "cifar10,flexpool,reg"."""
    config, variant = recipes.split_argument(argument)
    config.pool = "avg"

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.weight_decay_kind = "l2"
    config.batch_size = 128
    # Divided by ten at 32k and 48k of 64k iterations: one half and three quarters of the run.
    config.learning_rate = 0.1
    config.schedule = "step"
    # 64k iterations of 128 over 50,000 images.
    config.num_epochs = 164

    # Four pixels of padding on each side, a random crop and a flip. Digits keep their flip off.
    config.augment.scale = (1.0, 1.0)
    config.augment.crop = 4
    return default.apply_variant(config, variant)
