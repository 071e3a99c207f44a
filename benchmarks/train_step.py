"""Claim: a training step of this project is as fast as PyTorch's on a CPU, and 1.5 × on a GPU.

    python -m benchmarks.train_step                          # all contestants, batch 128 and 1000
    python -m benchmarks.train_step --compare=pool           # FlexPool costs at most 1.02 × average
    python -m benchmarks.train_step --compare=sac            # SAC costs at most 1.05 × one head

Trains ResNet20 on 32×32×3 by SGD with momentum; in float32 on CPUs, in bfloat16 on GPUs. This
project's step is that of a run with FlexPool and Eq. 2 of the paper. It starts from uint8 images:
gather, flip, scale, normalise. Its peers have average pooling and start from a finished batch;
`benchmarks.peers_flax` and `benchmarks.peers_pytorch` describe them. On a CPU a timed call is one
step. On a GPU it is 50 steps with one wait at the end; in this project they are one scan.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from benchmarks import report, workers
from benchmarks.workers import Call, Contestant

PEERS: dict[str, dict[str, Any]] = {
    "this project": {"module": "ours"},
    "this project, flax's layers": {"module": "ours", "cpu_kernels": False},
    "plain Flax loop": {"module": "peers_flax"},
    "PyTorch, eager": {"module": "peers_pytorch", "compiled": False},
    "PyTorch, torch.compile": {"module": "peers_pytorch", "compiled": True},
}
POOLS: dict[str, dict[str, Any]] = {
    "FlexPool": {"module": "ours"},
    "average pooling": {"module": "ours", "pool": "avg"},
}
HEADS: dict[str, dict[str, Any]] = {
    "SAC, three heads": {"module": "ours", "sac": True},
    "one head": {"module": "ours"},
}
# For each comparison, its contestants and the name of the one with the ratio 1.
COMPARISONS: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "peers": (PEERS, "PyTorch, eager"),
    "pool": (POOLS, "average pooling"),
    "sac": (HEADS, "one head"),
}


def build(module: str, **options: Any) -> tuple[Call, float]:
    """Returns the training step of a contestant in benchmarks.`module`, and its images."""
    return importlib.import_module(f"benchmarks.{module}").train(**options)


def main() -> None:
    """Measures, and prints a table for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compare", choices=COMPARISONS, default="peers")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1000])
    parser.add_argument("--dtype", default="bfloat16" if workers.has_gpu() else "float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--only", nargs="+", help="parts of the contestants' names")
    arguments = parser.parse_args()
    choices, peer = COMPARISONS[arguments.compare]
    if workers.has_gpu():  # Flax's layers are used on a GPU anyway.
        choices = {name: one for name, one in choices.items() if one.get("cpu_kernels", True)}
    names = [
        name
        for name in choices
        if not arguments.only or any(part in name for part in arguments.only)
    ]
    for batch in arguments.batch:
        shared = {"batch": batch, "dtype": arguments.dtype}
        contestants = [Contestant(name, {**choices[name], **shared}) for name in names]
        rates = workers.race(
            "benchmarks.train_step", contestants, arguments.rounds, arguments.seconds
        )
        report.print_table(
            f"Training step, ResNet20, 32×32×3, batch {batch}, {arguments.dtype}",
            ["", "images/s: median (min–max)", f"ratio to {peer}"],
            report.rate_rows(rates, names, peer),
        )


if __name__ == "__main__":
    options = workers.worker_options()
    main() if options is None else workers.serve(build, options)
