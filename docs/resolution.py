"""Prints the table of docs/portable.md: accuracy at other sizes than the network was trained at.

    python docs/resolution.py

Trains ResNet20 on digits of 32x32 pixels for six epochs, with average pooling and with FlexPool and
three seeds each, under runs/resolution/: a minute a run on two CPU cores. Finished runs are kept.
"""

import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import flexpool_jax  # noqa: E402
from configs import digits  # noqa: E402
from flexpool_jax import cpu  # noqa: E402

SIZES = (24, 28, 32, 40, 48)
SEEDS = (0, 1, 2)
POOLS = {"avg": "average pooling", "flexpool": "FlexPool"}


def accuracies(pool: str, seed: int) -> list[float]:
    """The accuracy in per cent at each of `SIZES`."""
    config = digits.get_config(pool)
    config.dataset.image_size, config.num_epochs, config.seed = 32, 6, seed
    workdir = ROOT / "runs/resolution" / pool / str(seed)
    flexpool_jax.train(config, workdir)
    return [100 * flexpool_jax.evaluate(workdir, resize=size)["accuracy"] for size in SIZES]


def main() -> None:
    """Prints a line for each pool: the mean over seeds, and the lowest and highest."""
    print(f"| | {' | '.join(f'{size}×{size}' for size in SIZES)} |")
    print(f"| --- |{' ---: |' * len(SIZES)}")
    for pool, title in POOLS.items():
        by_size = zip(*(accuracies(pool, seed) for seed in SEEDS), strict=True)
        cells = (f"{statistics.mean(x):.1f} ({min(x):.1f} to {max(x):.1f})" for x in by_size)
        print(f"| {title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    cpu.prepare_process()
    main()
