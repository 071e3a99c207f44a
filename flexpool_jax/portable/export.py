"""Writes a trained network as a folder that runs without this project.

The folder holds ``model.jax`` (a program with its weights, by `jax.export`), ``model.safetensors``
(the weights alone), ``config.json`` (in the layout of timm's folders on the Hugging Face Hub),
``README.md`` (a model card) and ``check.json`` (a digest of each file, and images with the
probabilities that they should get). `flexpool_jax.load_exported` loads such a folder.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import export

from flexpool_jax import files, layout
from flexpool_jax.models.layers import cpu_kernels
from flexpool_jax.models.registry import CIFAR_OPTIONS
from flexpool_jax.models.weights import save_weights
from flexpool_jax.portable.card import model_card
from flexpool_jax.portable.exported import CHECK, CONFIG, PROGRAM, WEIGHTS, digest_of, sha256_of
from flexpool_jax.trained import Trained, load_trained

CARD = "README.md"
PLATFORMS = ("cpu", "cuda")

# How far a probability may be from the one that check.json holds: devices and versions of XLA round
# differently.
_TOLERANCE = {"float32": 2e-3, "bfloat16": 3e-2}


def export_workdir(
    workdir: str | os.PathLike[str],
    step: str = "latest",
    config: ml_collections.ConfigDict | None = None,
) -> Path:
    """Writes the folder ``export`` of a workdir; needs no training data.

    Args:
        workdir: folder of a run.
        step: ``"best"``, ``"latest"`` or the number of a saved step.
        config: config that replaces the workdir's; it must describe the same model and data.

    Returns:
        The folder.

    Raises:
        UserError: `load_trained` cannot use the workdir, the step or a file.
    """
    trained = load_trained(workdir, step, config)
    program, config_json = _export_program(trained), hub_config(trained)
    card = model_card(trained, is_best=step == "best")
    images = _probe_images(trained.image_shape)
    output = np.asarray(export.deserialize(bytearray(program)).call(images))
    folder = trained.workdir / layout.EXPORT_FOLDER
    folder.mkdir(exist_ok=True)
    # check.json is deleted first and written last, so that an incomplete folder is not loaded.
    (folder / CHECK).unlink(missing_ok=True)
    files.write_whole(folder / PROGRAM, program)
    save_weights(
        folder / WEIGHTS,
        trained.variables,
        mean=trained.mean,
        std=trained.std,
        pool=trained.config.pool,
    )
    files.write_json(folder / CONFIG, config_json)
    files.write_whole(folder / CARD, card.encode())
    check: dict[str, Any] = {
        "sha256": {name: sha256_of(folder / name) for name in (PROGRAM, WEIGHTS, CONFIG, CARD)},
        "probe": {
            "shape": images.shape,
            "dtype": "uint8",
            "input": base64.b64encode(images.tobytes()).decode(),
            "output": output.tolist(),
            "tolerance": _TOLERANCE[trained.config.dtype],
        },
    }
    files.write_json(folder / CHECK, check | {"check": digest_of(check)})
    return folder


def _export_program(trained: Trained) -> bytes:
    """Serializes the function from uint8 images [b, H, W, C] to float32 probabilities [b, K].

    Normalisation and softmax are part of the program, the weights are its constants, and b may be
    any number from 1.
    """
    predict = functools.partial(trained.probabilities, trained.variables)
    batch = export.symbolic_shape("b")
    # Custom calls cannot be exported. By default, GPUs would multiply float32 with the precision of
    # TF32, and this could not be changed when the program is loaded.
    with cpu_kernels(False), _no_folders(), jax.default_matmul_precision("float32"):
        exported = export.export(jax.jit(predict), platforms=PLATFORMS)(
            jax.ShapeDtypeStruct((*batch, *trained.image_shape), jnp.uint8)
        )
    return bytes(exported.serialize())


@contextlib.contextmanager
def _no_folders() -> Iterator[None]:
    """Leaves this machine's folders out of the source locations in a program."""
    option = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, option)
    jax.config.update(option, r".*[/\\]")
    try:
        yield
    finally:
        jax.config.update(option, before)


def hub_config(trained: Trained) -> dict[str, Any]:
    """Describes a network as config.json does in timm's folders on the Hugging Face Hub.

    Sizes in ``pretrained_cfg`` have the channels first, as in timm; ``model_args`` are keyword
    arguments of `flexpool_jax.create_model`.
    """
    height, width, channels = trained.image_shape
    config, dataset = trained.config, trained.config.dataset
    model_args = {"pool": config.pool, "sac": config.sac.enabled}
    model_args |= {name: True for name in CIFAR_OPTIONS if config[name]}
    kernel = trained.variables["params"]["head"]["classifier"]["kernel"]
    return {
        "architecture": config.model,
        "num_classes": len(trained.class_names),
        "num_features": kernel.shape[0],
        "global_pool": config.pool,
        "label_names": list(trained.class_names),
        "model_args": model_args,
        "pretrained_cfg": {
            "input_size": [channels, height, width],
            "fixed_input_size": True,
            "interpolation": "box" if dataset.resize == "stretch" else "bilinear",
            "crop_pct": dataset.center_crop / dataset.image_size if dataset.center_crop else 1.0,
            # "squash" is timm's word for stretching an image to the size.
            "crop_mode": "squash" if dataset.resize == "stretch" else "center",
            "mean": [float(value) for value in trained.mean],
            "std": [float(value) for value in trained.std],
            "num_classes": len(trained.class_names),
            "classifier": "head.classifier",
        },
    }


def _probe_images(image_shape: tuple[int, int, int]) -> np.ndarray:
    """Makes three images of growing contrast out of noise: uint8 [3, H, W, C]."""
    noise = np.random.default_rng(0).uniform(-1, 1, (3, *image_shape))
    contrast = np.array([16, 64, 127]).reshape(3, 1, 1, 1)
    return np.round(128 + contrast * noise).astype(np.uint8)
