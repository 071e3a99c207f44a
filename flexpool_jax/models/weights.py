"""Reads and writes weights as safetensors: this project's own, and those of PyTorch's ResNets.

Own files name each array by its path, ``params.backbone.stem_conv.kernel``. Foreign ones have the
names and layouts of a PyTorch state dict, for three families: the CIFAR ResNets of
github.com/akamaster/pytorch_resnet_cifar10 and github.com/chenyaofo/pytorch-cifar-models, and
torchvision's ResNets.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flexpool_jax import files
from flexpool_jax.errors import UserError, one_line

Variables = Mapping[str, Any]
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Header:
    """What a safetensors file says without its arrays being read.

    Attributes:
        path: of the file.
        foreign: whether the names are PyTorch's.
        mean: of images / 255 that the weights were trained with, per channel; empty if not said.
        std: likewise their standard deviation.
    """

    path: Path
    foreign: bool
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def save_weights(
    file: str | os.PathLike[str],
    variables: Variables,
    *,
    mean: Iterable[float] = (),
    std: Iterable[float] = (),
) -> None:
    """Writes a model's variables to a safetensors file.

    Args:
        file: its path, in an existing folder; an existing file is replaced as a whole.
        variables: nested dicts of arrays, such as ``{"params": ..., "batch_stats": ...}``.
        mean: of images / 255 that the weights were trained with, one number a channel; kept in the
            file's metadata.
        std: likewise their standard deviation.

    Example:
        >>> import tempfile
        >>> variables = {"params": {"w_fp": np.full((2, 2, 3), 0.25, np.float32)}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(f"{folder}/a.safetensors", variables)
        ...     load_weights(f"{folder}/a.safetensors", variables)["params"]["w_fp"].shape
        (2, 2, 3)
    """
    from flax.traverse_util import flatten_dict
    from safetensors.numpy import save

    # safetensors writes the buffer as it lies, which for an array that is not contiguous is wrong.
    arrays = {
        name: np.asarray(array, order="C")
        for name, array in flatten_dict(variables, sep=".").items()
    }
    metadata = {"format": "flexpool_jax"}
    for key, values in (("mean", mean), ("std", std)):
        if numbers := [repr(float(value)) for value in values]:
            metadata[key] = " ".join(numbers)
    files.write_whole(Path(file), save(arrays, metadata))


def load_weights(file: str | os.PathLike[str], variables: Variables) -> dict[str, Any]:
    """Loads a safetensors file into a model's variables.

    The file is this project's own (``--mode=export`` writes ``model.safetensors``), or a PyTorch
    state dict of a ResNet, which ``scripts/convert_torch.py`` makes of a .pt, .pth or .th file:
    akamaster's and chenyaofo's CIFAR ResNets for ``resnet20`` to ``resnet110`` (with projection
    shortcuts for ``create_model(..., projection_shortcuts=True)``), torchvision's for ``resnet18``,
    ``resnet34`` and ``resnet50`` on images above 64 pixels.

    Every array must have its place and every place its array, with one exception: a ``w_fp`` that
    the file lacks keeps its start value, with which FlexPool is average pooling, so that a network
    that was trained with average pooling gives the same logits. Images must be normalised as they
    were when the weights were trained.

    Args:
        file: path of a safetensors file.
        variables: from ``model.init``, of the model that the weights are for. Shapes alone, from
            `jax.eval_shape`, are enough if the file lacks none.

    Returns:
        The same tree with the file's values: float32 NumPy arrays.

    Raises:
        UserError: the file cannot be read; or it does not fit: everything that is missing,
            unexpected, misshapen or not finite is named.

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
    return _load(file, variables, new_classifiers=False)[0]


def start_from(
    file: str | os.PathLike[str], variables: Variables
) -> tuple[dict[str, Any], list[str]]:
    """Loads weights for a model that is going to be trained, as `load_weights` does.

    A classifier for another number of classes is left out, and the model's own stays.

    Returns:
        The variables, and the paths of the classifiers that stayed, such as ``head.classifier``.
    """
    return _load(file, variables, new_classifiers=True)


def read_header(file: str | os.PathLike[str]) -> Header:
    """Reads whose names a safetensors file has, and the normalisation it names; imports no JAX.

    Raises:
        UserError: there is no such file, or it is not a safetensors file.
    """
    from safetensors import safe_open

    path = _check_file(file)
    try:
        with safe_open(path, framework="numpy") as content:
            names, metadata = list(content.keys()), content.metadata() or {}
    except Exception as error:  # safetensors has an exception of its own for each kind of damage.
        raise _not_safetensors(path, error) from error
    if _is_foreign(names):
        return Header(path, foreign=True)
    try:
        mean, std = (tuple(map(float, metadata.get(key, "").split())) for key in ("mean", "std"))
    except ValueError as error:
        raise _not_safetensors(path, error) from error
    return Header(path, False, mean, std)


def _check_file(file: str | os.PathLike[str]) -> Path:
    path = files.expanded(file)
    if not path.exists():
        raise UserError(f"{file}: there is no such file")
    if not path.is_file():
        raise UserError(f"{file} is not a file; allowed: a safetensors file")
    return path


def _not_safetensors(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is not a safetensors file, or is damaged ({one_line(error)}); "
        "scripts/convert_torch.py makes one of a .pt, .pth or .th file"
    )


def _is_foreign(names: Iterable[str]) -> bool:
    return not any(name.startswith("params.") for name in names)


def _load(
    file: str | os.PathLike[str], variables: Variables, *, new_classifiers: bool
) -> tuple[dict[str, Any], list[str]]:
    from flax.traverse_util import flatten_dict, unflatten_dict
    from safetensors.numpy import load_file

    path = _check_file(file)
    try:
        arrays = load_file(path)
    except Exception as error:  # As in `read_header`.
        raise _not_safetensors(path, error) from error
    expected = flatten_dict(variables, sep=".")
    place_of = {name: name for name in expected}
    if _is_foreign(arrays):
        arrays, place_of = _from_torch(path, arrays, expected)
    placed: Arrays = {}
    titles: dict[str, str] = {}
    unexpected = []
    for title, array in arrays.items():
        name = place_of.get(title)
        if name is None or name in placed:
            unexpected.append(title)
        else:
            placed[name], titles[name] = array, title
    loaded, new, problems = _match(placed, titles, expected, new_classifiers)
    listed = [
        f"{kind}: {', '.join(names)}"
        for kind, names in {"unexpected": unexpected, **problems}.items()
        if names
    ]
    if listed:
        raise UserError(f"{path} does not fit the model; {'; '.join(listed)}")
    return unflatten_dict(loaded, sep="."), new


def _match(
    arrays: Arrays, titles: Mapping[str, str], expected: Mapping[str, Any], new_classifiers: bool
) -> tuple[dict[str, Any], list[str], dict[str, list[str]]]:
    """Compares arrays with the leaves they are for.

    Args:
        arrays: by the path of the leaf that each is for.
        titles: the file's name of each.
        expected: the model's leaves by their paths.
        new_classifiers: whether a classifier of another width is left out.

    Returns:
        The loaded leaves, the paths of the classifiers that were left out, and what does not fit.
    """
    loaded: dict[str, Any] = {}
    new: list[str] = []
    problems: dict[str, list[str]] = {
        "missing": [],
        "misshapen": [],
        "not finite floating-point numbers": [],
    }
    for name, leaf in expected.items():
        array = arrays.get(name)
        if array is None:
            loaded[name] = np.asarray(leaf)
            if name.split(".")[-1] != "w_fp":
                problems["missing"].append(name)
        elif array.shape != leaf.shape:
            owner = ".".join(name.split(".")[1:-1])
            if new_classifiers and _is_other_width(name, arrays, expected):
                loaded[name] = np.asarray(leaf)
                new += [owner] if owner not in new else []
                continue
            remedy = " (flexpool_jax.resize_flexpool resamples it)" * name.endswith(".w_fp")
            problems["misshapen"].append(
                f"{titles[name]} is {_size(array)}, the model's is {_size(leaf)}{remedy}"
            )
        elif not _is_finite(array):
            problems["not finite floating-point numbers"].append(titles[name])
        else:
            loaded[name] = np.asarray(array, leaf.dtype, order="C")
    return loaded, new, problems


def _is_finite(array: np.ndarray) -> bool:
    # NumPy does not count bfloat16 among its floating types.
    is_floating = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return is_floating and bool(np.isfinite(array.astype(np.float32)).all())


def _is_other_width(name: str, arrays: Arrays, expected: Mapping[str, Any]) -> bool:
    """Whether a leaf is of a classifier that differs from the model's in its classes alone."""
    owner, _, leaf = name.rpartition(".")
    kernel = f"{owner}.kernel"
    return (
        owner.endswith(".classifier")
        and leaf in ("kernel", "bias")
        and kernel in arrays
        and kernel in expected
        and arrays[kernel].ndim == 2
        and arrays[kernel].shape[0] == expected[kernel].shape[0]
    )


def _size(array: Any) -> str:
    return "×".join(map(str, array.shape)) or "a scalar"


# What PyTorch calls the leaves of a convolution, a dense layer or a BatchNorm.
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
    """Turns a PyTorch state dict into this project's layouts.

    Returns:
        The arrays by PyTorch's names, and the place of each name that has one.
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
    place_of = {}
    for title, array in arrays.items():
        if title.endswith(".num_batches_tracked"):
            continue  # PyTorch's BatchNorm counts its batches; nothing is computed from it.
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        elif array.ndim == 2:
            array = array.T
        turned[title] = array
        # The collections differ in these two names.
        name = title.removeprefix(prefix).replace(".shortcut.", ".downsample.")
        name = re.sub(r"^linear\.", "fc.", name)
        if name in places:
            place_of[title] = places[name]
    return turned, place_of


def _torch_name(name: str) -> str | None:
    """What PyTorch calls a leaf of the ResNets; None for leaves that it does not have.

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
