"""The recipe of the authors' released code (aliman80/FlexPoolU), where it differs from the paper.

    python launch.py --config=configs/release_recipe.py:cifar10,dropout --workdir=runs/release

The argument names a data set's config and a variant, in any order (see recipes.py); without a pool
it is the release's own, `softmax`. What the release does not fix stays as the paper has it.

With `sac` this is the release's multi-scale training of ResNet20; without it, its training with one
classifier. It departs from the release in these points:

- The release reads folders of images, normalises by ImageNet's mean and deviation, and builds both
  splits from one folder. Here the data set is prepared as for any other run: official splits, its
  own mean and deviation.
- The release has weight decay 1e-4 in some runs and 5e-4 in others; here it is 5e-4. It acts on the
  kernels of convolutions and dense layers only; PyTorch's SGD decays every parameter it is given.
- The momentum is constant. PyTorch's OneCycleLR varies it as well unless it is told not to.
- Batch size and number of epochs are those of the data set's config.
- The release's VGGs are `model=vgg11` to `vgg19`, and want `norm_after_relu=False`.
"""

from ml_collections import ConfigDict

from configs import default, recipes


def get_config(argument: str = "") -> ConfigDict:
    """Returns the release's recipe for "DATASET,VARIANT", e.g. "cifar10,dropout,sac"."""
    config, variant = recipes.split_argument(argument)

    # BatchNorm after ReLU, convolutions with biases, Kaiming-normal weights.
    config.norm_after_relu = True
    # A softmax over positions keeps each channel's weights positive and summing to 1, so that
    # Eq. 2 holds by construction and `reg` needs another pool.
    config.pool = "flexpool_softmax"
    # The release's multi-scale run; a comment in it suggests 0.05, 0.1, 0.85.
    config.sac.weights = (0.01, 0.11, 0.88)

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.weight_decay_kind = "l2"
    config.learning_rate = 0.05
    config.schedule = "onecycle"

    # Images are resized to one size and flipped there, not scaled at random.
    config.augment.scale = (1.0, 1.0)
    return default.apply_variant(config, variant)
