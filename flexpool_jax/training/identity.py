"""The identity of a run, to which a workdir and its checkpoints belong: id, config and data.

``run.json`` holds a random id, drawn when the run begins; ``data.json`` describes the data set.
Every checkpoint carries the id, the config and the digest of the data that it was trained with, so
that a checkpoint of another run, or a run that continues on other data, is refused.
"""

from __future__ import annotations

import dataclasses
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from flexpool_jax import configuration, files, layout
from flexpool_jax.data import Dataset
from flexpool_jax.errors import UserError
from flexpool_jax.source import run_source_hash, versions

# Files in which other modes report measurements of a checkpoint.
_MEASURED_FILES = (layout.EVALUATION_FILE, layout.PROBE_FILE)

# Fields of data.json, with the words that name them in a message about different data.
_DATA_TITLES = {
    "class_names": "class names",
    "image_shape": "image shape",
    "train_images": "training images",
    "test_images": "test images",
}


@dataclasses.dataclass(frozen=True)
class Identity:
    """The facts by which a run is distinguished from other runs.

    Attributes:
        id: 32 hexadecimal digits, drawn when the run began; None if the workdir has no run.json.
        config: config with which the run is trained or evaluated.
        data: digest of the run's data set, see `Dataset.digest`.
    """

    id: str | None
    config: ConfigDict
    data: str

    def to_json(self) -> dict[str, Any]:
        """Returns the values that are saved with each checkpoint."""
        values = {"id": self.id, "config": self.config.to_dict(), "data": self.data}
        return {**values, "devices": jax.device_count()}

    def check(self, step: int, saved: Mapping[str, Any] | None) -> None:
        """Checks that a checkpoint belongs to this run.

        Args:
            step: step of the checkpoint.
            saved: result of `to_json` when the checkpoint was saved; None for a checkpoint of
                release 0.1, which is accepted with a message on standard error.

        Raises:
            UserError: the checkpoint belongs to another run, another model, or other data.
        """
        if saved is None:
            print(
                f"checkpoint {step} was written by release 0.1 and does not say which run it "
                "belongs to: whether it is this one is not checked",
                file=sys.stderr,
            )
            return
        try:
            configuration.compare_with_workdir(
                self.config, configuration.config_from_json(saved["config"])
            )
        except UserError as error:
            raise UserError(f"checkpoint {step} is of another model or data: {error}") from error
        if self.id is not None and saved["id"] != self.id:
            raise UserError(
                f"checkpoint {step} is of another run: its id is {saved['id']}, the id in "
                f"{layout.RUN_FILE} is {self.id}; put this run's checkpoint back, or use another "
                "--workdir"
            )
        if saved["data"] != self.data:
            raise UserError(
                f"checkpoint {step} was trained on other data than {self.config.dataset.name} now "
                "is; give the same data, or another --workdir"
            )

    def changes(
        self, step: int, began_with: ConfigDict, devices: int | None = None
    ) -> list[dict[str, Any]]:
        """Lists the fields whose value changed at a step, among those that change what is computed.

        Args:
            step: step of the checkpoint from which the run continues.
            began_with: config with which the run was trained up to this step.
            devices: number of devices up to this step, None if it is not known. Another number is
                listed as a change of ``devices`` if each device has its own batch statistics.

        Returns:
            A dict for each change: ``step``, ``field``, ``from`` (old value), ``to`` (new value).
        """
        found = [
            {"step": step, "field": change.field, "from": change.saved, "to": change.given}
            for change in configuration.compare_with_workdir(self.config, began_with)
            # From another raw_dir come the same data, since their digest has been compared.
            if configuration.has_effect(change.field, self.config)
            and change.field != "dataset.raw_dir"
        ]
        now = jax.device_count()
        if devices not in (None, now) and not self.config.sync_batch_norm:
            found.append({"step": step, "field": "devices", "from": devices, "to": now})
        return found


def begin(workdir: Path, config: ConfigDict, dataset: Dataset) -> Identity:
    """Writes run.json and data.json when a run begins; reads and checks them when it continues.

    If the workdir has no saved state, data.json may describe the data of an earlier start that
    failed; it is then replaced. Measurements of an earlier run, whose checkpoints were deleted, are
    removed; a checkpoint that is damaged or superseded still belongs to a run.

    Args:
        workdir: an existing folder.
        config: config with which the run is trained.
        dataset: data set on which the run is trained.

    Raises:
        UserError: the data are not those that the run began with, or a file is damaged.
    """
    is_new = not configuration.has_any_checkpoint(workdir)
    if is_new:
        for name in _MEASURED_FILES:
            (workdir / name).unlink(missing_ok=True)
    run_id = read_id(workdir)
    description = files.with_digest(_describe(dataset))
    if files.read_json(workdir / layout.DATA_FILE) != description:
        if configuration.has_saved_state(workdir):
            recall(workdir, config, dataset)
        files.write_json(workdir / layout.DATA_FILE, description)
    # Checkpoints without a run.json were written by release 0.1, or were copied without the file.
    if run_id is None and is_new:
        run_id = uuid.uuid4().hex
        files.write_json(workdir / layout.RUN_FILE, {"id": run_id})
    return Identity(run_id, config, dataset.digest)


def recall(workdir: Path, config: ConfigDict, dataset: Dataset) -> Identity:
    """Reads what `begin` wrote, and checks the data against it; writes nothing.

    Raises:
        UserError: the data are not those that the run began with, or a file is damaged.
    """
    data = files.read_json(workdir / layout.DATA_FILE, ("digest", *_DATA_TITLES))
    # If the file was changed by hand, the digest in the checkpoints still detects other data.
    if data is not None and files.digest_matches(data):
        _check_data(data, _describe(dataset), workdir)
        if not config.dataset.mean:
            _check_normalisation(data, dataset, workdir)
    return Identity(read_id(workdir), config, dataset.digest)


def read_id(workdir: Path) -> str | None:
    """Reads the run's id from run.json; returns None if there is no such file."""
    run = files.read_json(workdir / layout.RUN_FILE, ("id",))
    return None if run is None else run["id"]


def facts(config: ConfigDict, dataset: Dataset) -> dict[str, Any]:
    """Lists what must be equal in all processes of a run; folders may differ between machines."""
    folders = ("dataset.data_dir", "dataset.raw_dir", "compilation_cache")
    fields = [name for name in configuration.field_names(config) if name not in folders]
    return {
        **{f"config.{name}": configuration.get_field(config, name) for name in fields},
        "the data's digest": dataset.digest,
        "the code's hash": run_source_hash(config),
        "the number of local devices": jax.local_device_count(),
        **versions(),
    }


def _describe(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "mean": [float(value) for value in dataset.mean],
        "std": [float(value) for value in dataset.std],
        "train_images": len(dataset.train),
        "test_images": len(dataset.test),
        "digest": dataset.digest,
    }


def _check_data(saved: Mapping[str, Any], found: Mapping[str, Any], workdir: Path) -> None:
    if saved["digest"] == found["digest"]:
        return
    differences = [
        f"{title} {_short(found[name])} (were {_short(saved[name])})"
        for name, title in _DATA_TITLES.items()
        if found[name] != saved[name]
    ]
    listed = "; ".join(differences or ["other pixels or labels"])
    raise UserError(
        f"{workdir} was trained on other data of the name {saved.get('name')}: {listed}; give the "
        "same data by --config.dataset.data_dir and raw_dir, or another --workdir"
    )


def _check_normalisation(saved: Mapping[str, Any], dataset: Dataset, workdir: Path) -> None:
    """Checks the mean and deviation, which are not part of the data's digest."""
    for name, found in (("mean", dataset.mean), ("std", dataset.std)):
        before = np.asarray(saved.get(name, found), np.float32)
        if before.shape != found.shape or not np.allclose(before, found, rtol=0, atol=1e-5):
            raise UserError(
                f"{workdir} was trained with {name} {before.tolist()}, and the data set has "
                f"{found.tolist()}; give the same data set"
            )


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
