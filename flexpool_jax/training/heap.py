"""Memory that was needed for a while only, given back to the system."""

from __future__ import annotations

import ctypes


def trim() -> None:
    """Gives back what glibc's malloc holds and nobody uses; elsewhere it does nothing.

    Compiling a training step takes hundreds of megabytes which malloc would otherwise keep: without
    them the steps of ResNet20 at batch 1000 peak at 2.2 GiB on a CPU, with them at 2.8.
    """
    trim_malloc = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim_malloc is not None:
        trim_malloc(0)
