"""What a run says before it begins: on what, with what, and how much of it there is.

Most questions about a run (why is it slow, why is the GPU's memory full, which versions was that?)
are answered here, before anyone has to ask them.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax


def first_lines(
    *,
    versions: Mapping[str, str],
    dtype: str,
    model: str,
    parameters: int,
    dataset: str,
    image_shape: Sequence[int],
    train_images: int,
    test_images: int,
    batch_size: int,
    steps_per_epoch: int,
    total_steps: int,
    start_step: int = 0,
) -> list[str]:
    """Writes down what is about to run.

    Args:
        versions: name to version, as `flexpool_jax.training.reporting.versions` gives them.
        dtype: that the network computes in.
        model: what to call it.
        parameters: trainable ones.
        dataset: name.
        image_shape: (H, W, C).
        train_images: number of images in the training split.
        test_images: in the split that is evaluated.
        batch_size: images per step, over all devices.
        steps_per_epoch: as named.
        total_steps: of the whole run.
        start_step: other than 0 for a run that resumes.

    Returns:
        Lines without line ends.
    """
    devices = jax.local_devices()
    epochs, shape = total_steps // steps_per_epoch, "x".join(map(str, image_shape))
    lines = [
        f"device: {len(devices)} x {devices[0].device_kind} ({devices[0].platform}), {dtype}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"model: {model}, {parameters:,} parameters",
        f"data: {dataset}, {train_images:,} training and {test_images:,} test images of {shape}",
        f"run: {epochs:,} epochs of {steps_per_epoch:,} steps, {total_steps:,} steps in all, "
        f"{batch_size:,} images a step",
    ]
    if start_step:
        lines.append(f"resuming after step {start_step:,}")
    return lines + device_remarks(devices[0].platform)


def device_remarks(platform: str) -> list[str]:
    """What a user of an NVIDIA GPU should know and often does not.

    Args:
        platform: that JAX runs on: "cpu", "gpu", ...

    Returns:
        No line, or one: why JAX does not see a GPU that is there, or why the GPU's memory looks
        full.
    """
    if platform == "gpu":
        if "XLA_PYTHON_CLIENT_PREALLOCATE" in os.environ:
            return []
        return [
            "note: JAX reserves 75 % of the GPU's memory at start, whatever the model needs; "
            "XLA_PYTHON_CLIENT_PREALLOCATE=false in the environment turns that off"
        ]
    if platform != "cpu" or not nvidia_gpu_is_present():
        return []
    asked_for = os.environ.get("JAX_PLATFORMS", "")
    if asked_for:
        advice = f"JAX_PLATFORMS={asked_for} in the environment asks for this; unset it"
    elif not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        advice = "JAX's CUDA plugin is not installed: pip install -r requirements.txt"
    else:
        advice = (
            "JAX's CUDA plugin is installed but did not start: check that nvidia-smi lists the GPU "
            "with a driver for CUDA 12 (525 or newer), and that CUDA_VISIBLE_DEVICES and "
            "LD_LIBRARY_PATH do not hide it or its libraries"
        )
    return [f"warning: this machine has an NVIDIA GPU, but JAX runs on the CPU. {advice}"]


def nvidia_gpu_is_present() -> bool:
    """Whether this machine has an NVIDIA GPU with a driver, whether or not JAX can use it."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        # It is there in many container images, GPU or not; only its answer tells.
        listing = subprocess.run([program, "-L"], capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return listing.stdout.startswith(b"GPU")
