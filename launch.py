"""Trains and evaluates image classifiers with FlexPool; see `python launch.py --help`.

There is one function for each mode. Flags, config and workdir are checked before anything is
written; most mistakes are found before JAX is imported.
"""

import errno
import io
import os
import shlex
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    # If the shell has closed a standard stream, it is the null device: a file that is opened later
    # must not get the stream's number.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    # Until `main` handles Ctrl-C, it ends the process at once, without a traceback of the imports.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # It may start the process anew, so it comes before imports that take long.
    from flexpool_jax import cpu

    cpu.prepare_process()

from absl import app, flags
from ml_collections import ConfigDict

import flexpool_jax
from flexpool_jax import command_line, configuration, layout
from flexpool_jax.command_line import Command
from flexpool_jax.errors import (
    Interrupted,
    PeerLost,
    SweepFailed,
    TrainingDiverged,
    UnknownName,
    UserError,
    one_line,
)
from flexpool_jax.training.interrupts import EXIT_STATUS as EXIT_INTERRUPTED
from flexpool_jax.training.interrupts import stop_on_signals

CONFIGS_DIR = Path(__file__).resolve().parent / "configs"

EXIT_FAILED, EXIT_USER_ERROR, EXIT_KEYBOARD = 1, 2, 130
# Exit status that shells report for a program that was ended by SIGPIPE.
EXIT_BROKEN_PIPE = 141

_HELP = ("-h", "-?", "--h", "-help", "--help", "--helpshort", "--helpfull")

# Error numbers of the operating system that the user's paths cause, not a bug in the program.
_OF_PATHS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def train(command: Command) -> None:
    """Trains a model, or continues training from the workdir's last checkpoint."""
    config, workdir = _config(command), _workdir(command)
    result = flexpool_jax.train(
        config, workdir, profile=command.profile, debug_nans=command.debug_nans
    )
    evaluation = [f"--workdir={workdir}", "--mode=eval", *command.config_flags]
    final, best = (100 * result[f"{which}_test_accuracy"] for which in ("final", "best"))
    print(
        f"final {result['split']} accuracy {final:.2f} %, best {best:.2f} % "
        f"({result['epochs']} epoch{'s' * (result['epochs'] != 1)}, {result['seconds']:.0f} s); "
        f"see {workdir}/{layout.RESULT_FILE}\n"
        f"evaluate with: python launch.py {shlex.join(evaluation)}"
    )


def evaluate(command: Command) -> None:
    """Evaluates a checkpoint of the workdir on the test split."""
    workdir, step, config = _checkpoint(command)

    from flexpool_jax.scoring import METRICS

    result = flexpool_jax.evaluate(workdir, step, config, resize=command.resize)
    size = f" at {command.resize}x{command.resize} pixels" if command.resize else ""
    print(
        f"{result['split']} accuracy{size} {100 * result['accuracy']:.2f} %, "
        f"loss {result['loss']:.4f} ({result['examples']:,} images, step {result['step']:,})"
    )
    metrics = [name for name in METRICS if name in result]
    print(", ".join(f"{name.replace('_', ' ')} {result[name]:.4g}" for name in metrics))
    _warn_of_best(step)


def _warn_of_best(step: str) -> None:
    if step == "best":
        print("this step was chosen by its accuracy on these images, which is therefore too high")


def probe(command: Command) -> None:
    """Measures the accuracy of a checkpoint with a changed pool and on changed images."""
    workdir, step, config = _checkpoint(command)
    configuration.check_workdir(workdir)

    from flexpool_jax.insight import probe as probing

    report = probing.probe_workdir(workdir, step, config)
    print(probing.summary(report))
    _warn_of_best(step)
    print(f"see {workdir}/{layout.PROBE_FILE}")


def inspect(command: Command) -> None:
    """Shows what a checkpoint has learned: weights, evidence maps, errors, calibration."""
    workdir, step, config = _checkpoint(command)
    configuration.check_workdir(workdir)

    from flexpool_jax.insight import inspection

    print(inspection.summarise(inspection.inspect_workdir(workdir, step, config)))
    _warn_of_best(step)
    print(f"see {workdir}/{layout.INSPECT_FOLDER}/{inspection.PAGE_FILE}")


def predict(command: Command) -> None:
    """Predicts the classes of image files."""
    if not command.images:
        raise UserError("--mode=predict needs --images=PATH_OR_GLOB, e.g. --images=photos/")
    workdir, step, config = _checkpoint(command, reads_data=False)
    configuration.check_workdir(workdir)

    from flexpool_jax.insight import predict as predicting

    found = predicting.predict_files(workdir, command.images, command.top_k, step, config)
    print(predicting.table(found))
    print(f"see {workdir}/{layout.PREDICT_FOLDER}")


def export(command: Command) -> None:
    """Exports a checkpoint to a folder that can be used without this project."""
    workdir, step, config = _checkpoint(command, reads_data=False)
    configuration.check_workdir(workdir)

    from flexpool_jax.portable.export import export_workdir

    print(f"see {export_workdir(workdir, step, config)}")


def prepare(command: Command) -> None:
    """Downloads and converts the config's data set."""
    config = configuration.resolve(_config(command))
    dataset = config.dataset

    from flexpool_jax import data

    folder = data.prepare_dataset(
        **configuration.dataset_options(config),
        max_bytes=data.memory_for_images(dataset.placement),
    )
    where = f"is prepared in {folder}" if folder else "is read as it is, without preparation"
    print(f"{dataset.name} {where}")


def sweep(command: Command) -> None:
    """Trains all unfinished runs of a sweep, each in its own process."""
    from flexpool_jax.sweeps import grid
    from flexpool_jax.sweeps.sweep import run_sweep

    config, workdir = _config(command), _workdir(command)
    configuration.check_workdir(workdir)
    cells = grid.expand(config, CONFIGS_DIR, workdir)
    if command.shard is not None:
        cells = grid.take_shard(cells, command.shard)
    # If a launcher started several tasks, each task trains other runs, not a part of one run.
    command_line.forget_tasks()
    run_sweep(cells, workdir, (sys.executable, str(Path(__file__).resolve())), probe=config.probe)


def report(command: Command) -> None:
    """Writes tables, figures and an HTML page from the results under the workdir."""
    from flexpool_jax.report.page import PAGE_FILE, write_report
    from flexpool_jax.sweeps import grid

    workdir = _workdir(command)
    configuration.check_workdir(workdir)
    # A config.json in the workdir belongs to a single run and does not list the runs of a sweep.
    cells = []
    if command.config_given:
        cells = grid.expand(_config(command), CONFIGS_DIR, workdir, reads_data=False)
    path, skipped = write_report(workdir, cells)
    for line in skipped:
        print(f"skipped: {line}", file=sys.stderr)
    print(f"see {path.with_name(PAGE_FILE)} or {path}")


class Mode(NamedTuple):
    """A mode of launch.py.

    Attributes:
        run: Function that runs the mode.
        summary: Line that describes the mode in --help.
        flags: Names of the flags that this mode allows, of those that only some modes allow.
    """

    run: Callable[[Command], None]
    summary: str
    flags: tuple[str, ...] = ()


_PROCESSES = ("distributed", "coordinator_address", "num_processes", "process_id")

MODES = {
    "train": Mode(
        train,
        "train; continues if the workdir holds a checkpoint (default)",
        ("profile", "debug_nans", *_PROCESSES),
    ),
    "eval": Mode(
        evaluate,
        "accuracy of a checkpoint; needs only --workdir, and the data set",
        ("step", "resize", *_PROCESSES),
    ),
    "prepare": Mode(prepare, "download and convert the data set, nothing else"),
    "sweep": Mode(sweep, "train a grid of runs, e.g. --config=configs/paper_tables.py", ("shard",)),
    "report": Mode(report, "tables, figures and a page from the results under --workdir"),
    "probe": Mode(probe, "accuracy with a changed pool and on changed images", ("step",)),
    "inspect": Mode(
        inspect, "weights, evidence maps, errors and calibration, as a page", ("step",)
    ),
    "predict": Mode(
        predict, "the classes of the image files that --images names", ("step", "images", "top_k")
    ),
    "export": Mode(export, "a folder that runs with jax alone, and the weights", ("step",)),
}


def parse_flags(argv: Sequence[str]) -> Command:
    """Reads a command line that begins with the program's name.

    --help and --version print their text and end the process.

    Raises:
        UserError: The command line has a mistake.
    """
    # The command line cannot set absl's own flags. With -1, absl's log shows warnings and errors.
    flags.FLAGS([argv[0], "--verbosity=-1"])
    for argument in argv[1:]:
        if argument in _HELP:
            print(help_text())
            sys.exit()
        if argument in ("--version", "-version"):
            print(f"flexpool_jax {flexpool_jax.__version__}")
            sys.exit()
    return command_line.read(argv[1:], MODES, CONFIGS_DIR)


def run_mode(command: Command) -> None:
    """Checks the flags of a command and runs its mode.

    Raises:
        UserError: A flag is not allowed for the mode, or several tasks were started without a flag
            that says whether they are one run.
    """
    mode = MODES[command.mode]
    for flag in sorted({flag for mode in MODES.values() for flag in mode.flags}):
        value = getattr(command, flag)
        if value and flag not in mode.flags:
            given = f"the mode is {command.mode}"
            if command.mode == command_line.DEFAULT_MODE:
                given += ", the default"
            takers = ", ".join(name for name, mode in MODES.items() if flag in mode.flags)
            raise UserError(f"--{flag}={value} is a flag of --mode={takers}; {given}")
    if command.distributed or command.coordinator_address:
        from flexpool_jax.training import processes

        with processes.joined(*(getattr(command, flag) for flag in _PROCESSES[1:])):
            _run(mode, command)
        return
    tasks = command_line.task_count()
    if "distributed" in mode.flags and command.num_processes is None and tasks > 1:
        raise UserError(
            f"{tasks} tasks were started together: --distributed makes them one run, and "
            "--num_processes=1 a run each, with a --workdir of its own"
        )
    _run(mode, command)


def main(arguments: Sequence[str]) -> int:
    """Runs a command line and returns the exit status; one process may call it many times."""
    try:
        # Training saves its state after a signal; the other modes stop at once.
        with stop_on_signals():
            app.run(run_mode, [__file__, *arguments], flags_parser=parse_flags)
    except SystemExit as end:  # app.run always ends with SystemExit.
        return int(end.code or 0)
    except UserError as error:
        return _report(error, EXIT_USER_ERROR)
    except (SweepFailed, TrainingDiverged) as error:
        return _report(error, EXIT_FAILED)
    except (Interrupted, PeerLost) as error:
        return _report(error, EXIT_INTERRUPTED)
    except BrokenPipeError:
        return _stop_writing()
    except OSError as error:
        # An error without a file name is one of standard output or standard error.
        where = error.filename or "output"
        if error.errno in _NO_SPACE:
            advice = "what was saved before is kept; free some space and run the same command again"
            return _report(f"{where}: {error.strerror}; {advice}", EXIT_FAILED)
        if error.filename is None or error.errno not in _OF_PATHS:
            raise
        return _report(f"{where}: {error.strerror}", EXIT_USER_ERROR)
    except RuntimeError as error:
        if not all(part in str(error) for part in ("RESOURCE_EXHAUSTED", "ut of memory")):
            raise
        return _report(
            f"the memory of the device is full ({one_line(error)}); allowed: a smaller "
            "--config.batch_size or --config.eval_batch_size, or a larger "
            "--config.grad_accum_steps",
            EXIT_FAILED,
        )
    except KeyboardInterrupt:
        return _report("interrupted", EXIT_KEYBOARD)


def help_text() -> str:
    """Returns the text of --help: modes, flags and examples."""
    modes = "\n".join(f"  {name:<10}{mode.summary}" for name, mode in MODES.items())
    configs = textwrap.fill(
        " ".join(configuration.config_files(CONFIGS_DIR)), 79, initial_indent=" " * 12,
        subsequent_indent=" " * 12,
    ).lstrip()  # fmt: skip
    return f"""\
Trains and evaluates classifiers with FlexPool and auxiliary classifiers.

  python launch.py --config=configs/FILE.py[:VARIANT] --workdir=FOLDER
                   [--mode=MODE] [--config.FIELD=VALUE ...]

modes
{modes}

flags
{_flags_text()}

configs/    {configs}
variants    a pool's name, reg, dropout, sac and FIELD=VALUE, with commas
fields      configs/default.py explains each, its default and the reason for it

examples
  python launch.py --config=configs/digits.py:flexpool,reg --workdir=runs/digits
  python launch.py --config=configs/cifar10.py:flexpool,reg,dropout,sac \\
      --workdir=runs/cifar10 --config.seed=1 --config.sac.weights=0.05,0.1,0.85
  python launch.py --workdir=runs/digits --mode=eval --step=best"""


def _flags_text() -> str:
    """Lists all flags with their meanings, and the modes of flags that only some modes allow."""
    lines = []
    for flag, meaning in command_line.FLAGS.items():
        takers = [name for name, mode in MODES.items() if flag in mode.flags]
        text = meaning + (f" ({', '.join(takers)})" if takers else "")
        lines.append(textwrap.fill(f"  --{flag:<9} {text}", 79, subsequent_indent=" " * 14))
    return "\n".join([*lines, "  --version, --help"])


def _run(mode: Mode, command: Command) -> None:
    """Runs a mode; adds a hint to the error if the workdir's config has an unknown name."""
    try:
        mode.run(command)
    except UnknownName as error:
        if command.config_flags:  # The config file was given, and has registered what it does.
            raise
        raise UserError(f"{error}; if a config file registers it, give its --config too") from error


def _config(command: Command) -> ConfigDict:
    """Returns the config; raises UserError if there is none."""
    if command.config is None:
        if command.mode == "sweep":
            allowed = "e.g. --config=configs/paper_tables.py, also to continue a sweep"
        else:
            allowed = "e.g. --config=configs/digits.py, or the --workdir of a run that has begun"
        raise UserError(f"--mode={command.mode} needs --config=FILE, {allowed}; see --help")
    return command.config


def _workdir(command: Command) -> str:
    """Returns the workdir; raises UserError if none was given."""
    if not command.workdir:
        raise UserError(f"--mode={command.mode} needs --workdir=FOLDER; see --help")
    return command.workdir


def _checkpoint(command: Command, *, reads_data: bool = True) -> tuple[str, str, ConfigDict]:
    """Returns the workdir of a run, the step of the checkpoint to use, and the config.

    The step is "best", "latest" or a number as text. If the mode reads the run's data set,
    reads_data is True, and the data set must exist. From here on, compiled programs are stored in
    the config's compilation_cache.

    Raises:
        UserError: There is no run in the workdir, or the config describes another run.
    """
    workdir = _workdir(command)
    config = configuration.config_of_run(workdir, command.config, reads_data=reads_data)

    from flexpool_jax.training.environment import use_compilation_cache

    use_compilation_cache(config.compilation_cache)
    return workdir, command.step or command_line.DEFAULT_STEP, config


def _report(error: object, status: int) -> int:
    """Writes an error as one line to standard error, and returns the exit status."""
    print(f"launch.py: {' '.join(str(error).splitlines())}", file=sys.stderr)
    return status


def _stop_writing() -> int:
    """Discards further output and returns the exit status for a closed pipe.

    A pipe is closed if its reader ends first, as in `launch.py --help | head -1`. Buffered output
    is then written to the null device, so that Python does not report an error at exit.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    return EXIT_BROKEN_PIPE


if __name__ == "__main__":
    # Names of classes and files may hold characters that a terminal's encoding does not have.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # Matplotlib's cache of fonts is put into the folder with the compiled programs.
    fonts = os.path.expanduser("~/.cache/flexpool_jax/matplotlib")  # noqa: PTH111 (may have no home)
    os.environ.setdefault("MPLCONFIGDIR", fonts)
    try:
        status = main(sys.argv[1:])
    except Exception as error:
        # JAX adds a note about frames. A sweep gives the last line as the reason of a failed run.
        error.__notes__ = []
        # The process must end after any error, because other processes of the run wait for it.
        traceback.print_exc()
        status = EXIT_FAILED
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except OSError:
        status = _stop_writing()
    if status and "orbax.checkpoint" in sys.modules:
        # Everything that can be saved is saved. After a failed save, a thread of Orbax may wait
        # forever, and Python would wait for this thread.
        os._exit(status)
    sys.exit(status)
