"""Debugs a run: traces a few of its steps, and finds the operation that returns a NaN."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax
import jax

from flexpool_jax import layout
from flexpool_jax.errors import TrainingDiverged
from flexpool_jax.training.setup import Setup

# The first and the last dispatch that is traced. Dispatch 1 compiles; dispatch 2 may wait for it.
_FIRST, _LAST = 3, 5


@contextlib.contextmanager
def profiling(setup: Setup, workdir: Path) -> Iterator[Setup]:
    """Yields a set-up whose third to fifth dispatch are traced by `jax.profiler`.

    Args:
        setup: result of `set_up`.
        workdir: folder of the run. TensorBoard's profile plugin reads the trace from the folder
            ``profile`` in it.
    """
    folder = workdir / layout.PROFILE_FOLDER
    hint = f"\nprofile: tensorboard --logdir={shlex.quote(str(folder))}"
    dispatches = 0
    with contextlib.ExitStack() as tracing:

        def train_steps(*arguments: Any) -> Any:
            nonlocal dispatches
            dispatches += 1
            if dispatches == _FIRST:
                tracing.callback(print, hint, file=sys.stderr)  # After the trace is written.
                tracing.enter_context(jax.profiler.trace(folder))
            result = setup.train_steps(*arguments)
            if dispatches == _LAST:
                jax.block_until_ready(result)
                tracing.close()
            return result

        yield dataclasses.replace(setup, train_steps=train_steps)
    if dispatches < _FIRST:
        print(
            f"no profile: it begins with the {_FIRST}rd dispatch, and this command made "
            f"{dispatches}; give a new --workdir, or more epochs",
            file=sys.stderr,
        )


@contextlib.contextmanager
def finding_nans() -> Iterator[None]:
    """Stops at the first compiled program that returns a NaN, and names the line that caused it.

    JAX checks the result of every program, so training is slower. JAX then runs the program that
    returned a NaN again, operation by operation.

    Raises:
        TrainingDiverged: a program returned a NaN.
    """
    with jax.debug_nans(True):
        try:
            yield
        except FloatingPointError as error:
            packages = (*jax.__path__, *flax.__path__)
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if not frame.filename.startswith(packages)]
            place = f"{own[-1].filename}:{own[-1].lineno}, in {own[-1].name}: {own[-1].line}"
            raise TrainingDiverged(f"the first NaN is the result of {place}") from error
