"""`train`: the training loop, resumable at any step.

What the loop does follows from the step and the `Progress` that is saved with each checkpoint.
There is no other state, so that a run that was stopped anywhere continues as if it had not been.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from flexpool_jax import configuration, files
from flexpool_jax.data import Dataset
from flexpool_jax.errors import Interrupted, TrainingDiverged
from flexpool_jax.lock import LOCK_FILE, hold_workdir
from flexpool_jax.source import source_hash
from flexpool_jax.training import checkpoints, console, metrics, processes, superclass
from flexpool_jax.training.debugging import profiling
from flexpool_jax.training.determinism import use_deterministic_ops
from flexpool_jax.training.epoch_end import EpochEnd, end_epoch, finish_epoch
from flexpool_jax.training.feed import Feed
from flexpool_jax.training.identity import begin, facts
from flexpool_jax.training.interrupts import StopRequest, stop_on_signals
from flexpool_jax.training.pace import Pace
from flexpool_jax.training.result import RESULT_FILE, read_result, result_of
from flexpool_jax.training.resume import Progress, restore_or_init
from flexpool_jax.training.run import Run
from flexpool_jax.training.saving import Saver
from flexpool_jax.training.setup import (
    Setup,
    load_configured_dataset,
    replicate,
    set_up,
    use_compilation_cache,
)
from flexpool_jax.training.steps import NotFinite, TrainState, parameter_count, steps_in


def train(
    config: ml_collections.ConfigDict,
    workdir: Path,
    dataset: Dataset | None = None,
    profile: bool = False,
) -> dict[str, Any]:
    """Trains as `flexpool_jax.train` does, with a config and a workdir that have been checked."""
    with stop_on_signals() as stop, processes.explaining_loss():
        use_compilation_cache(config.compilation_cache)
        if config.deterministic:
            use_deterministic_ops()
        dataset = dataset or load_configured_dataset(config)
        processes.check_alike(facts(config, dataset))
        phases = [("", set_up(config, dataset))]
        if config.superclass.epochs:
            coarse = superclass.superclass_dataset(dataset, config.superclass.mapping)
            first = set_up(superclass.superclass_config(config), coarse)
            phases.insert(0, (superclass.FOLDER, first))
        stop.agree = processes.shared_flag()
        with processes.writable(workdir) as own_workdir, hold_workdir(own_workdir):
            processes.check_shared(workdir / LOCK_FILE)
            result: dict[str, Any] = {}
            trained = None
            for name, setup in phases:
                folder = own_workdir / name
                folder.mkdir(exist_ok=True)
                with (
                    profiling(setup, folder)
                    if profile and not name
                    else contextlib.nullcontext(setup)
                ) as watched:
                    trained, result = _train_phase(watched, folder, stop, trained)
            return result


def _train_phase(
    setup: Setup, workdir: Path, stop: StopRequest, pretrained: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Runs one phase to its end; returns its final variables, on the host, and its result."""
    config = setup.config
    changes = configuration.check_resume(config, workdir)
    identity = begin(workdir, config, setup.dataset)
    with checkpoints.open_checkpoints(workdir) as manager:
        state, progress = restore_or_init(setup, manager, identity, pretrained)
        found = [dataclasses.asdict(progress), read_result(workdir)]
        saved_progress, result = processes.gather(found)[0]
        state, progress = processes.broadcast(state), Progress(**saved_progress)
        step = int(state.step)
        if result is not None and step == setup.total_steps and progress.evaluated:
            print(f"this run is finished: {workdir / 'result.json'}", file=sys.stderr)
            return state.variables, result
        for change in changes:
            print(f"continuing with another value: {change}", file=sys.stderr)
        # Only if needed: a full disk may have room only after an unfinished save is removed.
        if changes or not configuration.config_path(workdir).is_file():
            configuration.write_config(config, workdir)
        if source_hash() not in progress.source_hashes:
            progress.source_hashes.append(source_hash())
        lines = console.first_lines(setup, step, parameter_count(state.params))
        print(*lines, sep="\n", file=sys.stderr, flush=True)
        with (
            metrics.MetricsWriter(
                workdir,
                tensorboard=config.tensorboard,
                resume_bytes=progress.metrics_position,
                purge_step=step + 1,
            ) as log,
            contextlib.closing(
                console.ProgressBar(setup.total_steps, setup.steps_per_epoch, step)
            ) as bar,
        ):
            started = time.monotonic() - progress.seconds
            meter = metrics.Meter(config.batch_size)
            saver = Saver(manager, identity, step, progress.evaluated)
            run = Run(setup, workdir, progress, meter, saver, log, bar, stop, started)
            state = _run_epochs(run, state)
        result = result_of(setup, identity, progress, state, meter)
        files.write_json(workdir / RESULT_FILE, files.sealed(result))
        return jax.device_get(state.variables), processes.gather(result)[0]


def _run_epochs(run: Run, state: TrainState) -> TrainState:
    """Trains to the last epoch; returns the state at its end."""
    setup, meter, progress, stop = run.setup, run.meter, run.progress, run.stop
    steps_per_epoch, num_epochs = setup.steps_per_epoch, setup.config.num_epochs
    is_given = setup.config.steps_per_dispatch > 0 or setup.steps_per_dispatch == 1
    pace = Pace(steps_per_epoch, setup.steps_per_dispatch, is_final=is_given)
    train_feed = Feed(setup.dataset.train, setup.is_streamed)
    test_feed = Feed(setup.dataset.test, setup.is_streamed)
    key, step = jax.random.key(setup.config.seed), int(state.step)
    state = replicate(state)
    # There, steps would share the cores with the evaluation and the saving of the epoch before.
    on_cpu = jax.default_backend() == "cpu"
    # The epoch that is not evaluated and saved yet, though its steps are dispatched.
    ended: EpochEnd | None = None
    # The first step compiles; until it came back, nothing can be lost.
    stop.saves = False
    stop.check()
    # An epoch whose steps are done, but that was not evaluated, is continued at its evaluation.
    first_epoch = (step - (not progress.evaluated)) // steps_per_epoch
    with _explaining_divergence(run), contextlib.closing(train_feed):
        try:
            for epoch in range(first_epoch, num_epochs):
                start = step - epoch * steps_per_epoch
                parts = train_feed.epoch(setup, epoch, start, pace.steps_from)
                for part in meter.waiting_for(parts) if setup.is_streamed else parts:
                    if ended is None:
                        stop.check()
                    meter.expect(steps_in(part))
                    state, values = setup.train_steps(state, train_feed.data, part, key)
                    step += steps_in(part)
                    meter.add(step, values)
                    stop.saves = True
                    if ended is not None:
                        finish_epoch(run, ended, test_feed)
                        ended = None
                    progress.evaluated = False
                    run.report_steps()
                    if not pace.is_final:
                        # All processes dispatch the same steps.
                        pace.slow_down(max(processes.gather(meter.seconds_per_step)))

                # Else the next epoch's first steps are dispatched before this one is finished.
                in_turn = on_cpu or epoch + 1 == num_epochs or meter.step == 0
                if in_turn:
                    meter.wait()
                    run.report_steps()
                ended = end_epoch(run, state, epoch + 1, test_feed, copy=not in_turn)
                if in_turn:
                    finish_epoch(run, ended, test_feed)
                    ended = None
                    meter.pause()
            run.saver.wait()
        except Interrupted:
            if ended is None:
                meter.wait()
            else:
                # Steps after its end are made again.
                state = ended.state
            run.write_steps()
            snapshot = run.snapshot(state)
            run.saver.save(snapshot)
            run.saver.wait()
            processes.gather(snapshot.step)  # The others wait until process 0 has saved.
            run.bar.close()
            raise Interrupted(
                f"told to stop at step {snapshot.step} of {setup.total_steps}; "
                "the same command continues from there"
            ) from None
    progress.seconds = time.monotonic() - run.started
    return state


@contextlib.contextmanager
def _explaining_divergence(run: Run) -> Iterator[None]:
    """Turns `NotFinite` into a `TrainingDiverged` that names the last good checkpoint.

    The loss is computed before the update: the weights may become infinite after a finite loss.
    """
    try:
        yield
    except (NotFinite, FloatingPointError) as error:
        run.bar.close()
        run.saver.save()
        run.saver.wait()
        if isinstance(error, FloatingPointError):  # Of --debug_nans, which says more.
            raise
        good = run.saver.last_step()
        saved = f"the last good checkpoint is step {good}" if good is not None else "none was saved"
        advice = "the same command with a lower --config.learning_rate continues from there"
        if error.step == 1:
            advice = "no update was made before it: look at the model and the data"
        text = (
            f"{error} at step {error.step} (epoch "
            f"{math.ceil(error.step / run.setup.steps_per_epoch)}); {saved}; {advice}"
        )
        raise TrainingDiverged(processes.gather(text)[0]) from error
