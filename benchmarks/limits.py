"""Claim: a training step of ResNet20 cannot take less than what its FLOPs and its bytes require.

    python -m benchmarks.limits

Counts both from the shapes, measures the machine's peaks (the better of JAX and PyTorch for a large
matrix product and for a large copy), and prints the least time that these peaks allow.

FLOPs: a convolution takes 2·k²·C_in·C_out per output pixel, and three times this in training
(result, input gradient, kernel gradient; the first layer needs no input gradient). Everything else
is below 2 %.

Bytes: the counts below are passes over a layer's input (in) or its output (out). They are separate
passes, since BatchNorm must know its sums before it can normalise, and a batch is larger than any
cache. Forward: convolution in + out, sums out, normalise 2 out, residual 1 out in every second
layer. Backward: sums 2 out (BatchNorm's input and the gradient), input gradient of BatchNorm 3 out,
input gradient of the convolution out + in, kernel gradient out + in. The ReLU's mask is counted as
one more pass.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import report, workers
from benchmarks.workers import Call, Contestant

PASSES_IN, PASSES_OUT = 3, 12.5


def convolutions() -> Iterator[tuple[int, int, int, int]]:
    """Yields (input side, input channels, output side, features) of ResNet20's convolutions."""
    yield 32, 3, 32, 16
    side, channels = 32, 16
    for stage, features in enumerate((16, 32, 64)):
        for layer in range(6):
            stride = 2 if stage and not layer else 1
            yield side, channels, side // stride, features
            side, channels = side // stride, features


def training_flops() -> float:
    """Returns the FLOPs of a training step for one image.

    Example:
        >>> round(training_flops() / 1e6)
        242
    """
    total = 0
    for index, (_, channels, side, features) in enumerate(convolutions()):
        total += (3 if index else 2) * 2 * 9 * channels * features * side * side
    return total


def training_bytes(itemsize: int) -> float:
    """Returns the bytes that a training step moves for one image."""
    total = 0.0
    for side_in, channels, side_out, features in convolutions():
        total += PASSES_IN * side_in**2 * channels + PASSES_OUT * side_out**2 * features
    return itemsize * total


def build(library: str, what: str, dtype: str) -> tuple[Call, float]:
    """Returns a call of a large matrix product or copy, and the FLOPs or bytes of the call."""
    size = 16384 if workers.has_gpu() else 4096
    length = 2**30 if workers.has_gpu() else 2**27
    itemsize = 2 if dtype == "bfloat16" else 4
    work = 2.0 * size**3 if what == "matmul" else 2.0 * length * itemsize
    make: Callable[..., Call] = {"jax": _jax, "torch": _torch}[library]
    return make(what, dtype, size, length), work


def _jax(what: str, dtype: str, size: int, length: int) -> Call:
    import jax
    import jax.numpy as jnp

    if what == "matmul":
        x: Any = jnp.ones((size, size), dtype)
        product = jax.jit(lambda x: x @ x)
        return lambda: jax.block_until_ready(product(x))
    x = jnp.ones(length, dtype)
    # Writes into a donated array, whose pages exist: only the speed of memory is measured.
    negative = jax.jit(lambda x, y: -x, donate_argnums=1, keep_unused=True)
    y = jnp.zeros(length, dtype)

    def call() -> None:
        nonlocal y
        y = jax.block_until_ready(negative(x, y))

    return call


def _torch(what: str, dtype: str, size: int, length: int) -> Call:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = getattr(torch, dtype)
    shape = (size, size) if what == "matmul" else (length,)
    x, y = (
        torch.ones(shape, dtype=kind, device=device),
        torch.ones(shape, dtype=kind, device=device),
    )

    def call() -> None:
        torch.matmul(x, x, out=y) if what == "matmul" else y.copy_(x)
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def main() -> None:
    """Measures the peaks and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--dtype", default="bfloat16" if workers.has_gpu() else "float32")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    peaks = {}
    for what in ("matmul", "copy"):
        contestants = [
            Contestant(library, {"library": library, "what": what, "dtype": arguments.dtype})
            for library in ("jax", "torch")
        ]
        rates = workers.race("benchmarks.limits", contestants, arguments.rounds, 1.0)
        peaks[what] = max(rate for rounds in rates.values() for turn in rounds for rate in turn)
    itemsize = 2 if arguments.dtype == "bfloat16" else 4
    batch, flops, moved = arguments.batch, training_flops(), training_bytes(itemsize)
    compute, memory = batch * flops / peaks["matmul"], batch * moved / peaks["copy"]
    rows = [
        ["FLOPs", f"{batch * flops / 1e9:.0f} G", f"{peaks['matmul'] / 1e9:,.0f} G/s", compute],
        ["bytes", f"{batch * moved / 1e9:.1f} G", f"{peaks['copy'] / 1e9:,.1f} G/s", memory],
        ["both at once", "", "", max(compute, memory)],
        ["one after the other", "", "", compute + memory],
    ]
    report.print_table(
        f"Limits of a training step, ResNet20, batch {batch}, {arguments.dtype}",
        ["", "counted", "measured peak", "s per step", "images/s"],
        [[*row[:3], f"{row[3]:.4f}", f"{batch / row[3]:,.0f}"] for row in rows],
    )


if __name__ == "__main__":
    options = workers.worker_options()
    main() if options is None else workers.serve(build, options)
