"""Simulated results of the protocol's runs: drawn numbers in the files that runs leave.

For tests only, and only in temporary folders. What the page should find is known: the accuracy of
each column, the seeds' effects and the residual deviation are set here.
"""

import json
from pathlib import Path

import numpy as np

from configs import evidence as sweeps
from flexpool_jax import configuration
from flexpool_jax.insight.perturbations import perturbations
from flexpool_jax.insight.weights import interventions, weight_statistics
from flexpool_jax.sweeps import grid

IMAGES = 2000
STEP = 4800
SOURCE = "0" * 60 + "5eed"
# In points above the column `avg`.
EFFECTS = {
    "flexpool": 0.6,
    "flexpool+reg": 0.6,
    "avg+dropout": 0.2,
    "flexpool+reg+dropout": 1.9,
}


def write_evidence(
    folder: Path, designs=tuple(sweeps.DESIGNS), effects=EFFECTS, sd=0.15, seeds=None
) -> None:
    """Writes every cell of some designs; 0.01 is the best rate of both pools in E0."""
    for name in designs:
        rates = "" if name in sweeps.WITHOUT_RATES else ",avg=0.01,flexpool=0.01"
        config = sweeps.get_config(f"{name}{rates}")
        config.seeds = seeds or config.seeds
        for cell in grid.expand(config, "configs", reads_data=False):
            column = cell.name.split("/")[1].removesuffix("+sac")
            rng = np.random.default_rng([cell.config.seed, *f"{name} {column}".encode()])
            seed_effect = np.random.default_rng(cell.config.seed).normal(0, 0.3)
            accuracy = 91 + effects.get(column, 0) + seed_effect + rng.normal(0, sd)
            if name == "e0":
                accuracy -= 2 * abs(np.log10(cell.config.learning_rate / 0.01))
            write_cell(folder / name / cell.name, cell.config, accuracy, rng)


def write_cell(folder: Path, config, accuracy: float, rng, **fields) -> None:
    """Writes the files of one run; the accuracy is rounded to whole images."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.arange(IMAGES) % 10
    predictions = labels.copy()
    # Half of the errors are on the same images in every run.
    wrong = round(IMAGES * (1 - accuracy / 100))
    common = np.arange(wrong // 2)
    others = rng.permutation(np.arange(len(common), IMAGES))[: wrong - len(common)]
    predictions[[*common, *others]] += 1
    arrays = {"labels": labels.astype(np.int16), "predictions": predictions.astype(np.int16)}
    np.savez(folder / "predictions.npz", **arrays)
    final = float((predictions == labels).mean())
    result = {
        "final_test_accuracy": final,
        # Another number than the last epoch's, nearer to it in some seeds than in others.
        "best_test_accuracy": 1 - (1 - final) / (2 + config.seed),
        "final_test_loss": 0.3,
        "split": "validation" if config.dataset.holdout else "test",
        "test_images": 6000 if config.dataset.holdout else IMAGES,
        "config": config.to_dict(),
        "config_digest": configuration.digest(config),
        "step": STEP,
        "config_changes": [],
        "source_hash": SOURCE,
    }
    (folder / "result.json").write_text(json.dumps(result | fields))
    w = None
    if config.pool.startswith("flexpool") and not config.sac.enabled:
        w = (1 + rng.normal(0, 0.3, (7, 7, 4))) / 49
        np.savez(folder / "pool_weights.npz", **{"head/pool/w_fp": w.astype(np.float32)})
    _write_probe(folder, final, result["config_digest"], w)


def _write_probe(folder: Path, accuracy: float, digest: str, w) -> None:
    drawn = interventions(w) if w is not None else []
    probe = {
        "config_digest": digest,
        "step": STEP,
        "baseline": {"accuracy": accuracy, "loss": 0.3},
        "interventions": [named | {"accuracy": accuracy - 0.01} for named, _ in drawn],
        "perturbations": [named | {"accuracy": accuracy - 0.1} for named, _ in perturbations()],
        "weights": None if w is None else weight_statistics(w, np.ones_like(w)),
    }
    (folder / "probe.json").write_text(json.dumps(probe))
