"""Backbones by name. Listing the names imports no JAX, so that a command line can check them first.

A backbone is a Flax module that maps images to its named stage maps,
``{"stage1": [B, H1, W1, C1], "stage2": ..., ...}`` in order from first to last; everything after
that (pools, dropout, classifiers, SAC) is `flexpool_jax.models.classifier.Classifier`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from flexpool_jax import errors
from flexpool_jax.registration import is_same_definition, resolve

if TYPE_CHECKING:
    from flax import linen as nn


@dataclasses.dataclass(frozen=True)
class Entry:
    """A backbone by name.

    Attributes:
        build: What builds it, a function or a module class; or where it is, ``"module:name"``.
        num_stages: How many stage maps it returns.
        head_features: Widths of hidden dense layers between the pooled vector and the classifier.
        fields: What ``build`` is always called with.
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


#: Every backbone by name, registered ones included. The modules name the papers of ours.
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

#: Options of the CIFAR ResNets that are fields of a config by the same name.
CIFAR_OPTIONS = ("norm_after_relu", "projection_shortcuts")


def register_model(
    name: str, *, num_stages: int, head_features: tuple[int, ...] = ()
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Registers a function that builds a backbone under a name that configs may use.

    Args:
        name: what ``config.model`` and `create_model` call it.
        num_stages: how many stage maps the backbone returns; SAC needs one weight for each.
        head_features: widths of hidden dense layers between the pooled vector and the classifier.

    Returns:
        A decorator for ``build(*, dtype, norm_axis_name, **options) -> flax.linen.Module``.
        ``dtype`` is the compute dtype, ``norm_axis_name`` the pmapped axis over which batch
        statistics are to be synchronised (or None), and ``options`` are `create_model`'s remaining
        keywords. The module is called as ``backbone(images, train=bool)``.

    Raises:
        UserError: the name is taken by another function, or an argument is not what it should be.
            The same function may come again, as when a notebook's cell is run twice.

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
    if not isinstance(name, str) or not name.strip():
        raise errors.UserError(f"a model's name is {name!r}; allowed: a text that is not empty")

    def register(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        if not callable(build):
            raise errors.UserError(
                f"model {name!r} is registered with {build!r}; allowed: a function "
                "build(*, dtype, norm_axis_name) that returns a flax.linen.Module"
            )
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
    """How many stage maps, and so classifiers with SAC, the model of that name has.

    Raises:
        UserError: unknown name.
    """
    return _entry(name).num_stages


def default_sac_weights(num_stages: int) -> tuple[float, ...]:
    """The weights of Eq. 3 for any number of stages: 0.7 for the last, 0.3 for those before it.

    The earlier ones share their 0.3 in proportion 1 : 2 : 3 : …, which gives the paper's (0.1, 0.2,
    0.7) for three stages (section 4.1), and for every number of them weights that strictly
    increase and sum to 1, most of it on the classifier that predicts.

    Args:
        num_stages: n, at least 1; a model's is `num_stages`.

    Returns:
        λ1 < λ2 < … < λn, first stage first.

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
    # Rounded, so that 0.1 is 0.1 and not 0.09999999999999999.
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
    """A classifier: the backbone of that name, a global pool, dropout and a dense layer.

    ``model.apply(variables, images, train=False)`` maps images ``[B, H, W, C]`` (normalised,
    floating) to logits ``[B, num_classes]`` in float32. With ``sac=True`` and ``train=True`` the
    logits of the auxiliary classifiers are sown into the collection ``aux_logits``, first stage
    first; at evaluation they are not computed.

    Args:
        name: one of `MODELS`.
        num_classes: width of the logits.
        pool: one of `flexpool_jax.pooling.POOLS`; every classifier has one of its own.
        sac: attach an auxiliary classifier to every stage but the last (the paper, section 3.2).
        dropout_rate: on each pooled vector, ahead of its classifier (the paper, section 4.4.1:
            0.25).
        dtype: compute dtype, float32 by default; parameters and statistics are float32 throughout.
        norm_axis_name: pmapped axis over which BatchNorm statistics are synchronised; None for
            none.
        **options: the backbone's own, such as `CIFAR_OPTIONS` of the CIFAR ResNets.

    Returns:
        A Flax module with collections ``params`` and ``batch_stats``.

    Raises:
        UserError: unknown model or pool, a number out of range, an option that the backbone does
            not have, or a builder that does not return a Flax module. Calling the model raises it
            where the backbone does not return what `register_model` says.

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
    from flexpool_jax.pooling import POOLS

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
