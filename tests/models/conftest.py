"""Variables for tests that compute with a model."""

import jax
import numpy as np


def draw_variables(module, x):
    """As init draws them, near enough, and without the time it takes to compile init."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        if name in ("bias", "mean"):
            return np.zeros(leaf.shape, np.float32)
        if name == "w_fp":
            return np.full(leaf.shape, 1 / (leaf.shape[0] * leaf.shape[1]), np.float32)
        return rng.normal(scale=0.2, size=leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return jax.tree_util.tree_map_with_path(draw, shapes)
