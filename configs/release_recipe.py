"""The recipe of the authors' released code (aliman80/FlexPoolU), where it differs from the paper.

    python launch.py --config=configs/release_recipe.py:cifar10,dropout --workdir=runs/release

The argument contains the name of a data set's config and the words of a variant, in any order (see
recipes.py). The default pool is that of the release, `softmax`. Settings that the release does not
fix are those of the paper.

With `sac`, this is the release's multi-scale training of ResNet20; without `sac`, it is the
release's training with one classifier. The differences from the release are:

- The release reads folders of images, normalises with ImageNet's mean and standard deviation, and
  builds both splits from one folder. Here the data set is prepared as for any other run, with the
  official splits and its own mean and standard deviation.
- The release has a weight decay of 1e-4 in some runs and of 5e-4 in others; here it is 5e-4. It
  acts only on the kernels of convolutions and dense layers; PyTorch's SGD decays all parameters.
- The momentum is constant. PyTorch's OneCycleLR varies the momentum by default.
- Batch size and number of epochs are those of the data set's config.
- The release's VGGs are `model=vgg11` to `vgg19`, and need `norm_after_relu=False`.
"""

from ml_collections import ConfigDict

from configs import default, recipes


def get_config(argument: str = "") -> ConfigDict:
    """Returns the release's recipe for "DATASET,VARIANT", e.g. "cifar10,dropout,sac"."""
    config, variant = recipes.split_argument(argument)

    # BatchNorm after ReLU, convolutions with biases, Kaiming-normal weights.
    config.norm_after_relu = True
    # With a softmax over positions, the weights of each channel are positive and sum to 1. The
    # constraint of Eq. 2 then always holds, and the variant `reg` is allowed only with another
    # pool, such as `flexpool,reg`.
    config.pool = "flexpool_softmax"
    # Weights of the release's multi-scale run; a comment in that code suggests 0.05, 0.1, 0.85.
    config.sac.weights = (0.01, 0.11, 0.88)

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.weight_decay_kind = "l2"
    config.learning_rate = 0.05
    config.schedule = "onecycle"

    # The release resizes images to one size and flips them, but does not scale them at random.
    config.augment.scale = (1.0, 1.0)
    return default.apply_variant(config, variant)
