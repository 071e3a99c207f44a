"""Settings of a process before it imports JAX: huge pages and, without oneDNN, an XLA flag."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

# The packages that oneDNN's convolutions need, besides JAX.
PACKAGES = ("onednn-cpu-gomp", "llvmlite")

VARIABLE = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"

# jaxlib 0.10 sends many convolutions to YNNPACK, which runs them on one core. Without oneDNN, a
# training step of ResNet20 is 1.35 (batch 128) to 2 times (batch 1000) as fast with YNNPACK off.
YNNPACK = "--xla_cpu_experimental_ynn_fusion_type"


def prepare_process() -> None:
    """Prepares this process for computing on a CPU; does nothing on a machine with an NVIDIA GPU.

    Restarts the running command with huge pages, because glibc reads its settings when a process
    starts. XLA maps its scratch memory anew in each step, which causes half a million page faults
    at batch 1000. Huge pages avoid nearly all of them, and make a training step of ResNet20 7 to
    8 % faster on two cores. Without oneDNN's packages, this function also switches YNNPACK off, if
    this jaxlib has that flag. A setting that the user made, in ``GLIBC_TUNABLES`` or ``XLA_FLAGS``,
    is left as it is. If ``JAX_PLATFORMS`` names another platform than cpu, nothing is done.
    """
    if os.environ.get("JAX_PLATFORMS", "cpu") not in ("", "cpu"):
        return
    if Path("/proc/driver/nvidia/version").exists():
        return
    if _has_glibc() and sys.executable and VARIABLE not in os.environ:
        os.environ[VARIABLE] = HUGE_PAGES
        with contextlib.suppress(OSError):  # Training works without huge pages.
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    flags = os.environ.get("XLA_FLAGS", "")
    if not _has_onednn() and YNNPACK not in flags and _is_known(f"{YNNPACK}="):
        os.environ["XLA_FLAGS"] = f"{flags} {YNNPACK}=".lstrip()


def _has_glibc() -> bool:
    return sys.platform == "linux" and "CS_GNU_LIBC_VERSION" in os.confstr_names


def _has_onednn() -> bool:
    try:
        return all(importlib.metadata.version(package) for package in PACKAGES)
    except importlib.metadata.PackageNotFoundError:
        return False


def _is_known(flag: str) -> bool:
    """Whether XLA accepts a flag. XLA aborts the process if not, so a child process tries it."""
    program = "from jaxlib import xla_client; xla_client.make_cpu_client()"
    child = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "XLA_FLAGS": flag},
        capture_output=True,
        check=False,
    )
    return child.returncode == 0
