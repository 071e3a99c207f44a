"""Checks a training config: each field, then combinations of fields; fills in the SAC weights."""

import copy
import itertools
import math
import os
import sys
from collections.abc import Iterable, Sequence

from ml_collections import ConfigDict

from flexpool_jax import files
from flexpool_jax.configuration.fields import (
    FIELDS,
    KWARGS,
    check_field,
    definition,
    field_names,
    get_field,
)
from flexpool_jax.configuration.workdir import (
    compare_with_workdir,
    config_path,
    phases_begun,
    read_config,
)
from flexpool_jax.errors import UserError, closest_name
from flexpool_jax.models import registry

# Largest difference of the sum of the weights from 1, for weights that are typed in rounded form.
_SAC_SUM_TOLERANCE = 2e-3

# Number of stages of ResNet20 (section 4.1 of the paper); the default of `sac.weights` is for it.
_STAGES_OF_THE_PAPER = 3


def resolve(config: ConfigDict, *, reads_data: bool = True) -> ConfigDict:
    """Checks a training config, and returns a copy with the SAC weights of its model.

    The type and the value of each field are checked, and that the fields do not contradict each
    other. `check_pool_reg_stability` and `check_batch_size` check what depends on the data and the
    devices.

    If SAC is on and `sac.weights` has its default, the paper's three numbers, it is replaced by
    `default_sac_weights` for the number of stages of the model. So config.json holds the weights
    that are used.

    Args:
        config: A training config with the fields of configs/default.py.
        reads_data: Whether the data set must exist: registered, or prepared under
            `dataset.data_dir`. A trained network can be used without its data set.

    Returns:
        A locked copy of the config.

    Raises:
        UserError: A field is missing, unknown or invalid. The message describes the first mistake:
            the field, its value and the allowed values.

    Example:
        >>> from configs import default
        >>> config = default.get_config("flexpool,sac,model=vgg11")
        >>> config.sac.weights, resolve(config).sac.weights
        ((0.1, 0.2, 0.7), (0.03, 0.06, 0.09, 0.12, 0.7))
        >>> config.learning_rate = -0.1
        >>> resolve(config)
        Traceback (most recent call last):
        ...
        flexpool_jax.errors.UserError: config.learning_rate is -0.1; allowed: a number above 0 and \
at most 1000
    """
    config = ConfigDict(copy.deepcopy(config)).lock()  # Also if it was a FrozenConfigDict.
    names = list(field_names(config))
    _check_names(names)
    # Fields whose check imports JAX are checked last, so that other mistakes are reported quickly.
    for name in sorted(names, key=lambda name: definition(name).imports_jax):
        check_field(name, get_field(config, name))
    paper = registry.default_sac_weights(_STAGES_OF_THE_PAPER)
    if config.sac.enabled and config.sac.weights == paper:
        config.sac.weights = registry.default_sac_weights(registry.num_stages(config.model))
    if reads_data:
        _check_dataset_exists(config.dataset.name, config.dataset.data_dir)
    _check_dataset(config)
    _check_model(config)
    _check_pool(config)
    _check_optimizer(config)
    _check_superclass(config)
    _check_warmup(config)
    return config


def check_pool_reg_stability(config: ConfigDict, shapes: Iterable[Sequence[int]]) -> None:
    """Raises UserError if SGD diverges with this `pool_reg`.

    Along the sum of one channel's weights, Eq. 2 of the paper is a parabola of curvature
    2·H·W·pool_reg. Gradient descent with rate lr = learning_rate · pool_learning_rate_scale and
    momentum μ converges on it only if lr·2·H·W·pool_reg < 2·(1 + μ). Otherwise it oscillates with
    growing amplitude, and the loss is NaN within a few steps. With Nesterov's momentum the right
    side is 2·(1 + μ)/(1 + 2·μ).

    For Adam every value is stable, because the size of its steps does not grow with the gradient.
    For other optimizers nothing is checked, and a message on standard error says so. With SAC the
    largest pooled map decides, which is that of the first stage.

    Args:
        config: A config that `resolve` returned.
        shapes: Shape of every ``w_fp`` that Eq. 2 constrains. Height and width come first, e.g.
            [H, W, C].

    Raises:
        UserError: `pool_reg` is too large. The message contains the largest stable value.

    Example:
        >>> from configs import release_recipe
        >>> config = release_recipe.get_config("flexpool,reg,sac")
        >>> check_pool_reg_stability(config, [(32, 32, 16), (16, 16, 32), (8, 8, 64)])
        Traceback (most recent call last):
        ...
        flexpool_jax.errors.UserError: config.pool_reg is 0.1, which is not stable with SGD: \
with learning_rate 0.05, momentum 0.9 and a pooled map of 32x32, the largest stable value is 0.037
    """
    optimizer = config.optimizer
    if config.pool_reg == 0 or optimizer.name in ("adam", "adamw"):
        return
    if optimizer.name != "sgd":
        print(
            f"config.pool_reg is {config.pool_reg:g} with optimizer {optimizer.name!r}: whether "
            "training with Eq. 2 is stable can be checked only for adam, adamw and sgd",
            file=sys.stderr,
        )
        return
    height, width = max(((shape[0], shape[1]) for shape in shapes), key=math.prod)
    momentum = optimizer.momentum
    scale = config.pool_learning_rate_scale
    bound = (1 + momentum) / (config.learning_rate * scale * height * width)
    if optimizer.get("kwargs", {}).get("nesterov", False):
        bound /= 1 + 2 * momentum
    if config.pool_reg >= bound:
        scaled = "" if scale == 1 else f", pool_learning_rate_scale {scale:g}"
        raise UserError(
            f"config.pool_reg is {config.pool_reg:g}, which is not stable with SGD: with "
            f"learning_rate {config.learning_rate:g}{scaled}, momentum {momentum:g} and a pooled "
            f"map of {height}x{width}, the largest stable value is {_round_down(bound):g}"
        )


def check_batch_size(config: ConfigDict, device_count: int, num_images: int | None = None) -> None:
    """Checks that a batch can be divided evenly, and is not larger than the training split.

    Args:
        config: A config that `resolve` returned.
        device_count: Number of devices that share a batch.
        num_images: Number of training images; None does not check it.

    Raises:
        UserError: The batch cannot be divided evenly over the devices and `grad_accum_steps` parts,
            or is larger than the training split. The message contains possible sizes.

    Example:
        >>> check_batch_size(ConfigDict({"batch_size": 1000, "grad_accum_steps": 1}), 8)
        >>> check_batch_size(ConfigDict({"batch_size": 100, "grad_accum_steps": 1}), 8)
        Traceback (most recent call last):
        ...
        flexpool_jax.errors.UserError: config.batch_size is 100, which 8 devices cannot share \
evenly; allowed: multiples of 8, e.g. 96 or 104
    """
    size, accumulated = config.batch_size, config.grad_accum_steps
    shares = device_count * accumulated
    if size % shares:
        below = size - size % shares
        nearest = f"{below} or {below + shares}" if below else f"{shares}"
        why = f"{device_count} devices cannot share evenly"
        if accumulated > 1:
            why += f" in {accumulated} parts each (grad_accum_steps)"
        if device_count == 1:
            why = f"cannot be divided evenly into {accumulated} parts (grad_accum_steps)"
        raise UserError(
            f"config.batch_size is {size}, which {why}; allowed: multiples of {shares}, e.g. "
            f"{nearest}"
        )
    if num_images is not None and size > num_images:
        raise UserError(
            f"config.batch_size is {size}, more than the {num_images} training images; "
            f"allowed: at most {num_images}"
        )


def resolve_training_files(
    config: ConfigDict, workdir: str | os.PathLike[str] | None = None
) -> None:
    """Checks the files that only training reads: initial weights and superclasses.

    If `dataset.mean` and `dataset.std` are empty, and the file of `init_from` contains the mean and
    standard deviation of its training images, both fields are set to these numbers. A run that has
    begun does not need the file of `init_from`, and its fields are those of the workdir's config;
    after its phase on superclasses it does not need their file either.

    Args:
        config: A config that `resolve` returned.
        workdir: The folder of the run, which need not exist; None for a run that has not begun.

    Raises:
        UserError: The file of superclasses or of initial weights does not exist or cannot be read;
            neither the config nor the file contains the normalisation for these weights, or they
            contradict each other.
    """
    if (
        workdir is not None
        and config_path(workdir).is_file()
        and any(begun := phases_begun(config, workdir))
    ):
        _copy_normalisation(config, read_config(workdir))
        if begun[-1]:
            return
    elif config.init_from:
        _check_initial_weights(config)
    mapping = config.superclass.mapping
    if mapping and not files.expanded(mapping).is_file():
        raise UserError(f"config.superclass.mapping is {mapping!r}, and there is no such file")


def config_of_run(
    workdir: str | os.PathLike[str], config: ConfigDict | None = None, *, reads_data: bool = False
) -> ConfigDict:
    """Returns the resolved config with which a checkpoint of a run is used.

    Args:
        workdir: The folder of the run.
        config: Config to use instead of the workdir's; it must describe the same model and data.
        reads_data: See `resolve`.

    Raises:
        UserError: The workdir has no config.json, or the config is wrong or describes another run.
    """
    saved = read_config(workdir)
    config = resolve(saved if config is None else config, reads_data=reads_data)
    _copy_normalisation(config, saved)
    compare_with_workdir(config, saved)
    return config


def _copy_normalisation(config: ConfigDict, saved: ConfigDict) -> None:
    """Sets an empty normalisation to that which training took from the file of `init_from`."""
    if config.init_from and not config.dataset.mean:
        config.dataset.mean, config.dataset.std = saved.dataset.mean, saved.dataset.std


def _check_names(names: Sequence[str]) -> None:
    """Raises UserError if a field is unknown or missing, or if the config is that of a sweep."""
    if {"datasets", "seeds"} <= set(names):
        raise UserError("--config describes a sweep of many runs; --mode=sweep runs it")
    for name in names:
        if name not in FIELDS and name.rpartition(".")[0] != KWARGS:
            match = closest_name(name, FIELDS)
            hint = f"; did you mean config.{match}?" if match else ""
            raise UserError(f"unknown field config.{name}{hint} (see configs/default.py)")
    missing = [f"config.{name}" for name in FIELDS if name not in names]
    if missing:
        raise UserError(f"the config has no {', '.join(missing)}; start from configs/default.py")


def _check_dataset(config: ConfigDict) -> None:
    dataset, augment = config.dataset, config.augment
    if dataset.center_crop > dataset.image_size:
        raise UserError(
            f"config.dataset.center_crop is {dataset.center_crop} with image_size "
            f"{dataset.image_size}; allowed: at most image_size, which must not be 0 then"
        )
    if dataset.resize == "crop" and not dataset.image_size:
        raise UserError(
            "config.dataset.resize is 'crop' with image_size 0; allowed: a size, e.g. "
            "--config.dataset.image_size=256"
        )
    if augment.random_resized_crop and (augment.scale != (1, 1) or augment.crop):
        raise UserError(
            f"config.augment.random_resized_crop is {augment.random_resized_crop!r} beside scale "
            f"{augment.scale!r} and crop {augment.crop}; allowed: scale (1, 1) and crop 0 with it"
        )
    if len(dataset.mean) != len(dataset.std):
        raise UserError(
            f"config.dataset.mean is {dataset.mean!r} and config.dataset.std is {dataset.std!r}; "
            "allowed: as many numbers in both, one for each channel, or none"
        )


def _check_dataset_exists(name: str, data_dir: str) -> None:
    """Raises UserError if a data set is neither registered nor prepared under data_dir by TFDS."""
    # Imported here, because it imports NumPy.
    from flexpool_jax.data import DATASETS, load

    folder, root = name.partition("/")[0].partition(":")[0], files.expanded(data_dir)
    if name not in DATASETS and not (root / folder).is_dir():
        error = load.unknown_dataset(name, root)
        raise type(error)(f"config.dataset.name: {error}")


def _check_model(config: ConfigDict) -> None:
    build = registry.MODELS["resnet20"].build
    cifar_resnets = [name for name, entry in registry.MODELS.items() if entry.build == build]
    for name in registry.CIFAR_OPTIONS:
        if config[name] and config.model not in cifar_resnets:
            raise UserError(
                f"config.{name} is True with model {config.model!r}; allowed: False, or one "
                f"of {', '.join(cifar_resnets)}"
            )
    if config.freeze and not config.init_from:
        raise UserError(
            f"config.freeze is {config.freeze!r} without init_from, so that random weights would "
            "stay as they are; allowed: a file in config.init_from, or freeze empty"
        )
    if config.sac.enabled:
        _check_sac_weights(config.model, config.sac.weights)


def _check_pool(config: ConfigDict) -> None:
    if config.pool_reg == 0 and config.pool_learning_rate_scale == 1:
        return
    # Imported when there is something to check, since it imports JAX.
    from flexpool_jax import pools

    has_weights = pools.has_weights(config.pool)
    if config.pool_reg != 0 and not pools.regularizer_applies(config.pool):
        why = (
            "whose softmax makes every channel's weights sum to 1 already (Eq. 2)"
            if has_weights
            else "which has no weights for Eq. 2 to constrain"
        )
        raise UserError(
            f"config.pool_reg is {config.pool_reg:g} with pool {config.pool!r}, {why}; "
            "allowed: pool_reg 0 (a variant without reg), or a pool that Eq. 2 acts on, e.g. "
            "'flexpool'"
        )
    if config.pool_learning_rate_scale != 1 and not has_weights:
        raise UserError(
            f"config.pool_learning_rate_scale is {config.pool_learning_rate_scale:g} with pool "
            f"{config.pool!r}, which has no weights, so that it has no effect; allowed: 1, or "
            "another pool, e.g. 'flexpool'"
        )


def _check_optimizer(config: ConfigDict) -> None:
    """Builds the optimizer as training does, to check that Optax accepts its keywords."""
    optimizer = config.optimizer
    kwargs = dict(optimizer.get("kwargs", {}))
    if optimizer.name == "sgd" and "decay" in kwargs:
        raise UserError(
            f"config.{KWARGS}.decay is SGD's momentum; set config.optimizer.momentum instead"
        )
    # Imported here, since it imports JAX.
    from flexpool_jax.optimizer import make_optimizer

    try:
        make_optimizer(optimizer.name, lambda step: config.learning_rate, kwargs=kwargs)
    except UserError as error:
        field = KWARGS if kwargs else "optimizer.name"
        raise UserError(f"config.{field}: {error}") from error


def _check_warmup(config: ConfigDict) -> None:
    warmup = config.warmup_epochs
    if warmup and config.schedule != "warmup_cosine":
        raise UserError(
            f"config.warmup_epochs is {warmup} with schedule {config.schedule!r}, where it has no "
            "effect; allowed: 0, or schedule 'warmup_cosine'"
        )
    epochs = min(config.num_epochs, config.superclass.epochs or config.num_epochs)
    if warmup >= epochs:
        raise UserError(
            f"config.warmup_epochs is {warmup}, but there are {epochs} epochs; allowed: fewer"
        )


def _check_sac_weights(model: str, weights: tuple[float, ...]) -> None:
    """Checks the weights of Eq. 3: one per stage, positive, increasing, and with the sum 1.

    The paper requires λ1 < λ2 < ...; this project also requires the sum 1, so that the loss is a
    weighted mean of the stage losses.
    """
    num_stages = registry.num_stages(model)
    if num_stages < 2:
        raise UserError(
            f"config.sac.enabled is True, but {model} has one stage, so that there is no auxiliary "
            "classifier to add; allowed: False"
        )
    given = f"config.sac.weights is {weights!r}"
    example = ",".join(f"{weight:.4g}" for weight in registry.default_sac_weights(num_stages))
    allowed = (
        f"allowed: {num_stages} positive numbers, strictly increasing, that sum to 1 (Eq. 3), "
        f"e.g. --config.sac.weights={example}"
    )
    if len(weights) != num_stages:
        raise UserError(f"{given}, but {model} has {num_stages} stages; {allowed}")
    if weights[0] <= 0 or any(a >= b for a, b in itertools.pairwise(weights)):
        raise UserError(f"{given}; {allowed}")
    if abs(sum(weights) - 1) > _SAC_SUM_TOLERANCE:
        raise UserError(f"{given}, which sum to {sum(weights):g}; {allowed}")


def _check_initial_weights(config: ConfigDict) -> None:
    # Imported here, because it takes long.
    import numpy as np

    from flexpool_jax.models.weights import read_header

    try:
        header = read_header(config.init_from)
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from error
    if config.dataset.mean:
        for name in ("mean", "std"):
            given, saved = config.dataset[name], getattr(header, name)
            is_same = len(given) == len(saved) and np.allclose(given, saved, rtol=0, atol=1e-3)
            if saved and not is_same:
                raise UserError(
                    f"config.dataset.{name} is {given}, but the weights in {header.path} were "
                    f"trained with {saved}; give --config.dataset.mean= --config.dataset.std= and "
                    "the file's numbers are used"
                )
        return
    if not header.mean:
        origin = "is not of this project and" if header.foreign else "was saved without it and"
        raise UserError(
            f"config.init_from: {header.path} {origin} does not say how images were normalised for "
            "its weights; with another normalisation the accuracy would be wrong without a sign of "
            "it. Give the mean and deviation of images / 255 that its source names, e.g. "
            "--config.dataset.mean=0.485,0.456,0.406 --config.dataset.std=0.229,0.224,0.225"
        )
    try:
        for name in ("mean", "std"):
            check_field(f"dataset.{name}", getattr(header, name))
    except UserError as error:
        raise UserError(f"config.init_from: in {header.path}, {error}") from error
    config.dataset.mean, config.dataset.std = header.mean, header.std


def _check_superclass(config: ConfigDict) -> None:
    epochs, mapping = config.superclass.epochs, config.superclass.mapping
    if mapping and not epochs:
        raise UserError(
            f"config.superclass.mapping is {mapping!r}, but superclass.epochs is 0, so that it has "
            "no effect; allowed: superclass.epochs above 0, or no mapping"
        )
    if not epochs:
        return
    from flexpool_jax.data.registry import has_superclasses

    if not mapping and not has_superclasses(config.dataset.name):
        raise UserError(
            f"config.superclass.epochs is {epochs}, but {config.dataset.name} has no superclasses "
            "of its own; allowed: 0, or a file in config.superclass.mapping"
        )


def _round_down(value: float) -> float:
    """Returns the largest number with two significant digits below a positive value."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.floor(value * (1 - 1e-9) / unit) * unit
