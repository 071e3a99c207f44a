"""Backbones by name. The names can be listed without importing JAX, to check a command line early.

A backbone is a Flax module that maps images to named stage maps,
``{"stage1": [B, H1, W1, C1], "stage2": ..., ...}``, first stage first. Everything after the
backbone (pools, dropout, classifiers, SAC) is `flexpool_jax.models.classifier.Classifier`.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from flexpool_jax import errors
from flexpool_jax.registration import is_same_definition, resolve

if TYPE_CHECKING:
    from flax import linen as nn


@dataclasses.dataclass(frozen=True)
class Entry:
    """The entry of a backbone in the registry.

    Attributes:
        build: Function or module class that builds the backbone; or the text ``"module:name"``,
            with a module in ``flexpool_jax.models``.
        num_stages: Number of stage maps that the backbone returns.
        head_features: Widths of hidden dense layers between the pooled vector and the classifier.
        fields: Keyword arguments that ``build`` is always called with.
    """

    build: str | Callable[..., nn.Module]
    num_stages: int
    head_features: tuple[int, ...] = ()
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _resnet_cifar(depth: int) -> Entry:
    return Entry("resnet_cifar:ResNetCifar", 3, fields={"blocks_per_stage": (depth - 2) // 6})


def _resnet(*blocks: int, **fields: Any) -> Entry:
    return Entry("resnet:ResNet", 4, fields={"blocks_per_stage": blocks, **fields})


def _vgg(*convs: int) -> Entry:
    # The hidden layers are those of the authors' release (and of Simonyan & Zisserman 2015).
    return Entry("vgg:VGG", 5, head_features=(4096, 4096), fields={"convs_per_stage": convs})


#: All backbones by name, those of `register_model` included. The module of each backbone of this
#: project names its paper.
MODELS: dict[str, Entry] = {
    "resnet20": _resnet_cifar(20),
    "resnet32": _resnet_cifar(32),
    "resnet44": _resnet_cifar(44),
    "resnet56": _resnet_cifar(56),
    "resnet110": _resnet_cifar(110),
    "resnet18": _resnet(2, 2, 2, 2),
    "resnet34": _resnet(3, 4, 6, 3),
    "resnet50": _resnet(3, 4, 6, 3, bottleneck=True),
    "vgg11": _vgg(1, 1, 2, 2, 2),
    "vgg13": _vgg(2, 2, 2, 2, 2),
    "vgg16": _vgg(2, 2, 3, 3, 3),
    "vgg19": _vgg(2, 2, 4, 4, 4),
    "inception": Entry("inception:Inception", 3),
}

#: Options of the CIFAR ResNets; the config has fields with the same names.
CIFAR_OPTIONS = ("norm_after_relu", "projection_shortcuts")


def register_model(
    name: str, *, num_stages: int, head_features: tuple[int, ...] = ()
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Registers a function that builds a backbone under a name that configs may use.

    Args:
        name: name of the backbone for ``config.model`` and `create_model`.
        num_stages: number of stage maps that the backbone returns; SAC needs one weight for each.
        head_features: widths of hidden dense layers between the pooled vector and the classifier.

    Returns:
        A decorator for ``build(*, dtype, norm_axis_name, **options) -> flax.linen.Module``.
        ``dtype`` is the compute dtype, ``norm_axis_name`` the pmapped axis over which batch
        statistics are to be synchronised (or None), and ``options`` are the ``**options`` of
        `create_model`. The module is called as ``backbone(images, train=bool)``.

    Raises:
        UserError: another function already has the name, an argument is invalid, or the function
            does not take ``dtype`` and ``norm_axis_name``. Registering the same function again is
            allowed, for example when a notebook's cell is run twice.

    Example:
        >>> from flax import linen as nn
        >>> class OneConv(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, images, train):
        ...         return {"stage1": nn.relu(nn.Conv(8, (3, 3))(images))}
        >>> @register_model("one_conv", num_stages=1)
        ... def one_conv(*, dtype, norm_axis_name):
        ...     return OneConv()
    """
    if isinstance(num_stages, bool) or not isinstance(num_stages, int) or num_stages < 1:
        raise errors.UserError(f"num_stages is {num_stages!r}; allowed: a whole number from 1")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise errors.UserError(
            f"a model's name is {name!r}; allowed: letters, digits, underscore, dot and hyphen"
        )

    def register(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        try:
            inspect.signature(build).bind_partial(dtype=None, norm_axis_name=None)
        except TypeError as error:
            raise errors.UserError(
                f"the builder of model {name!r}: {error}; allowed: a function "
                "build(*, dtype, norm_axis_name) that returns a flax.linen.Module"
            ) from None
        except ValueError:  # Functions written in C may have no signature.
            pass
        if name in MODELS and not is_same_definition(MODELS[name].build, build):
            raise errors.UserError(f"a model named {name!r} is registered already")
        MODELS[name] = Entry(build, num_stages, head_features)
        return build

    return register


def _entry(name: str) -> Entry:
    if name not in MODELS:
        raise errors.unknown_name("model", name, MODELS)
    return MODELS[name]


def num_stages(name: str) -> int:
    """Number of stage maps of a model; with SAC, each stage has a classifier.

    Raises:
        UserError: no model has that name.
    """
    return _entry(name).num_stages


def default_sac_weights(num_stages: int) -> tuple[float, ...]:
    """Default weights of the stage losses in Eq. 3 of the paper, for any number of stages.

    The last stage, whose classifier predicts, has weight 0.7. The earlier stages share 0.3 in
    proportion 1 : 2 : 3 : …. For three stages these are the paper's weights (0.1, 0.2, 0.7),
    section 4.1. For every number of stages the weights strictly increase and sum to 1.

    Args:
        num_stages: number of stages n, at least 1; see the function `num_stages`.

    Returns:
        The weights λ1 < λ2 < … < λn, first stage first.

    Raises:
        ValueError: num_stages is below 1.

    Example:
        >>> default_sac_weights(3), default_sac_weights(5)
        ((0.1, 0.2, 0.7), (0.03, 0.06, 0.09, 0.12, 0.7))
    """
    if num_stages < 1:
        raise ValueError(f"a model has at least one stage; got num_stages={num_stages}")
    if num_stages == 1:
        return (1.0,)
    parts = num_stages * (num_stages - 1) / 2
    # Rounded, so that the result is 0.1 and not 0.09999999999999999.
    return (*(round(0.3 * part / parts, 12) for part in range(1, num_stages)), 0.7)


def create_model(
    name: str,
    num_classes: int = 10,
    pool: str = "flexpool",
    sac: bool = False,
    dropout_rate: float = 0.0,
    *,
    dtype: Any = None,
    norm_axis_name: str | None = None,
    **options: Any,
) -> nn.Module:
    """Creates a classifier: the named backbone, a global pool, dropout and a dense layer.

    ``model.apply(variables, images, train=False)`` maps images ``[B, H, W, C]`` (normalised,
    floating) to logits ``[B, num_classes]``, float32 at least. With ``sac=True`` and ``train=True``
    the logits of the auxiliary classifiers are sown into the collection ``aux_logits``, first stage
    first; at evaluation they are not computed.

    Args:
        name: name of the backbone, one of `MODELS`.
        num_classes: number of classes, the width of the logits.
        pool: name of the pool, one of `flexpool_jax.pools.POOLS`; each classifier has its own
            pool.
        sac: whether each stage except the last has an auxiliary classifier (the paper, section
            3.2).
        dropout_rate: probability of dropout on each pooled vector, before its classifier (the
            paper, section 4.4.1: 0.25).
        dtype: compute dtype, float32 by default; parameters and statistics are always float32.
        norm_axis_name: pmapped axis over which BatchNorm statistics are synchronised; None for
            none.
        **options: keyword arguments of the backbone, such as `CIFAR_OPTIONS` of the CIFAR ResNets.

    Returns:
        A Flax module with collections ``params`` and ``batch_stats``.

    Raises:
        UserError: the model or pool is unknown, a number is out of range, the backbone does not
            have an option, or the builder does not return a Flax module. Calling the model raises
            UserError if the backbone does not return ``num_stages`` named stage maps.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = create_model("resnet20", num_classes=10, pool="flexpool", sac=True)
        >>> images = jnp.zeros((1, 32, 32, 3))
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
        >>> variables["params"]["head"]["pool"]["w_fp"].shape
        (8, 8, 64)
    """
    import jax.numpy as jnp
    from flax import linen as nn

    from flexpool_jax.models.classifier import Classifier
    from flexpool_jax.pools import POOLS

    entry = _entry(name)
    if num_classes < 1:
        raise errors.UserError(f"num_classes is {num_classes}; allowed: a whole number from 1")
    if not 0 <= dropout_rate < 1:
        raise errors.UserError(f"dropout_rate is {dropout_rate}; allowed: 0 or more, below 1")
    if pool not in POOLS:
        raise errors.unknown_name("pool", pool, POOLS)
    build = resolve(entry.build, "flexpool_jax.models")
    dtype = jnp.dtype(dtype or jnp.float32)
    try:
        backbone = build(dtype=dtype, norm_axis_name=norm_axis_name, **entry.fields, **options)
    except TypeError as error:
        if not options:
            raise
        raise errors.UserError(
            f"model {name!r} does not take these options: {options} ({error})"
        ) from error
    if not isinstance(backbone, nn.Module):
        raise errors.UserError(
            f"the builder of model {name!r} must return a flax.linen.Module; got "
            f"{type(backbone).__name__}"
        )
    return Classifier(
        backbone=backbone,
        backbone_name=name,
        num_stages=entry.num_stages,
        num_classes=num_classes,
        pool=pool,
        sac=sac,
        dropout_rate=dropout_rate,
        hidden_features=entry.head_features,
        dtype=dtype,
    )
