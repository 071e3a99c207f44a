"""Runs that are there in an instant: the files that training leaves, written by its own writers."""

from collections.abc import Callable
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import paper_tables
from flexpool_jax import configuration, files, layout
from flexpool_jax.sweeps import grid
from flexpool_jax.training import metrics

CONFIGS_DIR = "configs"


def small_sweep(**fields: object) -> ConfigDict:
    """A sweep over digits; fields replace those of configs/paper_tables.py."""
    config = paper_tables.get_config()
    config.datasets, config.sac, config.seeds = ("digits",), ("off",), (0,)
    config.update(fields)
    return config


def write_run(folder: Path, config: ConfigDict, accuracy: float, best: float | None = None) -> None:
    """Writes what a finished run leaves: config.json, metrics.jsonl and result.json."""
    folder.mkdir(parents=True)
    configuration.write_config(config, folder)
    with metrics.MetricsWriter(folder, tensorboard=False) as log:
        for epoch in range(1, config.num_epochs + 1):
            log.write(step=epoch, epoch=float(epoch), split="train", loss=1 / epoch)
            log.write(step=epoch, epoch=float(epoch), split="test", loss=0.5, accuracy=accuracy)
    result = {
        "final_test_accuracy": accuracy,
        "best_test_accuracy": accuracy if best is None else best,
        "epochs": config.num_epochs,
        "split": "test",
        "parameters": 269_434,
        "config": config.to_dict(),
        "config_digest": configuration.digest(config),
        "seconds": 36.0,
        "images_per_second": 1000.0,
        "device": "cpu",
        "devices": 1,
        "platform": "cpu",
        "versions": {
            "python": "3.11.7",
            "flexpool_jax": "0.1.0",
            "jax": "0.10.2",
            "flax": "0.12.8",
        },
    }
    files.write_json(folder / layout.RESULT_FILE, result)


@pytest.fixture
def write_sweep(tmp_path: Path) -> Callable[..., Path]:
    """Writes every run of a sweep; the accuracy is a function of the cell."""

    def write(sweep: ConfigDict, accuracy: Callable[[grid.Cell], float]) -> Path:
        for cell in grid.expand(sweep, CONFIGS_DIR):
            write_run(tmp_path / cell.name, cell.config, accuracy(cell))
        return tmp_path

    return write
