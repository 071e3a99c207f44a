"""Settings of JAX: checks of those from the environment, and the cache of compiled programs."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from flexpool_jax import files
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


def use_compilation_cache(folder: str) -> None:
    """Stores compiled programs in a folder, so that later runs need not compile them again.

    Call this function before the first array is made: later, JAX would not use the folder.

    Args:
        folder: path of the folder; empty for no change. A folder that the user's environment
            chooses is not replaced.
    """
    if folder and not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(files.expanded(folder)))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def agree_on_compilation_cache() -> None:
    """Turns the cache of compiled programs off unless all processes find the same programs in it.

    When a program is compiled for GPUs, the processes of a run share the work of autotuning. A
    process that finds the program in its cache takes no part in that, so the others would wait for
    its share for up to a day, XLA's limit. The cache stays off until this process ends.
    """
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    programs = sorted(path.name for path in Path(folder).glob("*-cache")) if folder else []
    found = hashlib.sha256("\n".join(programs).encode()).hexdigest()
    if any(other != found for other in processes.gather(found)):
        print(
            "the processes find different programs in their compilation caches, so this run does "
            "not use them; let compilation_cache be a folder that all machines share",
            file=sys.stderr,
        )
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()
