"""Every field of a config, what it means, and why its default is what it is.

    python launch.py --config=configs/default.py:flexpool,reg --workdir=runs/default

The other files here start from this one and change what their experiment changes. Where the paper
(FlexPooling with Simple Auxiliary Classifiers in Deep Networks, VISAPP 2023) gives a value, that
value is the default, and the comment names the section; where it is silent, the comment says what
was chosen instead. A field is set on the command line by `--config.FIELD=VALUE`, e.g.
`--config.sac.weights=0.05,0.1,0.85`.
"""

from ml_collections import ConfigDict

from flexpool_jax.configuration import variants

# The coefficient of Eq. 2 that the variant `reg` switches on. The paper does not give it. A later
# sweep on held-out training images confirmed 0.1: no other value differed by about one point or
# more, and 0.1 was the weakest that kept the sums of the weights within one per cent of 1
# (docs/reproduction.md).
DEFAULT_POOL_REG = 0.1

# Section 4.4.1: "using drop out of 0.25".
DEFAULT_DROPOUT_RATE = 0.25


def get_config(variant: str = "") -> ConfigDict:
    """Returns the paper's settings with the variant's changes, e.g. "flexpool,reg,dropout,sac"."""
    config = ConfigDict()

    # Every random number (initial weights, order, augmentation, dropout) derives from this one.
    config.seed = 0

    # The network, by name. Sections 4.1 and 4.3: ResNet20, "we may use any other network".
    config.model = "resnet20"
    # False: conv, BatchNorm, ReLU (He et al. 2015). True: BatchNorm after ReLU and convolutions
    # with biases, as in the authors' released code. Only the CIFAR ResNets have it.
    config.norm_after_relu = False
    # False: parameter-free shortcuts (option A of He et al. 2015, their choice for CIFAR). True:
    # 1x1 convolutions and norms where the shape changes (option B), as in many published weights.
    # Only the CIFAR ResNets have the choice.
    config.projection_shortcuts = False
    # What turns the last stage's map [H, W, C] into a vector [C]: flexpool is the paper's (section
    # 3), flexpool_softmax the released code's, avg the baseline of both tables. All of them are in
    # flexpool_jax/pooling.py, each with its source.
    config.pool = "flexpool"
    # The coefficient of Eq. 2 in the loss; 0 leaves the weights unconstrained ("FlexPool"), the
    # variant `reg` sets it ("FlexPool + Reg"). For pools with weights that are used as they are:
    # flexpool, flexpool_shared, gdconv, channel_scale, or one of your own with a w_fp.
    config.pool_reg = 0.0
    # Multiplies the updates of the pool's weights w_fp, and so their learning rate. Adam moves each
    # weight by about the learning rate whatever its size, and these start at 1/(H*W): a scale of
    # 1/(H*W), 0.0204 for maps of 7x7, moves them in proportion. 1: as all other weights (the
    # paper names no rate for them). For pools with w_fp only.
    config.pool_learning_rate_scale = 1.0
    # Probability of dropping an entry of the pooled vector ahead of its classifier. The variant
    # `dropout` sets the paper's 0.25 (section 4.4.1); where it acts is this project's choice.
    config.dropout_rate = 0.0

    # A safetensors file whose weights training starts from: this project's own, as --mode=export
    # writes it, or PyTorch's as scripts/convert_torch.py makes it (docs/portable.md). Empty: random
    # weights (the paper's).
    config.init_from = ""
    # backbone: only what follows the backbone is trained, its pools and classifiers; BatchNorm uses
    # its running statistics and does not update them. Empty: everything is trained.
    config.freeze = ""

    # Simple Auxiliary Classifiers: each stage's map is pooled and classified too (section 3.2).
    config.sac = ConfigDict()
    config.sac.enabled = False
    # The weight of each stage's loss in Eq. 3, first stage first; the last head is the one that
    # predicts. They must strictly increase and sum to 1. Section 4.1: 0.1, 0.2 and 0.7. Left at
    # these, a model with another number of stages gets as many by the same rule: 0.7 for the last,
    # the rest in proportion 1 : 2 : 3 : ... (0.03, 0.06, 0.09, 0.12, 0.7 for the five of a VGG).
    # config.json has the weights that were used.
    config.sac.weights = (0.1, 0.2, 0.7)

    config.dataset = ConfigDict()
    # One of flexpool_jax/data/registry.py (digits, fashion_mnist, ..., image_folder, npz), a
    # registered one, or any TFDS set prepared as ArrayRecord under data_dir. Default: the first
    # row of both tables.
    config.dataset.name = "cifar10"
    # Where prepared data sets live; TFDS's own folder, so that what it prepared is found.
    config.dataset.data_dir = "~/tensorflow_datasets"
    # A folder with files downloaded by hand, the image folder or the .npz file. Empty: download.
    config.dataset.raw_dir = ""
    # Side in pixels to which images are resized; 0 leaves it to the data set.
    config.dataset.image_size = 0
    # stretch: to a square, whatever an image's proportions. crop: the short side is resized to
    # image_size, and the middle of the long side is kept (torchvision's Resize and CenterCrop); an
    # image_folder is then stored as the JPEG bytes that it has, and resized when it is read.
    config.dataset.resize = "stretch"
    # Above 0, the network sees the middle of each image, so many pixels a side: of the test images,
    # and of the training images unless augment.random_resized_crop cuts from the whole of them.
    config.dataset.center_crop = 0
    # device: all images lie in the memory of each device (on a CPU, of the machine), decoded once.
    # stream: each batch is read from the prepared files and decoded by threads while the devices
    # compute, so that memory is bounded; arrays (npz, registered sets) are streamed from memory.
    # auto: device where all images take at most a quarter of the memory, else stream. The memory is
    # that of a device or of the machine, whichever is smaller; several devices of a CPU share it.
    # Both give the same batches, bit by bit.
    config.dataset.placement = "auto"
    # This fraction of the training split (stratified, seeded) stands in for the test split: for
    # choosing values without looking at test images. 0: the official splits (section 4.4).
    config.dataset.holdout = 0.0
    # Images / 255 are normalised with this mean and standard deviation, one number a channel.
    # Empty: with those of the training images. With init_from they must be those that the weights
    # were trained with; files of this project name theirs.
    config.dataset.mean = ()
    config.dataset.std = ()

    # Images a step, over all devices together. Section 4.2: 1000.
    config.batch_size = 1000
    # A step's images are run through the network in so many parts, one after the other, whose
    # gradients are averaged: for batches whose activations do not fit into memory. Without
    # BatchNorm and dropout the step is the same; BatchNorm normalises each part by the part's own
    # statistics, and updates the running ones once for each part.
    config.grad_accum_steps = 1
    # Section 4.2: 100.
    config.num_epochs = 100
    # Images an evaluation step; the result does not depend on it.
    config.eval_batch_size = 1000

    config.optimizer = ConfigDict()
    # adam (section 4.2), sgd, or any other optimizer of optax and optax.contrib that needs only
    # gradients and a learning rate: adamw, lion, lamb, muon, rmsprop, ...
    config.optimizer.name = "adam"
    # Further keywords of the optimizer, with plain values, e.g. --config.optimizer.kwargs.b1=0.95.
    # They are Optax's own names; those of adam are scale_by_adam's, those of sgd trace's.
    config.optimizer.kwargs = ConfigDict()
    # SGD's momentum; the other optimizers do not use it.
    config.optimizer.momentum = 0.9
    # The paper names no weight decay, hence none. Biases and BatchNorm are never decayed.
    config.optimizer.weight_decay = 0.0
    # l2: added to the gradient, ahead of momentum or Adam. decoupled: subtracted from the weights
    # beside the step, scaled by the rate, as in AdamW. Optimizers with a weight decay of their own
    # that can be masked (adamw, lion, lamb, ...) use that one, whatever this says.
    config.optimizer.weight_decay_kind = "l2"
    # Whether weight decay acts on w_fp too: it pulls the weights to 0, Eq. 2 their sums to 1.
    config.optimizer.decay_pool = False
    # Gradients whose norm over all parameters is larger are scaled down to it; 0 is off.
    config.optimizer.clip_norm = 0.0
    # The rate, at its highest. Sections 4.1 and 4.2: 0.1.
    config.learning_rate = 0.1
    # onecycle (section 4.1): up to learning_rate over the first 30 % of the steps, then down to
    # almost nothing. cosine: down along a half cosine. warmup_cosine: up in a straight line over
    # warmup_epochs, then down along a half cosine. constant. step: divided by ten at one half and
    # at three quarters of the steps (He et al. 2015).
    config.schedule = "onecycle"
    # For warmup_cosine only.
    config.warmup_epochs = 0

    # Above 0, evaluation uses an exponential moving average of the weights: after each step,
    # average = ema_decay * average + (1 - ema_decay) * weights, from the initial weights on. It
    # covers about the last 1 / (1 - ema_decay) steps. BatchNorm's running statistics are used as
    # they are. Checkpoints, and pool_weights.npz, then hold the averages. 0 is off.
    config.ema_decay = 0.0

    # Share of each label's probability that is spread over all classes in the training loss (label
    # smoothing). The paper has none.
    config.label_smoothing = 0.0

    # What the network computes in, float32 or bfloat16. Parameters, statistics, the pool's
    # weights and the losses are float32 in either case.
    config.dtype = "float32"
    # On a GPU XLA adds some sums in whatever order comes first, so that two runs differ in the last
    # bits. True: in a fixed order, with kernels that are not chosen by their speed; slower. A CPU
    # always gives the same bits. Not for models that pool by the maximum over windows.
    config.deterministic = False
    # Whether batch statistics are averaged over the devices; then a run on eight devices follows
    # the same loss curve as on one. False spares the communication.
    config.sync_batch_norm = True

    # Drawn anew for every image and epoch, on the device. Section 4.2: "random flipping, scaling".
    config.augment = ConfigDict()
    # Mirror left and right with probability one half.
    config.augment.flip = True
    # Resize by a factor from this range, then crop or pad back to size; (1, 1) is off. The paper
    # gives no range.
    config.augment.scale = (0.8, 1.2)
    # Pad by so many pixels on each side and crop back at a random place; 0 is off.
    config.augment.crop = 0
    # Cut out a random part and resize it: its share of the area is from this range, the ratio of
    # its sides from 3/4 to 4/3 (torchvision's RandomResizedCrop, whose range is 0.08,1); in the
    # place of scale and crop. Empty is off. The result has dataset.center_crop pixels a side, or as
    # many as the images have.
    config.augment.random_resized_crop = ()

    # Super classing (section 4.2): train so many epochs on superclasses, then replace the head and
    # train num_epochs on the classes. 0 is off; the paper's value is 10.
    config.superclass = ConfigDict()
    config.superclass.epochs = 0
    # A file that maps classes to superclasses. Empty: the data set's own (cifar100 has them).
    config.superclass.mapping = ""

    # How often the test split is evaluated, and how often the state is saved. A state that is the
    # best so far waits in memory for the next save, and is saved with it.
    config.eval_every_epochs = 1
    config.checkpoint_every_epochs = 1
    # How often a step's losses are written to metrics.jsonl.
    config.log_every_steps = 50
    # Steps that one call hands to the device. 0 chooses: one on CPU; on accelerators about as many
    # as log_every_steps, but not more than take three seconds.
    config.steps_per_dispatch = 0
    # Whether TensorBoard files are written beside metrics.jsonl.
    config.tensorboard = True
    # Where XLA keeps compiled programs between runs; empty: nowhere.
    config.compilation_cache = "~/.cache/flexpool_jax/xla"

    # From here on a misspelt field is an error, not a new field.
    config.lock()
    return apply_variant(config, variant)


def apply_variant(config: ConfigDict, variant: str) -> ConfigDict:
    """Changes a config as the argument after the colon says, and returns it.

    The name of a pool chooses it (`softmax` is flexpool_softmax; without a pool it stays as it is),
    `reg` sets `pool_reg`, `dropout` sets `dropout_rate`, `sac` switches the auxiliary classifiers
    on. FIELD=VALUE sets any field as on the command line; `reg=V` is short for `pool_reg=V`.

    Args:
        config: The config to change in place.
        variant: Words separated by commas, in any order; empty changes nothing.

    Raises:
        UserError: For an unknown word, a field that is set more than once, or a value that its
            field cannot hold. `reg` with a pool that Eq. 2
            cannot constrain is refused by `flexpool_jax.configuration.resolve`.

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
