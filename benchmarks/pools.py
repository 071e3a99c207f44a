"""Claim: FlexPool takes at most 1.5 × as long as average pooling, which is what the bytes require.

    python -m benchmarks.pools

Compares every pool with average pooling, forward and backward (with respect to the map and the
parameters), on maps of 8×8×64 (the last stage of a ResNet20), 16×16×256 and 7×7×2048 (of a
ResNet50). Average pooling must read the map once and write the map's gradient once. FlexPool must
read the map once more, for the gradient of its weights. So memory bandwidth alone leads to 3 passes
instead of 2, a ratio of 1.5. All pools are JAX programs, timed in turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import report, workers
from flexpool_jax.pools import POOLS, create_pool

# Maps of 16 MiB in float32: larger than a cache, as those of a training step are.
SHAPES = ((1024, 8, 8, 64), (64, 16, 16, 256), (42, 7, 7, 2048))
REFERENCE = "avg"


def forward_and_backward(pool: str, x: jax.Array) -> Callable[[], Any]:
    """Returns a call that pools x, and computes the gradients for a random cotangent."""
    module = create_pool(pool)
    variables = module.init(jax.random.key(0), x[:1])

    def run(variables: Any, x: jax.Array, cotangent: jax.Array) -> Any:
        y, transpose = jax.vjp(module.apply, variables, x)
        return y, transpose(cotangent)

    compiled = jax.jit(run)
    shape = jax.eval_shape(module.apply, variables, x)
    cotangent = jax.random.normal(jax.random.key(1), shape.shape, shape.dtype)
    return lambda: jax.block_until_ready(compiled(variables, x, cotangent))


def seconds_in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Returns, for each name and round, the median seconds of five calls."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(rounds + 1):
        for name, call in calls.items():
            times = []
            for _ in range(5):
                started = time.perf_counter()
                call()
                times.append(time.perf_counter() - started)
            if round_number:  # The first round compiles and warms up.
                seconds[name].append(statistics.median(times))
    return seconds


def work(names: list[str], rounds: int, dtype: str) -> None:
    """Runs as the worker: answers for each shape with its seconds."""
    for shape in SHAPES:
        # A GPU needs more than a CPU before the work outweighs starting a kernel.
        batch = 16 * shape[0] if workers.has_gpu() else shape[0]
        x = jax.random.normal(jax.random.key(2), (batch, *shape[1:]), jnp.dtype(dtype))
        calls = {name: forward_and_backward(name, x) for name in names}
        workers.reply([x.shape, x.nbytes, seconds_in_turns(calls, rounds)])


def main() -> None:
    """Measures and prints a table for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16" if workers.has_gpu() else "float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pools", nargs="+", default=list(POOLS), choices=list(POOLS))
    arguments = parser.parse_args()
    names = list(dict.fromkeys([REFERENCE, *arguments.pools]))
    options = {"names": names, "rounds": arguments.rounds, "dtype": arguments.dtype}
    worker = workers.Worker("benchmarks.pools", workers.Contestant("pools", options))
    for _ in SHAPES:
        shape, size, seconds = worker.answer()
        rows = []
        for name in names:
            ratio = [a / b for a, b in zip(seconds[name], seconds[REFERENCE], strict=True)]
            milliseconds = [1000 * s for s in seconds[name]]
            gigabytes = statistics.median(2 * size / s / 1e9 for s in seconds[name])
            rows.append(
                [name, report.spread(milliseconds, 2), report.spread(ratio, 2), f"{gigabytes:.1f}"]
            )
        report.print_table(
            "Pools, forward and backward, " + "×".join(map(str, shape)),
            ["", "ms: median (min–max)", f"time, ratio to {REFERENCE}", "GB/s for two passes"],
            rows,
        )
    worker.close()


if __name__ == "__main__":
    options = workers.worker_options()
    main() if options is None else work(**options)
