"""Claim: evaluation is at least as fast as PyTorch's on a CPU, and 1.5 × on a GPU.

    python -m benchmarks.evaluation

Measures ResNet20 on images of 32×32×3: the logits of a batch. This project's program starts from
uint8 images in the data set. PyTorch starts from a finished batch; it uses eval mode, no_grad and
channels_last, eager and compiled with its constants frozen.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from benchmarks import report, train_step, workers
from benchmarks.workers import Call, Contestant

CONTESTANTS = ("this project", "PyTorch, eager", "PyTorch, torch.compile")
PEER = "PyTorch, eager"


def build(module: str, **options: Any) -> tuple[Call, float]:
    """Returns the evaluation of a contestant in benchmarks.`module`, and its images."""
    return importlib.import_module(f"benchmarks.{module}").evaluate(**options)


def main() -> None:
    """Measures and prints a table for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1000])
    parser.add_argument("--dtype", default="bfloat16" if workers.has_gpu() else "float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    arguments = parser.parse_args()
    for batch in arguments.batch:
        shared = {"batch": batch, "dtype": arguments.dtype}
        contestants = [
            Contestant(name, {**train_step.PEERS[name], **shared}) for name in CONTESTANTS
        ]
        rates = workers.race(
            "benchmarks.evaluation", contestants, arguments.rounds, arguments.seconds
        )
        report.print_table(
            f"Evaluation, ResNet20, 32×32×3, batch {batch}, {arguments.dtype}",
            ["", "images/s: median (min–max)", f"ratio to {PEER}"],
            report.rate_rows(rates, CONTESTANTS, PEER),
        )


if __name__ == "__main__":
    options = workers.worker_options()
    main() if options is None else workers.serve(build, options)
