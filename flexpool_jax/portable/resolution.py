"""Evaluates a trained network on images of another size than it was trained on."""

from __future__ import annotations

import copy
import dataclasses

import jax
import numpy as np
from PIL import Image

from flexpool_jax.data import Dataset, Split, images
from flexpool_jax.errors import UserError
from flexpool_jax.evaluation import Restored
from flexpool_jax.pooling import create_pool, resize_flexpool
from flexpool_jax.training.setup import set_up


def at_resolution(restored: Restored, side: int) -> Restored:
    """Prepares a restored checkpoint for test images of side × side pixels.

    The images that the network was trained at are resized once more, and the weights of every pool
    with a ``w_fp`` are resampled to the new maps; everything else stays as it was trained.

    Args:
        restored: from `flexpool_jax.evaluation.restore_workdir`.
        side: height and width of the images in pixels.

    Returns:
        The same checkpoint, with the resized test split and without training images.

    Raises:
        UserError: the network cannot take such images, or has other weights that depend on their
            size, as behind the pool ``flatten``.
    """
    config = copy.deepcopy(restored.setup.config)
    config.pool_reg = 0.0  # Nothing is trained: whether Eq. 2 would be stable does not matter.
    setup = set_up(config, _resized(restored.setup.dataset, side))
    try:
        params = resize_flexpool(
            restored.variables["params"],
            like=setup.abstract_state().params,
            constraint=getattr(create_pool(config.pool), "constraint", None),
        )
    except ValueError as error:
        raise UserError(f"cannot evaluate at {side}x{side} pixels: {error}") from error
    variables = {**restored.variables, "params": jax.device_get(params)}
    return dataclasses.replace(restored, setup=setup, variables=variables)


def _resized(dataset: Dataset, side: int) -> Dataset:
    """The data set with its test images resized; the training images are black, without memory."""
    channels = dataset.image_shape[2]
    shape = (side, side, channels)
    test = np.empty((len(dataset.test), *shape), np.uint8)
    for image, resized in zip(dataset.test.images, test, strict=True):
        for channel in range(channels):
            plane = Image.fromarray(np.ascontiguousarray(image[..., channel]))
            resized[..., channel] = np.asarray(images.resize(plane, side))
    black = np.broadcast_to(np.uint8(0), (len(dataset.train), *shape))
    return dataclasses.replace(
        dataset,
        train=Split(black, dataset.train.labels),
        test=Split(test, dataset.test.labels),
    )
