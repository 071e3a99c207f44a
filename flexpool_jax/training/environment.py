"""Checks of JAX's settings that come from the environment, such as JAX_PLATFORMS."""

from __future__ import annotations

import jax

from flexpool_jax.errors import UserError, one_line
from flexpool_jax.training import processes

# Settings of JAX on which the numbers of a seed depend, with the values that this project uses.
_RANDOM_SETTINGS = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
}


def check_random_numbers() -> None:
    """Checks that a seed draws the same weights, augmentation and dropout as in any other run.

    Raises:
        UserError: a setting of JAX changes what a seed draws.
    """
    for name, allowed in _RANDOM_SETTINGS.items():
        value = getattr(jax.config, name, allowed)
        if value != allowed:
            raise UserError(
                f"{name.upper()} is {value}, with which the same seed draws other numbers; "
                f"allowed: {allowed}, JAX's default; unset it in the environment or the program"
            )


def check_platform() -> None:
    """Starts JAX, and checks that it has a device of the platform that JAX_PLATFORMS names.

    Raises:
        UserError: JAX cannot use the platform.
        PeerLost: another process of the run has ended.
    """
    try:
        with processes.explaining_loss():
            jax.devices()
    # JAX has an assertion, without a message, where no NVIDIA GPU is visible.
    except (RuntimeError, AssertionError) as error:
        platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
        if not platforms:
            raise
        reason = one_line(str(error) or "JAX finds no device of this platform", limit=None)
        raise UserError(
            f"JAX_PLATFORMS={platforms}: {reason}; name another platform, such as cpu, or unset it"
        ) from error
