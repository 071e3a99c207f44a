"""The recipe of the authors' released code (aliman80/FlexPoolU), where it differs from the paper.

    python launch.py --config=configs/release_recipe.py:cifar10,dropout --workdir=runs/release

The argument contains the name of a data set's config and the words of a variant, in any order (see
recipes.py). The default pool is that of the release, `softmax`. Settings that the release does not
fix are those of the paper.

With `sac`, this is the release's multi-scale training of ResNet20 (train_softflexpool_mscale.py);
without `sac`, it is the release's training with one classifier (train_softflexpool.py). The
differences from these two scripts are:

- The release trains on photographs of six kinds of waste, at 244x244 pixels, and normalises with
  ImageNet's mean and standard deviation. It evaluates on the training images. Here the data set is
  prepared as for any other run, with the official splits and its own mean and standard deviation.
- The release trains for 50 epochs in batches of 16. Here batch size and number of epochs are those
  of the data set's config.
- Weight decay acts only on the kernels of convolutions and dense layers; PyTorch's SGD decays all
  parameters.
- The momentum is 0.9 throughout; the OneCycleLR of the release varies it between 0.95 and 0.9.
- The initial kernels have a variance of 2 / fan-out (convolutions) or 1 / fan-in (dense layers);
  in the release, both have 2 / fan-in.
- In the release's multi-scale network, the second convolution of a block has no bias; here it has
  one.
- The release's VGGs have a fifth max pool, which `model=vgg11` to `vgg19` leave out. They need
  `norm_after_relu=False`. The release's script for VGG16 has a weight decay of 5e-4.
"""

from ml_collections import ConfigDict

from configs import default, recipes


def get_config(argument: str = "") -> ConfigDict:
    """Returns the release's recipe for "DATASET,VARIANT", e.g. "cifar10,dropout,sac"."""
    config, variant = recipes.split_argument(argument)

    # BatchNorm after ReLU, and convolutions with biases.
    config.norm_after_relu = True
    # With a softmax over positions, the weights of each channel are positive and sum to 1. The
    # constraint of Eq. 2 then always holds, and the variant `reg` is allowed only with another
    # pool, such as `flexpool,reg`.
    config.pool = "flexpool_softmax"
    # Weights of the release's multi-scale run; a comment in that code suggests 0.05, 0.1, 0.85.
    config.sac.weights = (0.01, 0.11, 0.88)

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.weight_decay_kind = "l2"
    config.learning_rate = 0.05
    config.schedule = "onecycle"

    # The release resizes images to one size and flips them, but does not scale them at random.
    config.augment.scale = (1.0, 1.0)
    return default.apply_variant(config, variant)
