"""Loads a folder that ``--mode=export`` wrote; needs only JAX, NumPy and flatbuffers."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from flexpool_jax import files
from flexpool_jax.errors import UserError, one_line

PROGRAM, WEIGHTS, CONFIG, CHECK = "model.jax", "model.safetensors", "config.json", "check.json"


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported network: a function from uint8 images [B, H, W, C] to probabilities [B, K].

    Attributes:
        class_names: names of the K classes, in the order of the columns.
        image_shape: (H, W, C) of the images.
        config: content of config.json.
        program: program in ``model.jax``.
    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    config: dict[str, Any]
    program: export.Exported = dataclasses.field(repr=False)

    def __call__(self, images: Any) -> jax.Array:
        """Predicts the probabilities of the classes.

        Args:
            images: pixels, uint8 [B, H, W, C] with values from 0 to 255; B is at least 1.

        Returns:
            The probabilities, float32 [B, K]; each row sums to 1.

        Raises:
            UserError: the images are of another dtype or shape.
        """
        shape, dtype = np.shape(images), getattr(images, "dtype", None)
        if dtype != np.uint8 or shape[1:] != self.image_shape or not shape[0]:
            raise UserError(
                f"images are {dtype} {list(shape)}; allowed: uint8 [B, "
                f"{', '.join(map(str, self.image_shape))}] with B at least 1"
            )
        return self.program.call(jnp.asarray(images))


def load_exported(folder: str | os.PathLike[str]) -> Exported:
    """Loads a network that ``--mode=export`` wrote; first checks its files and its output.

    The SHA-256 of every file must be the one in check.json. For the images in check.json, the
    network must compute the probabilities in check.json, within the tolerance given there.

    Args:
        folder: folder with the five files.

    Returns:
        The network, a function from uint8 images [B, H, W, C] to probabilities [B, K].

    Raises:
        UserError: a file is missing or has been altered, the installed JAX cannot run the program,
            or the program computes other probabilities than when it was exported.

    Example:
        >>> model = load_exported("runs/digits/export")  # doctest: +SKIP
        >>> model(uint8_images).argmax(axis=1)  # doctest: +SKIP
    """
    folder = files.expanded(folder)
    check = _read_check(folder)
    altered = [name for name, sha in check["sha256"].items() if sha256_of(folder / name) != sha]
    if altered:
        raise UserError(
            f"{folder} is not what was exported: {', '.join(altered)} differs from its digest in "
            f"{CHECK}; export it again"
        )
    config = json.loads((folder / CONFIG).read_bytes())
    channels, height, width = config["pretrained_cfg"]["input_size"]
    try:
        program = export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
        model = Exported(tuple(config["label_names"]), (height, width, channels), config, program)
        probe = check["probe"]
        images = np.frombuffer(base64.b64decode(probe["input"]), np.uint8).reshape(probe["shape"])
        difference = np.abs(np.asarray(model(images)) - np.asarray(probe["output"])).max()
    except Exception as error:  # jax.export raises many kinds for what its release cannot read.
        raise UserError(
            f"{folder / PROGRAM} does not run with jax {jax.__version__}: {one_line(error)}; the "
            f"weights in {WEIGHTS} can be loaded by flexpool_jax.load_weights all the same"
        ) from error
    if not difference <= probe["tolerance"]:
        raise UserError(
            f"{folder / PROGRAM} computes something else here than when it was exported: "
            f"probabilities of the images in {CHECK} differ by up to {difference:.2g}; allowed: "
            f"{probe['tolerance']:g}"
        )
    return model


def _read_check(folder: Path) -> dict[str, Any]:
    check = files.read_json(folder / CHECK)
    if check is None:
        raise UserError(f"{folder} is not an export: it has no {CHECK}; write one by --mode=export")
    own = check.pop("check", None)
    digests = check.get("sha256")
    is_whole = isinstance(digests, dict) and {PROGRAM, CONFIG} <= digests.keys()
    if own != digest_of(check) or not is_whole:
        raise UserError(f"{folder / CHECK} is not what was exported; export it again")
    return check


def digest_of(check: Mapping[str, Any]) -> str:
    """The SHA-256 of the content of check.json without the digest itself."""
    return hashlib.sha256(json.dumps(check, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file; "" if the file cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
