"""ImageNet, 1.28 million photographs of a thousand classes, from a folder of JPEG files.

    python launch.py --config=configs/imagenet.py:flexpool,reg --workdir=runs/imagenet \\
        --config.dataset.raw_dir=FOLDER

FOLDER holds train/ and val/, each with one folder of JPEG files per class. The training archive of
ILSVRC 2012 unpacks in this way, and the usual script sorts the validation images so. The files are
copied unchanged into ArrayRecord shards once (145 GB). FlexPool has 7x7x2048 weights.

The recipe is that of Goyal et al. 2017 (arXiv 1706.02677) for ResNet50 and batches of 256: SGD with
a rate of 0.1 for 90 epochs. These things differ: five epochs of warm-up, which they use for larger
batches only; the half cosine of He et al. 2019 (arXiv 1812.01187) instead of steps; the last
BatchNorm of a block starts with the scale 1, theirs with 0; random crops are taken from the middle
square; and the network computes in bfloat16.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant such as "flexpool,reg"."""
    config = default.get_config()
    config.model = "resnet50"

    config.dataset.name = "image_folder"
    # Evaluation as in torchvision's reference: short side resized to 256, middle 224x224 cut out.
    config.dataset.image_size = 256
    config.dataset.resize = "crop"
    config.dataset.center_crop = 224
    # Mean and standard deviation of ImageNet's training images, which published weights use.
    config.dataset.mean = (0.485, 0.456, 0.406)
    config.dataset.std = (0.229, 0.224, 0.225)
    # The random crop is taken from the middle square of 256x256, not from the whole photograph,
    # because images of a batch must have one size.
    config.augment.random_resized_crop = (0.08, 1.0)
    config.augment.scale = (1.0, 1.0)
    config.augment.flip = True

    config.batch_size = 256
    config.eval_batch_size = 256
    config.num_epochs = 90
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.learning_rate = 0.1
    config.schedule = "warmup_cosine"
    config.warmup_epochs = 5
    config.dtype = "bfloat16"
    return default.apply_variant(config, variant)
