"""Changes of test images: shifts, Gaussian noise, Gaussian blur, lower contrast.

Every change takes and returns uint8 images [N, H, W, C]. Its result is rounded to whole numbers in
[0, 255], so that a model gets images that a file could hold.

The strengths of noise, blur and contrast are those of severities 1, 3 and 5 of CIFAR-10-C
(Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", arXiv 1903.12261).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Array = jax.Array

SHIFTS = (1, 2, 3, 4)
# Where the content moves: (rows down, columns right).
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
NOISE_DEVIATIONS = (0.04, 0.08, 0.10)
BLUR_SIGMAS = (0.4, 0.7, 1.0)
CONTRASTS = (0.75, 0.4, 0.15)

_NOISE_SEED = 0
# Four standard deviations of the widest Gaussian, where SciPy truncates its filter, too.
_BLUR_RADIUS = 4
# Images computed at once, to save memory: in float32 they take four times as much as in uint8.
_IMAGES_AT_ONCE = 1024


def perturbations() -> list[tuple[dict[str, Any], Callable[[Array], Array]]]:
    """Lists every perturbation of a probe: its fields in the report, and its function of images.

    Example:
        >>> names = [named for named, _ in perturbations()]
        >>> len(names), names[0]
        (25, {'name': 'shift', 'pixels': 1, 'direction': 'left'})
        >>> names[-1]
        {'name': 'contrast', 'factor': 0.15}
    """
    shifts: list[tuple[dict[str, Any], Callable[[Array], Array]]] = [
        (
            {"name": "shift", "pixels": pixels, "direction": direction},
            functools.partial(shift, down=pixels * down, right=pixels * right),
        )
        for pixels in SHIFTS
        for direction, (down, right) in DIRECTIONS.items()
    ]
    changes = (
        ("gaussian_noise", gaussian_noise, "sd", NOISE_DEVIATIONS),
        ("gaussian_blur", blur, "sigma", BLUR_SIGMAS),
        ("contrast", contrast, "factor", CONTRASTS),
    )
    return shifts + [
        ({"name": name, key: strength}, functools.partial(change, **{key: strength}))
        for name, change, key, strengths in changes
        for strength in strengths
    ]


@jax.jit
def shift(images: Array, *, down: ArrayLike, right: ArrayLike) -> Array:
    """Moves the content of images by whole pixels; pixels that enter at the border are 0, black.

    ``y[i, j] = x[i − down, j − right]`` inside of the image and 0 outside. (Augmentation fills with
    the training images' mean colour instead, see `flexpool_jax.data.augment.make_augment`.)

    Args:
        images: uint8 ``[N, H, W, C]``.
        down: number of rows to move down, negative to move up.
        right: number of columns to move right, negative to move left.

    Returns:
        uint8 ``[N, H, W, C]``.

    Example:
        >>> images = jnp.array([[1, 2, 3]], jnp.uint8).reshape(1, 1, 3, 1)
        >>> print(shift(images, down=0, right=1).ravel())
        [0 1 2]
    """
    for axis, distance in ((1, down), (2, right)):
        size = images.shape[axis]
        source = jnp.arange(size) - distance
        # `take` counts negative indices from the end; those from `size` on are outside.
        source = jnp.where(source < 0, size, source)
        images = jnp.take(images, source, axis=axis, mode="fill", fill_value=0)
    return images


@jax.jit
def gaussian_noise(images: Array, *, sd: ArrayLike) -> Array:
    """Adds independent Gaussian noise to every value: ``y = x + 255 · sd · n``, n ~ N(0, 1).

    The draws n depend only on the index of the image, not on the strength, nor on JAX's default
    dtype and generator: all strengths and all models use the same draws.

    Args:
        images: uint8 ``[N, H, W, C]``.
        sd: standard deviation of the noise, for images scaled to [0, 1].

    Returns:
        uint8 ``[N, H, W, C]``.
    """
    key = jax.random.key(_NOISE_SEED, impl="threefry2x32")
    deviation = 255 * jnp.asarray(sd, jnp.float32)

    def one(image: Array, index: Array) -> Array:
        draws = jax.random.normal(jax.random.fold_in(key, index), image.shape, jnp.float32)
        return image + deviation * draws

    return _map(one, images)


@jax.jit
def blur(images: Array, *, sigma: ArrayLike) -> Array:
    """Blurs images, channel by channel, with a Gaussian of standard deviation σ in pixels.

    ``y[i, j] = Σ_ab g(a) g(b) x[i + a, j + b]`` with ``g(a) ∝ exp(−a² / 2σ²)`` for ``|a|`` up to
    4 pixels and Σ g = 1. Beyond the border, x has the value of the nearest pixel.

    Args:
        images: uint8 ``[N, H, W, C]``.
        sigma: standard deviation σ in pixels, above 0 and at most 1.

    Returns:
        uint8 ``[N, H, W, C]``.
    """
    offsets = jnp.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1)
    kernel = jnp.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / jnp.sum(kernel)

    def one(image: Array, index: Array) -> Array:
        for axis in (0, 1):
            margins = [(0, 0)] * 3
            margins[axis] = (_BLUR_RADIUS, _BLUR_RADIUS)
            size, padded = image.shape[axis], jnp.pad(image, margins, mode="edge")
            # Summed one by one: all shifted images together would take nine times the memory.
            shifted = (
                kernel[i] * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
                for i in range(len(offsets))
            )
            image = functools.reduce(jnp.add, shifted)
        return image

    return _map(one, images)


@jax.jit
def contrast(images: Array, *, factor: ArrayLike) -> Array:
    """Lowers the contrast of images: ``y = m + factor · (x − m)``.

    m is the mean of each channel of an image.

    Args:
        images: uint8 ``[N, H, W, C]``.
        factor: contrast of the result; 1 keeps the images as they are, 0 keeps only their mean
            colour.

    Returns:
        uint8 ``[N, H, W, C]``.

    Example:
        >>> images = jnp.array([0, 100], jnp.uint8).reshape(1, 1, 2, 1)
        >>> print(contrast(images, factor=0.4).ravel())
        [30 70]
    """

    def one(image: Array, index: Array) -> Array:
        mean = jnp.mean(image, axis=(0, 1))
        return mean + factor * (image - mean)

    return _map(one, images)


def _map(one: Callable[[Array, Array], Array], images: Array) -> Array:
    """Applies a function of (float32 image, its index) to every image, and rounds to uint8."""

    def rounded(image_and_index: tuple[Array, Array]) -> Array:
        image, index = image_and_index
        values = one(image.astype(jnp.float32), index)
        return jnp.clip(jnp.round(values), 0, 255).astype(jnp.uint8)

    indices = jnp.arange(len(images))
    return jax.lax.map(rounded, (images, indices), batch_size=_IMAGES_AT_ONCE)
