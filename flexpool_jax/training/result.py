"""The files that a run writes at its end: result.json, predictions.npz, pool_weights.npz."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flexpool_jax import configuration, files, layout
from flexpool_jax.pooling import named_w_fp
from flexpool_jax.source import commit, versions
from flexpool_jax.training import checkpoints
from flexpool_jax.training.metrics import Meter
from flexpool_jax.training.resume import Progress
from flexpool_jax.training.setup import Setup
from flexpool_jax.training.steps import TrainState, parameter_count

_RESULT_NUMBERS = ("final_test_accuracy", "best_test_accuracy", "epochs", "seconds")


def write_predictions(
    workdir: Path, labels: np.ndarray, predictions: np.ndarray, confidences: np.ndarray
) -> None:
    """Writes predictions.npz, in the order of the test images.

    Args:
        workdir: an existing folder.
        labels: int [N]; written as ``labels`` int16.
        predictions: int16 [N], the predicted classes.
        confidences: float16 [N], the probabilities of the predicted classes.
    """
    _write_npz(
        workdir / layout.PREDICTIONS_FILE,
        labels=labels.astype(np.int16),
        predictions=predictions,
        confidences=confidences,
    )


def write_pool_weights(workdir: Path, params: Any) -> None:
    """Writes every ``w_fp`` to pool_weights.npz, named by its path, such as "head/pool/w_fp"."""
    arrays = {f"{path}w_fp": np.asarray(w) for path, w in named_w_fp(params)}
    _write_npz(workdir / layout.POOL_WEIGHTS_FILE, **arrays)


def _write_npz(path: Path, **arrays: np.ndarray) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    files.write_whole(path, content.getvalue())


def read_result(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Reads result.json; returns None if the file is missing, damaged or incomplete."""
    result = files.read_json_if_whole(Path(workdir) / layout.RESULT_FILE)
    is_whole = isinstance(result.get("split"), str) and all(
        isinstance(result.get(name), int | float) for name in _RESULT_NUMBERS
    )
    return result if is_whole and files.digest_matches(result) else None


def result_of(setup: Setup, progress: Progress, state: TrainState, meter: Meter) -> dict[str, Any]:
    """Returns the content of result.json."""
    assert progress.test is not None
    measured = dict(progress.test)
    hashes = progress.source_hashes
    device = jax.local_devices()[0]
    step = int(state.step)
    return {
        "final_test_accuracy": measured.pop("accuracy"),
        "final_test_loss": measured.pop("loss"),
        "best_test_accuracy": progress.best_accuracy,
        # Not that of the config if a program passed another data set.
        "dataset": setup.dataset.name,
        "class_names": list(setup.dataset.class_names),
        "final_test_accuracy_per_class": measured.pop("accuracy_per_class", None),
        "final_test_metrics": measured,
        **checkpoints.model_reference(step, state.variables),
        "epochs": step // setup.steps_per_epoch,
        "split": setup.split_name,
        # If the seed drew the images of the split, another seed has other ones.
        "test_split": "drawn" if setup.dataset.test_is_drawn else "official",
        "test_images": len(setup.dataset.test),
        "parameters": parameter_count(state.params),
        "config": setup.config.to_dict(),
        "config_digest": configuration.digest(setup.config),
        "config_changes": progress.config_changes,
        # A list if the code changed during the run.
        "source_hash": hashes[0] if len(hashes) == 1 else hashes,
        "commit": commit(),
        "data_digest": setup.dataset.digest,
        "seconds": progress.seconds,
        "images_per_second": meter.images_per_second,
        # The share of the time spent waiting for streamed data; None for data on the devices.
        "data_wait": meter.data_wait,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "platform": device.platform,
        "convolutions": setup.convolutions,
        "versions": versions(),
    }
