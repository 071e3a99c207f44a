"""Training; `train` is the way in.

In the order in which to read the files:

- run: a run from its beginning to result.json; loop: its steps and epochs.
- steps: one update and one evaluation step, and their compiled programs; setup builds them, with
  the model and the optimizer, from a config; feed hands them the data; eval_loop sums an evaluation
  up.
- checkpoints, saving, resume: how a state is kept and found again; orbax_faults: damaged folders.
- identity, result: what a workdir says of its run and of what came out.
- metrics, console: numbers for files and for people.
- interrupts: signals; processes: several hosts; pace: steps of one dispatch; superclass, debugging,
  determinism: options of a config or a command.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from flexpool_jax import configuration, files

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from flexpool_jax.data import Dataset


def train(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    dataset: Dataset | None = None,
    *,
    profile: bool = False,
    debug_nans: bool = False,
) -> dict[str, Any]:
    """Trains a model, or continues from the workdir's latest checkpoint if it holds one.

    JAX is imported after the config and the workdir are found to be right.

    Args:
        config: every field of configs/default.py, such as ``configs.digits.get_config()`` returns.
        workdir: folder for config.json, checkpoints/, metrics.jsonl, result.json and more; created
            if need be.
        dataset: used in the place of what ``config.dataset`` names. Give the same one whenever this
            run is continued or evaluated: other data are refused.
        profile: trace a few steps; TensorBoard's profile plugin reads the workdir's profile/.
        debug_nans: end at the operation that gives the first NaN, and name its line. Slower.

    Returns:
        What is written to result.json: final and best accuracy, seconds, versions and more.

    Raises:
        UserError: the config is wrong, or differs from the workdir's in a field that is fixed once
            a run has begun; or the workdir cannot be used.
        Interrupted: the process was told to stop by a signal; the state is saved.
        TrainingDiverged: a loss became NaN or infinite.

    Example:
        >>> import tempfile
        >>> from configs import digits
        >>> config = digits.get_config("flexpool,reg")
        >>> config.num_epochs = 0
        >>> train(config, tempfile.mkdtemp())
        Traceback (most recent call last):
        ...
        flexpool_jax.errors.UserError: config.num_epochs is 0; allowed: ...
    """
    folder = files.expanded(workdir).absolute()
    config = configuration.resolve(config)
    configuration.check_files(config)
    configuration.check_workdir(os.fspath(workdir))
    configuration.check_resume(config, folder)

    from flexpool_jax.training import debugging, run

    with debugging.finding_nans() if debug_nans else contextlib.nullcontext():
        return run.train(config, folder, dataset, profile)
