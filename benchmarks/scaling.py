"""Claim: the rate holds from batch 32 to 4096, and does not fall when devices share a batch.

    python -m benchmarks.scaling                    # batch 32 ... 4096 against PyTorch
    python -m benchmarks.scaling --devices 1 2 4 8  # one batch over so many devices

Measures the step of `benchmarks.train_step`: ResNet20 on 32×32×3. Each batch size is a separate
race against PyTorch. The devices of a CPU are simulated: they share its cores, so that dividing a
batch among them can only be slower, and the ratio shows the cost of synchronising statistics and
gradients. With GPUs, the devices are the machine's GPUs.
"""

from __future__ import annotations

import argparse

from benchmarks import report, train_step, workers
from benchmarks.workers import Contestant

PROGRAM = "benchmarks.train_step"
BATCHES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
OURS, PEER = "this project", "PyTorch, eager"


def _on_devices(count: int) -> dict[str, str]:
    if workers.has_gpu():
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(count)))}
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}


def over_batches(arguments: argparse.Namespace) -> None:
    """Measures and prints a row for each batch size."""
    peer = "PyTorch, torch.compile" if workers.has_gpu() else PEER
    rows = []
    for batch in arguments.batch:
        shared = {"batch": batch, "dtype": arguments.dtype}
        contestants = [
            Contestant(name, {**train_step.PEERS[name], **shared}) for name in (OURS, peer)
        ]
        rates = workers.race(PROGRAM, contestants, arguments.rounds, arguments.seconds)
        ours, theirs = report.rate_rows(rates, [OURS, peer], peer)
        rows.append([str(batch), ours[1], theirs[1], ours[2]])
    report.print_table(
        f"Training step over batch sizes, ResNet20, {arguments.dtype}",
        ["batch", f"{OURS}, images/s", f"{peer}, images/s", "ratio"],
        rows,
    )


def over_devices(arguments: argparse.Namespace) -> None:
    """Measures and prints a row for each number of devices, with the ratio to the first number."""
    names = {f"{count}": count for count in arguments.devices}
    for batch in arguments.batch:
        shared = {"module": "ours", "batch": batch, "dtype": arguments.dtype}
        contestants = [Contestant(name, shared, _on_devices(n)) for name, n in names.items()]
        rates = workers.race(PROGRAM, contestants, arguments.rounds, arguments.seconds)
        first = next(iter(names))
        report.print_table(
            f"Training step over devices, ResNet20, batch {batch} in all, {arguments.dtype}",
            ["devices", "images/s: median (min–max)", f"ratio to {first}"],
            report.rate_rows(rates, list(names), first),
        )


def main() -> None:
    """Measures over batch sizes or, with --devices, over numbers of devices."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--devices", type=int, nargs="+")
    parser.add_argument("--dtype", default="bfloat16" if workers.has_gpu() else "float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    arguments = parser.parse_args()
    arguments.batch = arguments.batch or ([1024] if arguments.devices else list(BATCHES))
    (over_devices if arguments.devices else over_batches)(arguments)


if __name__ == "__main__":
    main()
