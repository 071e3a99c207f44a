"""Writes this project's weights as safetensors, and reads them and those of PyTorch ResNets.

This project's files name each array by its path, such as ``params.backbone.stem_conv.kernel``.
Foreign files have the names and layouts of a PyTorch state dict. Three families of them can be
read: the CIFAR ResNets of github.com/akamaster/pytorch_resnet_cifar10 and
github.com/chenyaofo/pytorch-cifar-models, and torchvision's ResNets.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from flexpool_jax import files
from flexpool_jax.errors import UserError, one_line

Variables = Mapping[str, Any]
Arrays = dict[str, np.ndarray]

# The largest number of arrays that an error names for each thing that is wrong with them.
_MAX_NAMED = 5


@dataclasses.dataclass(frozen=True)
class WeightsHeader:
    """Information about a safetensors file, read without its arrays.

    Attributes:
        path: path of the file.
        foreign: whether the arrays have PyTorch's names.
        mean, std: mean and standard deviation of the training images after division by 255, one
            number for each channel; empty if the file does not contain them.
        pool: name of the pool of the model; empty if the file does not contain it.
        has_w_fp: whether the file holds a ``w_fp``.
    """

    path: Path
    foreign: bool
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    pool: str = ""
    has_w_fp: bool = False


def save_weights(
    file: str | os.PathLike[str],
    variables: Variables,
    *,
    mean: Iterable[float] = (),
    std: Iterable[float] = (),
    pool: str = "",
) -> None:
    """Writes a model's variables to a safetensors file.

    Args:
        file: path of the file, in an existing folder; an existing file is replaced as a whole.
        variables: nested dicts of arrays, such as ``{"params": ..., "batch_stats": ...}``.
        mean: mean of the training images after division by 255, one number for each channel; it is
            written to the file's metadata.
        std: standard deviation of the training images after division by 255, one number for each
            channel; it is written to the file's metadata.
        pool: name of the model's pool; it is written to the file's metadata unless it is empty.

    Example:
        >>> import tempfile
        >>> variables = {"params": {"w_fp": np.full((2, 2, 3), 0.25, np.float32)}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(f"{folder}/a.safetensors", variables)
        ...     load_weights(f"{folder}/a.safetensors", variables)["params"]["w_fp"].shape
        (2, 2, 3)
    """
    from flax.traverse_util import flatten_dict

    # Made contiguous, because safetensors writes the memory buffer of an array as it is, and would
    # write a wrong order of elements for any other array.
    arrays = {
        name: np.asarray(array, order="C")
        for name, array in flatten_dict(variables, sep=".").items()
    }
    metadata = {"format": "flexpool_jax"}
    for key, values in (("mean", mean), ("std", std)):
        if numbers := [repr(float(value)) for value in values]:
            metadata[key] = " ".join(numbers)
    if pool:
        metadata["pool"] = pool
    files.write_whole(Path(file), save(arrays, metadata))


def load_weights(
    file: str | os.PathLike[str], variables: Variables, *, pool: str = ""
) -> dict[str, Any]:
    """Loads a safetensors file into a model's variables.

    The file is either this project's own (``--mode=export`` writes ``model.safetensors``) or a
    PyTorch state dict of a ResNet, which ``scripts/convert_torch.py`` makes from a .pt, .pth or .th
    file. Akamaster's and chenyaofo's CIFAR ResNets fit ``resnet20`` to ``resnet110`` (if they have
    projection shortcuts: ``create_model(..., projection_shortcuts=True)``). Torchvision's ResNets
    fit ``resnet18``, ``resnet34`` and ``resnet50`` for images above 64 pixels.

    The arrays of the file must be exactly those of the model, with one exception: if the file has
    no ``w_fp``, the model keeps its initial ``w_fp``. FlexPool is then average pooling, so that a
    network trained with average pooling computes the same logits. Normalise images with the mean
    and standard deviation that the weights were trained with.

    Args:
        file: path of a safetensors file.
        variables: variables of the model, from ``model.init``. If the file has every array, shapes
            from `jax.eval_shape` are enough.
        pool: name of the model's pool. If it is given, a file is refused if it names a pool with
            another constraint, whose ``w_fp`` has the same shape and another meaning; or, without a
            ``w_fp``, another pool. A file of average pooling fits every pool whose ``w_fp`` starts
            as average pooling. Files of PyTorch, and files without the name of a pool, are not
            checked.

    Returns:
        A tree like ``variables``, of NumPy arrays with its dtypes and the values of the file.

    Raises:
        UserError: the file cannot be read or does not fit the model. The message names the two
            pools, or the arrays that are missing, unexpected, not finite or of another shape, up to
            five of each kind and the number of the others.

    Example:
        >>> import jax, jax.numpy as jnp, flexpool_jax
        >>> model = flexpool_jax.create_model("resnet20")
        >>> images = jnp.zeros((1, 32, 32, 3))
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
        >>> flexpool_jax.load_weights("resnet20-12fca82f.safetensors", variables)
        Traceback (most recent call last):
        ...
        flexpool_jax.errors.UserError: resnet20-12fca82f.safetensors: there is no such file
    """
    return _load(file, variables, pool, for_training=False)[0]


def start_from(
    file: str | os.PathLike[str], variables: Variables, *, pool: str = ""
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Loads initial weights for training, as `load_weights` does.

    The model keeps its own initial classifier where that of the file has another number of classes.
    Auxiliary classifiers, which only training uses, may exist in only one of the two, the file or
    the model. The weights ``w_fp`` of the same pool are resampled if the model's feature maps have
    another size.
    Args and errors are those of `load_weights`.

    Returns:
        The variables; the paths of the model's classifiers that were not loaded, such as
        ``head.classifier``; and a text on each ``w_fp`` that was resampled.
    """
    return _load(file, variables, pool, for_training=True)


def read_header(file: str | os.PathLike[str]) -> WeightsHeader:
    """Reads the information in `WeightsHeader` from a safetensors file; imports no JAX.

    Raises:
        UserError: the file does not exist, or is damaged or not a safetensors file.
    """
    return _read(file, with_arrays=False)[0]


def _read(file: str | os.PathLike[str], *, with_arrays: bool) -> tuple[WeightsHeader, Arrays]:
    """Reads the header of a file and, if asked for, its arrays."""
    path = files.expanded(file)
    if not path.exists():
        raise UserError(f"{file}: there is no such file")
    if not path.is_file():
        raise UserError(
            f"{file} is not a file; allowed: a safetensors file, such as export/model.safetensors "
            "in a workdir, which --mode=export writes"
        )
    try:
        with safe_open(path, framework="numpy") as content:
            names, metadata = list(content.keys()), content.metadata() or {}
            arrays = {name: content.get_tensor(name) for name in names} if with_arrays else {}
        if not any(name.startswith("params.") for name in names):
            return WeightsHeader(path, foreign=True), arrays
        mean, std = (tuple(map(float, metadata.get(key, "").split())) for key in ("mean", "std"))
    except Exception as error:  # safetensors raises many types of exceptions for damaged files.
        raise UserError(
            f"{path} is not a safetensors file, or is damaged ({one_line(error)}); "
            "scripts/convert_torch.py makes one of a .pt, .pth or .th file"
        ) from error
    has_w_fp = any(map(_is_w_fp, names))
    return WeightsHeader(path, False, mean, std, metadata.get("pool", ""), has_w_fp), arrays


def _is_w_fp(name: str) -> bool:
    return name.split(".")[-1] == "w_fp"


def _check_pool(header: WeightsHeader, pool: str, for_training: bool) -> None:
    """Checks that a model with this pool computes what the file's pool computed."""
    from flexpool_jax.pools import POOLS, constraint_of, starts_as_average

    # A name that is not registered here is of a user's own pool.
    if header.pool not in POOLS or pool not in POOLS:
        return
    if not header.has_w_fp:
        # Training may start from any pool.
        if for_training or header.pool == pool:
            return
        if header.pool != "avg" or not starts_as_average(pool):
            raise UserError(
                f"{header.path} holds weights that were trained with the pool {header.pool!r}, and "
                f"the model has {pool!r}; allowed: a model with the pool {header.pool!r}"
            )
        return
    found, expected = constraint_of(header.pool), constraint_of(pool)
    if found != expected:
        raise UserError(
            f"{header.path} holds w_fp of the pool {header.pool!r} (constraint {found}), which has "
            f"another meaning in the model's pool {pool!r} (constraint {expected}); allowed: a "
            f"model with the pool {header.pool!r}, or a file of a pool with the model's constraint"
        )


def _load(
    file: str | os.PathLike[str], variables: Variables, pool: str, *, for_training: bool
) -> tuple[dict[str, Any], list[str], list[str]]:
    from flax.traverse_util import flatten_dict, unflatten_dict

    header, arrays = _read(file, with_arrays=True)
    leaves = flatten_dict(variables)
    expected = {".".join(path): leaf for path, leaf in leaves.items()}
    resized: list[str] = []
    _check_pool(header, pool, for_training)
    if for_training and header.pool == pool:
        resized = _resize_pools(arrays, expected, pool)
    titles = {name: name for name in arrays}
    if header.foreign:
        arrays, titles = _from_torch(header.path, arrays, expected)
    loaded: dict[str, Any] = {}
    new: dict[str, None] = {}
    problems: dict[str, list[str]] = {
        "unexpected": [
            titles[name]
            for name in arrays
            if name not in expected and not (for_training and _is_auxiliary(name))
        ],
        "missing": [],
        "misshapen": [],
        "not finite floating-point numbers": [],
    }
    for name, leaf in expected.items():
        array = arrays.get(name)
        is_new = for_training and (
            _is_auxiliary(name) if array is None else _is_other_width(name, arrays, expected)
        )
        # A jax.ShapeDtypeStruct has no values to keep.
        if array is None and _is_w_fp(name) and hasattr(leaf, "__array__"):
            loaded[name] = np.asarray(leaf)
        elif is_new:
            loaded[name] = np.asarray(leaf)
            new[".".join(name.split(".")[1:-1])] = None
        elif array is None:
            remedy = " (to keep its initial value, pass the arrays of model.init instead of shapes)"
            problems["missing"].append(f"{name}{remedy * _is_w_fp(name)}")
        elif array.shape != leaf.shape:
            remedy = " (flexpool_jax.resize_flexpool resamples it)" * _is_w_fp(name)
            found, wanted = (_size(each, in_torch=header.foreign) for each in (array, leaf))
            problems["misshapen"].append(
                f"{titles[name]} is {found}, the model's is {wanted}{remedy}"
            )
        elif not _is_finite(array):
            problems["not finite floating-point numbers"].append(titles[name])
        else:
            loaded[name] = np.asarray(array, leaf.dtype, order="C")
    _refuse_problems(header, pool, problems)
    # Not by the names, because a module's name may contain a dot.
    return unflatten_dict({path: loaded[".".join(path)] for path in leaves}), list(new), resized


def _refuse_problems(
    header: WeightsHeader, pool: str, problems: Mapping[str, Sequence[str]]
) -> None:
    """Raises UserError if there are problems: arrays that do not fit, by the kind of problem."""
    listed = [f"{kind}: {_first_of(names)}" for kind, names in problems.items() if names]
    if not listed:
        return
    named = [name for names in problems.values() for name in names]
    if pool and header.pool not in ("", pool) and any(".pool." in name for name in named):
        listed.append(f"the file is of the pool {header.pool!r}, the model has {pool!r}")
    if max(map(len, problems.values())) > _MAX_NAMED:
        listed.append("the file may be of another model")
    raise UserError(f"{header.path} does not fit the model; {'; '.join(listed)}")


def _resize_pools(arrays: Arrays, expected: Mapping[str, Any], pool: str) -> list[str]:
    """Resamples each ``w_fp`` whose map has another size in the model; describes what was done."""
    from flexpool_jax.pooling import resize_flexpool
    from flexpool_jax.pools import constraint_of

    resized = []
    for name in filter(_is_w_fp, arrays.keys() & expected.keys()):
        old, shape = arrays[name], expected[name].shape
        if old.shape == shape or old.ndim != 3 or old.shape[2] != shape[2] or not _is_finite(old):
            continue
        constraint = constraint_of(pool)
        new = resize_flexpool({"w_fp": old}, like={"w_fp": shape}, constraint=constraint)["w_fp"]
        arrays[name] = np.asarray(new)
        resized.append(f"{name.removeprefix('params.')} from {_size(old)} to {_size(new)}")
    return sorted(resized)


def _first_of(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _is_finite(array: np.ndarray) -> bool:
    # bfloat16 is not one of NumPy's own floating types.
    is_floating = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    with np.errstate(over="ignore"):  # Too large for float32.
        return is_floating and bool(np.isfinite(array.astype(np.float32)).all())


def _is_other_width(name: str, arrays: Arrays, expected: Mapping[str, Any]) -> bool:
    """Whether a leaf is part of a classifier that differs only in the number of classes."""
    owner, _, leaf = name.rpartition(".")
    kernel = f"{owner}.kernel"
    return (
        owner.endswith(".classifier")
        and leaf in ("kernel", "bias")
        and kernel in arrays
        and kernel in expected
        and arrays[kernel].ndim == 2
        and arrays[kernel].shape[0] == expected[kernel].shape[0]
        and arrays[kernel].shape[1] != expected[kernel].shape[1]
    )


def _is_auxiliary(name: str) -> bool:
    return name.startswith("params.aux_head_")


def _size(array: Any, *, in_torch: bool = False) -> str:
    """Returns the shape in words; ``in_torch`` gives that of the array in a PyTorch file."""
    axes = _TORCH_AXES.get(array.ndim) if in_torch else None
    shape = [array.shape[axis] for axis in axes] if axes else array.shape
    return "×".join(map(str, shape)) or "a scalar"


# PyTorch's order of the axes of a convolution's and of a dense layer's kernel.
_TORCH_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}

# PyTorch's names of the leaves of a convolution, a dense layer and a BatchNorm.
_TORCH_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_RESNET_PLACE = re.compile(
    r"(?:params|batch_stats)\."
    r"(?:head\.(?P<classifier>classifier)|backbone\."
    r"(?:(?P<stem>stem)|stage(?P<stage>\d)_block(?P<block>\d+)[_.](?:conv)?(?P<number>\w+?))"
    r"[_.](?P<kind>conv|norm))"
    r"\.(?P<leaf>\w+)"
)


def _from_torch(
    path: Path, arrays: Arrays, expected: Mapping[str, Any]
) -> tuple[Arrays, dict[str, str]]:
    """Converts the arrays of a PyTorch state dict to this project's names and layouts.

    Returns:
        The arrays by the path of the leaf in the model, or by PyTorch's name if the model has no
        such leaf; and PyTorch's name of each.
    """
    places = {_torch_name(name): name for name in expected}
    if "layer1.0.conv1.weight" not in places:
        raise UserError(
            f"{path} does not have this project's names, and PyTorch's are understood for the "
            "ResNets only"
        )
    # torch.nn.DataParallel puts this in front of every name.
    prefix = "module." if all(name.startswith("module.") for name in arrays) else ""
    turned: Arrays = {}
    titles: dict[str, str] = {}
    for title, array in arrays.items():
        if title.endswith(".num_batches_tracked"):
            continue  # PyTorch's BatchNorm counts its batches; nothing is computed from it.
        if array.ndim in _TORCH_AXES:
            array = array.transpose(np.argsort(_TORCH_AXES[array.ndim]))
        # The three families differ in the names of shortcuts and of the last layer.
        name = title.removeprefix(prefix).replace(".shortcut.", ".downsample.")
        name = places.get(re.sub(r"^linear\.", "fc.", name), title)
        name = title if name in turned else name
        turned[name], titles[name] = array, title
    return turned, titles


def _torch_name(name: str) -> str | None:
    """Returns PyTorch's name of a leaf of the ResNets; None if PyTorch has no such leaf.

    Example:
        >>> _torch_name("batch_stats.backbone.stage2_block1_1_norm.var")
        'layer2.0.bn1.running_var'
        >>> _torch_name("params.backbone.stage2_block1.projection.conv.kernel")
        'layer2.0.downsample.0.weight'
    """
    place = _RESNET_PLACE.fullmatch(name)
    if place is None or place["leaf"] not in _TORCH_LEAVES:
        return None
    is_norm = place["kind"] == "norm"
    layer = f"{'bn' if is_norm else 'conv'}{place['number'] or 1}"
    if place["classifier"]:
        layer = "fc"
    elif place["number"] == "projection":
        layer = f"downsample.{int(is_norm)}"
    if place["stage"]:
        layer = f"layer{place['stage']}.{int(place['block']) - 1}.{layer}"
    return f"{layer}.{_TORCH_LEAVES[place['leaf']]}"
