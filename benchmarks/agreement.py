"""Claim: a GPU computes the losses and gradients that a CPU does, and resumes as a CPU does.

    python -m benchmarks.agreement

The first part trains ResNet20 with FlexPool, Eq. 2 of the paper and SAC at batch 128, and measures
two differences to the CPU: of the gradient of the first step (the norm of the difference divided by
the norm of the CPU's gradient), and of the first 10 losses (the largest relative difference). The
CPU computes in float32; the accelerator in float32 with exact products, in float32 with default
products (TF32 on NVIDIA GPUs), and in bfloat16.

The second part trains two undisturbed runs on digits, and one that is stopped by SIGTERM and
resumed. On a CPU all three are equal; on a GPU the difference of the undisturbed runs is the effect
of rounding alone.

The exit status is 1 if a difference is above its limit. Without an accelerator everything is
computed on the CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import launches, report, workers
from benchmarks.workers import Contestant

ON_CPU = {"JAX_PLATFORMS": "cpu"}
EXACT = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
CONTESTANTS = (
    Contestant("CPU, float32", {"dtype": "float32"}, ON_CPU),
    Contestant("float32, exact products", {"dtype": "float32"}, EXACT),
    Contestant("float32", {"dtype": "float32"}),
    Contestant("bfloat16", {"dtype": "bfloat16"}),
)
# Limits of the differences of the gradient and of the losses. On a CPU, the order of sums alone
# changes the gradient by 2e-3, the first ten losses by 1e-4, and the twentieth by 6e-3: differences
# grow with each step.
LIMITS = {
    "float32, exact products": (1e-2, 1e-3),
    "float32": (5e-2, 1e-2),
    "bfloat16": (3e-1, 5e-2),
}
# How much more than two undisturbed runs a resumed run may differ in test accuracy, in points.
RESUME_LIMIT = 2.0
RUN = ("--config.dataset.image_size=16", "--config.num_epochs=4", "--config.tensorboard=False")


def work(dtype: str, batch: int, count: int, file: str) -> None:
    """Runs as a worker: writes losses and gradient to `file`; answers with the device's kind."""
    import jax

    from benchmarks import ours

    losses, gradient = ours.first_steps(batch, dtype, count)
    np.savez(file, losses, np.concatenate([leaf.ravel() for leaf in gradient]))
    workers.reply(jax.devices()[0].device_kind)


def compare(batch: int, count: int) -> bool:
    """Prints how far each contestant is from the first; returns whether all are within limits."""
    rows, agree = [], True
    losses, gradient = np.empty(0), np.empty(0)
    for contestant in CONTESTANTS:
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/steps.npz"
            options = {**contestant.options, "batch": batch, "count": count, "file": file}
            given = dataclasses.replace(contestant, options=options)
            kind = workers.only_answer("benchmarks.agreement", given)
            own_losses, own_gradient = np.load(file).values()
        if contestant.name not in LIMITS:
            losses, gradient = own_losses, own_gradient
            continue
        errors = (
            np.linalg.norm(own_gradient - gradient) / np.linalg.norm(gradient),
            np.max(np.abs(own_losses - losses) / losses),
        )
        limits = LIMITS[contestant.name]
        agree &= all(error <= limit for error, limit in zip(errors, limits, strict=True))
        cells = (f"{e:.1e} (≤ {limit:.0e})" for e, limit in zip(errors, limits, strict=True))
        rows.append([contestant.name, kind, *cells])
    report.print_table(
        f"Difference to the CPU, ResNet20 with SAC, batch {batch}",
        ["", "device", "gradient of step 1", f"losses of {count} steps"],
        rows,
    )
    return agree


def resume() -> bool:
    """Prints the results of two undisturbed runs and a resumed one; returns whether they agree."""
    config = "configs/digits.py:flexpool,reg"
    ends: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        for run in ("undisturbed", "undisturbed again", "stopped and resumed"):
            workdir = Path(name) / run.replace(" ", "-")
            if run == "stopped and resumed" and (status := _stop(config, workdir)) != 75:
                print(f"the run ended with status {status} when it was told to stop; not 75")
                return False
            launches.launch(config, workdir, RUN)
            tests = [m for m in launches.read_metrics(workdir) if m["split"] == "test"]
            ends[run] = {**tests[-1], **json.loads((workdir / "result.json").read_text())}
    report.print_table(
        f"Resuming, {config}",
        ["", "step", "test loss", "test accuracy"],
        [
            [run, str(end["step"]), f"{end['loss']:.6f}", f"{end['final_test_accuracy']:.2%}"]
            for run, end in ends.items()
        ],
    )
    first, second, resumed = (100 * end["final_test_accuracy"] for end in ends.values())
    same_step = len({end["step"] for end in ends.values()}) == 1
    return same_step and abs(resumed - first) <= abs(second - first) + RESUME_LIMIT


def _stop(config: str, workdir: Path) -> int:
    """Starts a run, tells it to stop after its first evaluation, and returns its exit status."""
    run = subprocess.Popen(
        launches.command(config, workdir, RUN),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=launches.LAUNCH.parent,
    )
    try:
        while run.poll() is None:
            if any(line["split"] == "test" for line in launches.read_metrics(workdir)):
                run.send_signal(signal.SIGTERM)
                return run.wait()
            time.sleep(0.01)
        return run.returncode
    finally:
        run.kill()
        run.wait()


def main() -> int:
    """Compares, resumes, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    agrees = compare(arguments.batch, arguments.steps)
    resumes = resume()
    print(f"agreement: {'yes' if agrees else 'NO'}; resuming: {'yes' if resumes else 'NO'}")
    return 0 if agrees and resumes else 1


if __name__ == "__main__":
    options = workers.worker_options()
    sys.exit(main() if options is None else work(**options))
