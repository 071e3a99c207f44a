"""ImageNet, 1.28 million photographs of a thousand classes, from a folder in its own layout.

    python launch.py --config=configs/imagenet.py:flexpool,reg --workdir=runs/imagenet \\
        --config.dataset.raw_dir=FOLDER

FOLDER holds train/ and val/ with a folder of JPEG files for each class, as ILSVRC 2012's training
archive unpacks and as the usual script sorts the validation images. The files are put into
ArrayRecord shards once, as they are (145 GB). FlexPool has 7x7x2048 weights.

ResNet50 in the recipe of Goyal et al. 2017 (arXiv 1706.02677) for one batch of 256: SGD, rate 0.1
after five epochs of warm-up, 90 epochs; with the half cosine of He et al. 2019 (arXiv 1812.01187)
in the place of steps.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant such as "flexpool,reg"."""
    config = default.get_config()
    config.model = "resnet50"

    config.dataset.name = "image_folder"
    # Evaluation sees what torchvision's reference does: the short side at 256, the middle 224.
    config.dataset.image_size = 256
    config.dataset.resize = "crop"
    config.dataset.center_crop = 224
    # Of ImageNet's training images; published weights are trained with these.
    config.dataset.mean = (0.485, 0.456, 0.406)
    config.dataset.std = (0.229, 0.224, 0.225)
    # The random part is cut from the middle square of 256, not from the whole photograph: batches
    # need images of one size.
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
