"""All fields of a config, with their meanings, defaults and the reasons for the defaults.

    python launch.py --config=configs/default.py:flexpool,reg --workdir=runs/default

The other configs start from these defaults and change only some fields. Below, "the paper" is
FlexPooling with Simple Auxiliary Classifiers in Deep Networks, VISAPP 2023, and sections and
equations are those of this paper. If the paper gives a value, that value is the default, and the
comment names the section. If not, the comment explains the choice. To set a field on the command
line, write `--config.FIELD=VALUE`, e.g. `--config.sac.weights=0.05,0.1,0.85`.
"""

from ml_collections import ConfigDict

from flexpool_jax.configuration import variants

# Coefficient of Eq. 2 that the variant `reg` sets. The paper does not give the value. A later sweep
# on held-out training images did not tell the values apart: other accuracies differed from that of
# 0.1 by at most 0.28 points, with intervals up to about one point. 0.1 was the smallest value with
# which the sums of the weights stayed within one per cent of 1 (docs/reproduction.md).
DEFAULT_POOL_REG = 0.1

# Dropout rate that the variant `dropout` sets. Section 4.4.1: "using drop out of 0.25".
DEFAULT_DROPOUT_RATE = 0.25


def get_config(variant: str = "") -> ConfigDict:
    """Returns the paper's settings with the variant's changes, e.g. "flexpool,reg,dropout,sac"."""
    config = ConfigDict()

    # Seed of all random numbers: initial weights, order of examples, augmentation, dropout, and the
    # draw of held-out images. If a data set has no test split, the seed also draws its test images.
    config.seed = 0

    # Name of the network. Sections 4.1 and 4.3: ResNet20, "we may use any other network".
    config.model = "resnet20"
    # False: conv, BatchNorm, ReLU (He et al. 2015). True: BatchNorm after ReLU, and convolutions
    # with biases, as in the authors' released code. For the CIFAR ResNets only.
    config.norm_after_relu = False
    # False: shortcuts without parameters (option A of He et al. 2015, their choice for CIFAR).
    # True: a 1x1 convolution and BatchNorm where the shape changes (option B), as in many published
    # weights. For the CIFAR ResNets only.
    config.projection_shortcuts = False
    # Name of the pool, which turns the last stage's map [H, W, C] into a vector [C]. flexpool is
    # the pool of the paper (section 3), flexpool_softmax that of the released code, and avg the
    # baseline of the paper's tables. docs/guide.md lists all pools.
    config.pool = "flexpool"
    # Coefficient of Eq. 2 in the loss. 0 does not constrain the weights ("FlexPool"); the variant
    # `reg` sets it ("FlexPool + Reg"). Only for pools that use their weights w_fp directly:
    # flexpool, flexpool_shared, gdconv, channel_scale, or a registered pool with a w_fp.
    config.pool_reg = 0.0
    # Factor on the learning rate of the pool's weights w_fp. Adam changes each weight by about the
    # learning rate, whatever the size of the weight, and w_fp starts at 1/(H*W). With the factor
    # 1/(H*W), which is 0.0204 for maps of 7x7, the changes of w_fp are in proportion to its size.
    # 1: the same rate as for all other weights (the paper names no other rate). Only for pools with
    # a w_fp.
    config.pool_learning_rate_scale = 1.0
    # Probability that dropout sets an entry of the pooled vector to 0, before the classifier. The
    # variant `dropout` sets the paper's 0.25 (section 4.4.1). The place where dropout acts is this
    # project's choice.
    config.dropout_rate = 0.0

    # Path of a safetensors file with the initial weights: a file of this project, from
    # --mode=export, or one from PyTorch, made by scripts/convert_torch.py (docs/portable.md).
    # Empty: random weights, as in the paper. If the test images are drawn, give the seed that the
    # weights were trained with: with another seed, they have seen some of the test images.
    config.init_from = ""
    # backbone: only the pools and classifiers after the backbone are trained; BatchNorm uses its
    # running statistics and does not update them. Empty: everything is trained.
    config.freeze = ""

    # Simple Auxiliary Classifiers: the map of each stage is pooled and classified (section 3.2).
    config.sac = ConfigDict()
    config.sac.enabled = False
    # Weight of each stage's loss in Eq. 3, first stage first; the last stage's classifier predicts.
    # The weights must strictly increase and sum to 1. Section 4.1: 0.1, 0.2 and 0.7. If this field
    # has this default and the model has another number of stages, the weights follow the same rule:
    # 0.7 for the last stage, and 0.3 in proportion 1 : 2 : 3 : ... for the earlier stages (0.03,
    # 0.06, 0.09, 0.12, 0.7 for the five stages of a VGG). config.json has the weights in use.
    config.sac.weights = (0.1, 0.2, 0.7)

    config.dataset = ConfigDict()
    # Name of a data set in flexpool_jax/data/registry.py (digits, fashion_mnist, ..., image_folder,
    # npz), of a registered data set, or of any TFDS data set that is prepared as ArrayRecord under
    # data_dir. Default: the first row of the paper's Tables 1 and 2.
    config.dataset.name = "cifar10"
    # Folder of the prepared data sets. The default is TFDS's folder, where data sets that TFDS
    # prepared are found.
    config.dataset.data_dir = "~/tensorflow_datasets"
    # Path of the folder with files downloaded by hand, of the image folder or of the .npz file.
    # Empty: the files are downloaded.
    config.dataset.raw_dir = ""
    # Side in pixels to which images are resized. 0: the data set's default, which is 32 for digits
    # and tiny_imagenet, and the stored size for the others.
    config.dataset.image_size = 0
    # stretch: images are resized to a square, whatever their proportions. crop: the short side is
    # resized to image_size, and the middle square is cut out (torchvision's Resize and CenterCrop).
    # With crop, an image_folder is prepared in its original size, and resized when it is read.
    config.dataset.resize = "stretch"
    # If above 0, a square of this side in pixels is cut from the middle of each test image, and of
    # each training image unless augment.random_resized_crop is set. 0: the whole image.
    config.dataset.center_crop = 0
    # device: all images are decoded once and are in the memory of each device (on a CPU, of the
    # machine). stream: threads read and decode each batch from the prepared files while the devices
    # compute, so that little memory is needed; arrays (npz, registered data sets) are streamed from
    # memory. auto: device if all images take at most a quarter of the memory, else stream. This
    # memory is that of a device or of the machine, whichever is smaller. The machine's memory is
    # divided by the number of processes of this run on the machine and, on a CPU, by the number of
    # their devices. The batches are the same, bit by bit, in both cases.
    config.dataset.placement = "auto"
    # Fraction of the training split (of each class, drawn with the seed) that is used in place of
    # the test split, to choose values without using test images. 0: the official splits (section
    # 4.4); if the data set has no test split, a fifth of each class, drawn with the seed.
    config.dataset.holdout = 0.0
    # Mean and standard deviation, one number for each channel, by which images are normalised after
    # division by 255. Empty: those of the training images. With init_from, they must be those that
    # the weights were trained with; if empty, they are read from a file of this project.
    config.dataset.mean = ()
    config.dataset.std = ()

    # Number of images of a step, over all devices. Section 4.2: 1000.
    config.batch_size = 1000
    # Number of parts into which a step's images are divided. The parts are computed one after the
    # other, and their gradients are averaged: for batches whose activations do not fit into memory.
    # Without BatchNorm and dropout, the result of the step is the same as with 1. BatchNorm
    # normalises each part by the part's own statistics, and updates its running statistics after
    # each part.
    config.grad_accum_steps = 1
    # Number of epochs. Section 4.2: 100.
    config.num_epochs = 100
    # Number of images of an evaluation step, which does not change the result.
    config.eval_batch_size = 1000

    config.optimizer = ConfigDict()
    # Name of the optimizer: adam (section 4.2), sgd, or any other optimizer of optax and
    # optax.contrib that needs only gradients and a learning rate: adamw, lion, lamb, muon, ...
    config.optimizer.name = "adam"
    # Further keyword arguments of the optimizer, e.g. --config.optimizer.kwargs.b1=0.95. The names
    # are Optax's: those of scale_by_adam for adam, those of trace for sgd, else those of the
    # optimizer.
    config.optimizer.kwargs = ConfigDict()
    # Momentum of sgd; the other optimizers do not use this field.
    config.optimizer.momentum = 0.9
    # Coefficient of weight decay, which never acts on biases and BatchNorm. The paper names no
    # weight decay: 0.
    config.optimizer.weight_decay = 0.0
    # l2: the decay is added to the gradient, before momentum or Adam. decoupled: the decay, times
    # the learning rate, is subtracted from the weights apart from the gradient, as in AdamW. This
    # field has no effect on optimizers that have their own weight decay with a mask (adamw, lion,
    # lamb, ..., but not adafactor and muon).
    config.optimizer.weight_decay_kind = "l2"
    # Whether weight decay also acts on w_fp. Decay pulls the weights to 0; Eq. 2 pulls the sums of
    # the weights to 1.
    config.optimizer.decay_pool = False
    # Largest norm of the gradient over all parameters; a larger gradient is scaled down to this
    # norm. 0 is off.
    config.optimizer.clip_norm = 0.0
    # Highest learning rate of the schedule. Sections 4.1 and 4.2: 0.1.
    config.learning_rate = 0.1
    # Schedule of the learning rate. onecycle (section 4.1): up to learning_rate over the first 30 %
    # of the steps, then down to almost 0. cosine: down to 0 along a half cosine. warmup_cosine: up
    # in a straight line over warmup_epochs, then down to 0 along a half cosine. constant: always
    # learning_rate. step: divided by ten after one half and again after three quarters of the steps
    # (He et al. 2015).
    config.schedule = "onecycle"
    # Number of warm-up epochs; for the schedule warmup_cosine only.
    config.warmup_epochs = 0

    # If above 0, evaluation uses an exponential moving average of the weights. It starts with the
    # initial weights; after each step, average = ema_decay * average + (1 - ema_decay) * weights.
    # The average covers about the last 1 / (1 - ema_decay) steps. BatchNorm's running statistics
    # are not averaged again. Checkpoints also hold the average, and pool_weights.npz holds it in
    # place of the weights. 0 is off.
    config.ema_decay = 0.0

    # Label smoothing: share of each label's probability that is spread over all classes in the
    # training loss. The paper does not use it: 0.
    config.label_smoothing = 0.0

    # Compute dtype of the network, float32 or bfloat16. Parameters, statistics and losses, and the
    # weighted sum of the pool, are float32 in both cases.
    config.dtype = "float32"
    # False: on a GPU, XLA computes some sums in a varying order, so that two runs differ in the
    # last bits. True: the order is fixed, and kernels are not chosen by measuring their speed; this
    # is slower, and models with max pooling over windows raise an error. On a CPU, two runs on the
    # same number of cores always have the same bits.
    config.deterministic = False
    # Whether BatchNorm's batch statistics are averaged over the devices. True: a run on eight
    # devices follows the same loss curve as on one device. False saves the communication.
    config.sync_batch_norm = True

    # Random augmentation of the training images, drawn on the device for every image and epoch.
    # Section 4.2: "random flipping, scaling".
    config.augment = ConfigDict()
    # Whether images are mirrored left to right with probability one half.
    config.augment.flip = True
    # Range of a random factor by which images are resized, and then cropped or padded to their
    # size. (1, 1) is off. The paper gives no range.
    config.augment.scale = (0.8, 1.2)
    # Number of pixels of padding on each side, before a random crop to the image's size. 0 is off.
    config.augment.crop = 0
    # Range of the share of the image's area that is cut out at random and resized, with a ratio of
    # width to height from 3/4 to 4/3: torchvision's RandomResizedCrop, whose default range is
    # 0.08,1. It replaces scale and crop. Empty is off. The side of the result is
    # dataset.center_crop, or that of the images if center_crop is 0.
    config.augment.random_resized_crop = ()

    # Super classing: number of epochs of training on superclasses. Then the last dense layer of
    # every classifier is replaced, and training continues for num_epochs on the classes. 0 is off.
    # Section 4.2 names two steps, of 10 and of 100 epochs. It says neither what the first step
    # trains, which is this project's choice, nor which of the paper's numbers were trained so.
    config.superclass = ConfigDict()
    config.superclass.epochs = 0
    # Path of a file that maps classes to superclasses. Empty: the superclasses of the data set,
    # such as those of cifar100.
    config.superclass.mapping = ""

    # Number of epochs between evaluations on the test split, and between saved checkpoints. A state
    # with the best accuracy so far stays in memory until the next checkpoint is due; both are then
    # saved.
    config.eval_every_epochs = 1
    config.checkpoint_every_epochs = 1
    # Number of steps between lines of training in metrics.jsonl; an epoch ends with a line as well.
    # Each line holds the means over the steps since the line before.
    config.log_every_steps = 50
    # Number of steps that one call runs on the device. 0 chooses the number: one on a CPU; on
    # accelerators about log_every_steps, but not more than take three seconds.
    config.steps_per_dispatch = 0
    # Whether TensorBoard files are written, in addition to metrics.jsonl.
    config.tensorboard = True
    # Folder in which XLA caches compiled programs for later runs. Empty: no cache.
    config.compilation_cache = "~/.cache/flexpool_jax/xla"

    # From here on a misspelt field is an error, not a new field.
    config.lock()
    return apply_variant(config, variant)


def apply_variant(config: ConfigDict, variant: str) -> ConfigDict:
    """Applies a variant, the argument after the colon, to a config in place and returns the config.

    The name of a pool sets `pool` (`softmax` is flexpool_softmax), `reg` sets `pool_reg`, `dropout`
    sets `dropout_rate`, and `sac` switches the auxiliary classifiers on. FIELD=VALUE sets any field
    as on the command line; `reg=V` is short for `pool_reg=V`.

    Args:
        config: The config to change.
        variant: Words separated by commas, in any order; empty changes nothing.

    Raises:
        UserError: A word is unknown, a field is set more than once, or a value has the wrong type.
            Values and combinations of fields, such as `reg` with a pool that Eq. 2 cannot
            constrain, are checked later by `flexpool_jax.configuration.resolve`.

    Example:
        >>> config = get_config("flexpool,reg,dropout,sac")
        >>> config.pool, config.pool_reg, config.dropout_rate, config.sac.enabled
        ('flexpool', 0.1, 0.25, True)
        >>> config = get_config("gem,dropout,learning_rate=0.01")
        >>> config.pool, config.dropout_rate, config.learning_rate
        ('gem', 0.25, 0.01)
    """
    defaults = {"pool_reg": DEFAULT_POOL_REG, "dropout_rate": DEFAULT_DROPOUT_RATE}
    return variants.apply_variant(config, variant, defaults)
