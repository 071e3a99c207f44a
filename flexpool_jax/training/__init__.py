"""Training; `train` is the entry point.

The modules, in the order in which to read them:

- run: a run from its beginning to result.json. loop: the steps and epochs of a run.
- steps: one update and one evaluation step, and their compiled programs. setup: builds these steps,
  the model and the optimizer from a config. feed: passes the data to the steps. eval_loop: the
  evaluation of a split.
- checkpoints, saving, resume: how a state is saved and restored. orbax_faults: damaged folders.
- identity: which run a workdir belongs to. result: the files that a finished run writes.
- metrics: numbers for files. console: output for people.
- interrupts: signals. processes: several hosts. pace: the number of steps in a dispatch.
- superclass, debugging, determinism: options of a config or a command.
- environment: checks of JAX's settings, and the cache of compiled programs.
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

    The workdir and the config are checked before anything is written, and most of the config before
    JAX is imported.

    Args:
        config: a config with every field of configs/default.py, such as
            ``configs.digits.get_config()`` returns.
        workdir: folder for config.json, checkpoints/, metrics.jsonl, result.json and more; created
            if it does not exist.
        dataset: data set to use instead of the one that ``config.dataset`` names. Pass the same
            data set whenever this run is continued or evaluated: other data are refused.
        profile: whether to trace a few steps. TensorBoard's profile plugin reads the trace from the
            workdir's folder profile/.
        debug_nans: whether to stop at the operation that returns the first NaN, and to name its
            line. Training is slower then.

    Returns:
        The content of result.json: final and best accuracy, seconds, versions and more.

    Raises:
        UserError: the config or an array of ``dataset`` is wrong; the workdir has the result of a
            finished run, but no checkpoint; the config differs from the workdir's in a field that
            is fixed once a run has saved a checkpoint; the workdir cannot be used; or a setting of
            JAX, such as ``jax_enable_x64``, changes what a seed draws.
        PeerLost: another process of the run has ended.
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
    # The text and not the folder, because a Path has lost the slashes of an address.
    configuration.check_workdir(os.fspath(workdir))
    configuration.check_saving(folder)
    config = configuration.resolve(config)
    configuration.resolve_training_files(config, folder)
    configuration.check_resume(config, folder)

    from flexpool_jax.training import debugging, run

    with debugging.finding_nans() if debug_nans else contextlib.nullcontext():
        return run.train(config, folder, dataset, profile)
