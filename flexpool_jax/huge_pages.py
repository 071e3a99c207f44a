"""Huge pages for XLA's scratch memory on CPUs, which must be asked for before a process starts.

XLA maps its scratch memory anew at each step: half a million page faults a step at batch 1000. With
huge pages nearly all of them go, and a training step of ResNet20 is 7-8 % faster on two cores.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"
VALUE = "glibc.malloc.hugetlb=1"


def restart_with_huge_pages() -> None:
    """Starts the running command again with huge pages, if it computes on a CPU under glibc.

    Does nothing where the variable is set already: by the user, or by this function, so that it
    cannot go round in circles.
    """
    if VARIABLE in os.environ or not _applies():
        return
    os.environ[VARIABLE] = VALUE
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _applies() -> bool:
    if sys.platform != "linux" or not sys.executable:
        return False
    if os.environ.get("JAX_PLATFORMS", "cpu") not in ("", "cpu"):
        return False
    glibc = "CS_GNU_LIBC_VERSION" in os.confstr_names
    return glibc and not Path("/proc/driver/nvidia/version").exists()
