"""The recipe with which the CIFAR ResNets were first trained: He et al. 2015, section 4.2.

    python launch.py --config=configs/he_recipe.py:cifar10 --workdir=runs/he
    python launch.py --config=configs/he_recipe.py:cifar10,flexpool,reg --workdir=runs/he_flexpool

The argument contains the name of a data set's config and the words of a variant, in any order (see
recipes.py). The default pool is `avg`, as in He et al. Their test accuracy of ResNet20 on CIFAR-10
is 91.25 %. The differences from He et al. are:

- Images are normalised by the mean and standard deviation of each channel; He et al. subtract the
  mean of each pixel.
- Weight decay acts only on the kernels of convolutions and dense layers; He et al. name no
  exception.
- 164 epochs of 390 whole batches are 63,960 iterations instead of 64,000.
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
    # The rate is divided by ten at 32k and 48k of 64k iterations: one half and three quarters.
    config.learning_rate = 0.1
    config.schedule = "step"
    # 64k iterations of 128 over 50,000 images.
    config.num_epochs = 164

    # Four pixels of padding on each side, a random crop and a flip. The flip is set by the data
    # set's config, which switches it off for digits.
    config.augment.scale = (1.0, 1.0)
    config.augment.crop = 4
    return default.apply_variant(config, variant)
