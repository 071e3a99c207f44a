"""Claim: a convolution takes as long here as in PyTorch on a CPU, each of its gradients too.

    python -m benchmarks.convolutions

Measures the 3×3 convolutions of ResNet20's three stages and their two gradients, each as a separate
program: in this project with oneDNN, in this project without oneDNN, in lax, and in PyTorch (eager,
channels_last). The unit is GFLOP/s of useful work, which is 2·9·C² FLOP per pixel of the result.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
from typing import Any

from benchmarks import report, workers
from benchmarks.workers import Call, Contestant

# Side and channels of the stages.
STAGES = ((32, 16), (16, 32), (8, 64))
FORMS = ("forward", "input gradient", "kernel gradient")
CONTESTANTS: dict[str, dict[str, Any]] = {
    "this project": {"module": "ours", "by": "conv"},
    "without oneDNN": {"module": "ours", "by": "xla_conv"},
    "lax": {"module": "ours", "by": "lax"},
    "PyTorch, eager": {"module": "peers_pytorch"},
}


def build(module: str, **options: Any) -> tuple[Call, float]:
    """Returns a contestant's convolution, and the GFLOP of a call."""
    call = importlib.import_module(f"benchmarks.{module}").convolution(**options)
    side, channels = options["side"], options["channels"]
    return call, 2 * 9 * options["batch"] * (side * channels) ** 2 / 1e9


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each turn")
    arguments = parser.parse_args()
    rows = []
    for side, channels in STAGES:
        for form in FORMS:
            shared = {
                "form": form, "batch": arguments.batch, "side": side, "channels": channels,
            }  # fmt: skip
            contestants = [
                Contestant(name, {**options, **shared}) for name, options in CONTESTANTS.items()
            ]
            rates = workers.race(
                "benchmarks.convolutions", contestants, arguments.rounds, arguments.seconds
            )
            medians = [
                f"{statistics.median(rate for turn in rates[name] for rate in turn):.0f}"
                for name in CONTESTANTS
            ]
            ratio = report.ratios(rates["this project"], rates["PyTorch, eager"])
            rows.append([f"{side}×{side}×{channels}, {form}", *medians, report.spread(ratio, 2)])
    report.print_table(
        f"3×3 convolutions, batch {arguments.batch}, float32, GFLOP/s",
        ["", *CONTESTANTS, "this project / PyTorch"],
        rows,
    )


if __name__ == "__main__":
    options = workers.worker_options()
    main() if options is None else workers.serve(build, options)
