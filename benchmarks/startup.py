"""Claim: with a warm compile cache, a run makes its first step within 10 s of its start on a CPU.

    python -m benchmarks.startup
    python -m benchmarks.startup --config=configs/fashion_mnist.py \\
        -- --config.dataset.raw_dir=FOLDER

Measures `launch.py` as a user starts it, until its first step is in metrics.jsonl: imports, data
set (already prepared), model, compilation, one step. A cold start has an empty compile cache; a
warm start has the cache that the cold start left. For comparison, the imports alone are measured,
too, which every such program needs. Arguments after `--` are passed to launch.py.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import launches, report

IMPORTS = "import jax, flax.linen, optax, orbax.checkpoint; jax.devices()"


def _import_seconds() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Starts runs, cold and warm in turns, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/digits.py:flexpool,reg")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("flags", nargs="*", help="for launch.py, after --")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"imports alone": [], "cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare = [*arguments.flags, "--mode=prepare"]
        launches.launch(arguments.config, folder / "unused", prepare)
        for number in range(arguments.rounds):
            flags = [*arguments.flags, launches.cache_flag(folder / f"cache-{number}")]
            seconds["imports alone"].append(_import_seconds())
            for kind in ("cold", "warm"):
                workdir = folder / f"{kind}-{number}"
                seconds[kind].append(
                    launches.seconds_to_first_step(arguments.config, workdir, flags)
                )
    warm = statistics.median(seconds["warm"])
    report.print_table(
        f"Start to first step, {arguments.config}",
        ["", "seconds: median (min–max)", "ratio to warm"],
        [
            [kind, report.spread(values, 1), f"{statistics.median(values) / warm:.2f}"]
            for kind, values in seconds.items()
        ],
    )


if __name__ == "__main__":
    main()
