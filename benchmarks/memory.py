"""Claim: training at batch 1000 needs no more memory than PyTorch.

    python -m benchmarks.memory

Trains ResNet20 on 32×32×3 by SGD with momentum. On a CPU it measures the peak of the resident set,
over the whole life of the process (imports and compilation included) and over the steps alone,
after warm-up. On a GPU it measures the peak of the bytes that JAX's or PyTorch's allocator has in
use.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import report, train_step, workers
from benchmarks.evaluation import CONTESTANTS, PEER
from benchmarks.workers import Contestant

STEPS = 3


def peak_resident() -> int:
    """The peak of this process's resident set, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _peak_on_gpu(module: str) -> int:
    if module == "peers_pytorch":
        import torch

        return torch.cuda.max_memory_allocated()
    import jax

    return (jax.local_devices()[0].memory_stats() or {})["peak_bytes_in_use"]


def work(module: str, **options: Any) -> None:
    """Runs as a worker: trains for a few steps, and answers with the peaks in bytes."""
    call, _ = train_step.build(module, **options)
    for _ in range(workers.WARM_UP_CALLS):
        call()
    life = 0
    if not workers.has_gpu():
        life = peak_resident()
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current value
    for _ in range(STEPS):
        call()
    steps = _peak_on_gpu(module) if workers.has_gpu() else peak_resident()
    workers.reply({"life": max(life, steps), "steps": steps})


def main() -> None:
    """Runs one contestant after the other, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--dtype", default="bfloat16" if workers.has_gpu() else "float32")
    arguments = parser.parse_args()
    peaks: dict[str, dict[str, int]] = {}
    for name in CONTESTANTS:
        options = {"batch": arguments.batch, "dtype": arguments.dtype}
        contestant = Contestant(name, {**train_step.PEERS[name], **options})
        try:
            peaks[name] = workers.only_answer("benchmarks.memory", contestant)
        except workers.WorkerFailed as error:
            print(f"{name} failed: {error}")
    rows = []
    for name, peak in peaks.items():
        row = [name]
        for part in ("steps", "life"):
            ratio = peak[part] / peaks[PEER][part] if PEER in peaks else float("nan")
            row += [f"{peak[part] / 2**20:,.0f}", f"{ratio:.2f}"]
        rows.append(row)
    report.print_table(
        f"Peak memory in MiB, ResNet20, batch {arguments.batch}, {arguments.dtype}",
        ["", "steps", f"ratio to {PEER}", "whole process", f"ratio to {PEER}"],
        rows,
    )


if __name__ == "__main__":
    options = workers.worker_options()
    main() if options is None else work(**options)
