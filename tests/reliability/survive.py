"""Kills runs at random moments, starts them again, and compares their ends with one left in peace.

    python -m tests.reliability.survive --runs=100

Each run has its own workdir and data folder. Its command is killed (SIGKILL) once to three times,
somewhere in preparing the data, starting, training, evaluating or checkpointing, and then run to
its end; `--mode=eval` is killed once as well. A run has survived if every array of the last
checkpoint is what the undisturbed run's is, bit for bit, and so are metrics.jsonl, result.json
(clocks aside) and the accuracy that `--mode=eval` finds. Prints a line a run, and the figure.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Small batches and a large held-out part: many steps, and long evaluations, in a few seconds.
RUN = (
    "--config=configs/digits.py:flexpool,reg,dropout,sac",
    "--config.dataset.image_size=8",
    "--config.dataset.holdout=0.8",
    "--config.batch_size=32",
    "--config.eval_batch_size=100",
    "--config.num_epochs=3",
    "--config.tensorboard=False",
)

# One run in so many begins with no compiled program at hand, and may be killed while it compiles.
COLD_EVERY = 20

# Seconds after which a process is taken to hang; long, for the machine may be busy with others.
PATIENCE = 3600

# What depends on the clock, and where on the disk the run's data lies.
CLOCKS = ("seconds", "images_per_second", "config", "sha256")


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of a run.

    Attributes:
        name: for the report.
        sign: text on standard error with which it begins; "" for the start of the process.
        seconds: about how long it lasts; the kill comes at a random moment of it.
        recurs: how many times it comes in a run.
    """

    name: str
    sign: str
    seconds: float
    recurs: int = 1


# In the order in which a run goes through them first.
STARTING = Phase("starting", "", 3)
PREPARING = Phase("preparing", "PREPARING", 1)
COMPILING = Phase("compiling", "compiling the first step", 20)
LOADING = Phase("loading", "compiling the first step", 1)
TRAINING = Phase("training", "validation accuracy", 1, 2)
EVALUATING = Phase("evaluating", "| step ", 0.3, 3)
CHECKPOINTING = Phase("checkpointing", "validation accuracy", 0.3, 3)
PHASES = (STARTING, PREPARING, LOADING, TRAINING, EVALUATING, CHECKPOINTING)


class Run:
    """A command with a workdir and a data folder of its own."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.workdir = folder / "workdir"
        self.data_dir = folder / "data"
        self.environment = dict(os.environ, JAX_COMPILATION_CACHE_DIR=str(cache))
        self.environment.setdefault("JAX_PLATFORMS", "cpu")
        self.environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

    def start(self, mode: str) -> "Process":
        """Starts the command, or the evaluation of its workdir."""
        arguments = [f"--workdir={self.workdir}", f"--mode={mode}"]
        if mode == "train":
            arguments += [*RUN, f"--config.dataset.data_dir={self.data_dir}"]
        return Process(arguments, self.environment, self.data_dir)

    def kill(self, phase: Phase, chance: random.Random, mode: str = "train") -> bool:
        """Kills the command at a random moment of a phase; False if it ended before."""
        occurrence = chance.randint(1, phase.recurs)
        process = self.start(mode)
        process.wait_for(phase.sign, occurrence)
        time.sleep(chance.random() * phase.seconds)
        process.popen.kill()
        process.finish()
        return process.popen.returncode == -9

    def finish(self, mode: str) -> None:
        """Runs the command to its end."""
        process = self.start(mode)
        process.finish()
        text = "".join(process.lines)
        assert process.popen.returncode == 0, text
        assert "Traceback" not in text, text

    def outcome(self) -> dict[str, object]:
        """Everything that is to be the same whatever happened on the way."""
        lines = [json.loads(line) for line in (self.workdir / "metrics.jsonl").open()]
        result = json.loads((self.workdir / "result.json").read_bytes())
        evaluation = json.loads((self.workdir / "evaluation.json").read_bytes())
        assert evaluation["accuracy"] == result["final_test_accuracy"]
        return {
            "metrics": [_without_clocks(line) for line in lines],
            "result": _without_clocks(result),
            "evaluation": evaluation,
            "checkpoint": saved_arrays(self.workdir, self.data_dir),
        }


class Process:
    """A running launch.py whose output is read as it comes."""

    def __init__(self, arguments: list[str], environment: dict[str, str], data_dir: Path) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "launch.py", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.data_dir = data_dir
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        self.lines.extend(iter(self.popen.stdout.readline, ""))

    def wait_for(self, sign: str, occurrence: int) -> None:
        """Waits until a sign has been seen so many times, or the process has ended."""
        deadline = time.monotonic() + PATIENCE
        while self.popen.poll() is None and not self._seen(sign, occurrence):
            if time.monotonic() > deadline:
                self.popen.kill()
                raise TimeoutError(f"no {sign!r}: {self.lines}")
            time.sleep(0.002)

    def _seen(self, sign: str, occurrence: int) -> bool:
        if sign == PREPARING.sign:
            return self.data_dir.exists()
        return sum(sign in line for line in [*self.lines]) >= occurrence if sign else True

    def finish(self) -> None:
        """Waits for the end of the process."""
        try:
            self.popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            raise
        self.reader.join()


def _without_clocks(values: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if name not in CLOCKS}


def saved_arrays(workdir: Path, data_dir: Path) -> dict[str, bytes]:
    """Every array of the latest checkpoint, by name, as bytes."""
    import jax

    from flexpool_jax.configuration import read_config
    from flexpool_jax.data import load_dataset
    from flexpool_jax.training import checkpoints
    from flexpool_jax.training.setup import set_up

    config = read_config(workdir)
    dataset = load_dataset(
        config.dataset.name,
        str(data_dir),
        image_size=config.dataset.image_size,
        holdout=config.dataset.holdout,
        seed=config.seed,
    )
    like = set_up(config, dataset).abstract_state
    with checkpoints.open_checkpoints(workdir, read_only=True) as manager:
        state, *_ = checkpoints.restore(manager, manager.latest_step(), like)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): leaf.tobytes() for path, leaf in leaves}


def disturb(run: Run, chance: random.Random, cold: bool) -> list[str]:
    """Kills a run once to three times and lets it end; returns the phases in which it was killed.

    Its evaluation is killed once more, as the last of them.
    """
    count = chance.randint(1, 3)
    phases = sorted(chance.choices(PHASES, k=count), key=PHASES.index)
    if cold:
        phases = [COMPILING]
    killed = [phase.name for phase in phases if run.kill(phase, chance)]
    run.finish("train")
    if run.kill(STARTING, chance, "eval"):
        killed.append("--mode=eval")
    run.finish("eval")
    return killed


def differences(outcome: dict[str, object], expected: dict[str, object]) -> list[str]:
    """The parts in which a run ended otherwise."""
    return [name for name, value in expected.items() if outcome[name] != value]


def survive(runs: int, seed: int, folder: Path, first: int = 1) -> tuple[int, Counter[str]]:
    """Does it all below a folder.

    Returns:
        How many runs survived, and how many kills there were in each phase.
    """
    cache = folder / "cache"
    reference = Run(folder / "undisturbed", cache)
    reference.finish("train")
    reference.finish("eval")
    expected = reference.outcome()
    survived, kills = 0, Counter[str]()
    for number in range(first, first + runs):
        chance = random.Random(f"{seed} {number}")
        cold = number % COLD_EVERY == 0
        here = folder / f"run{number}"
        run = Run(here, here / "cache" if cold else cache)
        try:
            killed = disturb(run, chance, cold)
            different = differences(run.outcome(), expected)
        except Exception as error:
            killed, different = [], [f"{type(error).__name__}: {error}"]
        kills.update(killed)
        survived += not different
        outcome = "survived" if not different else f"FAILED, see {here}: {'; '.join(different)}"
        print(f"run {number}: killed in {', '.join(killed) or 'nothing'}; {outcome}", flush=True)
        if not different:
            shutil.rmtree(here)
    return survived, kills


def main(arguments: list[str]) -> int:
    """Reads the command line; returns 1 if a run did not survive."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=1, help="number of the first run")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="flexpool_jax_survive_"))
    survived, kills = survive(options.runs, options.seed, folder, options.first)
    counts = ", ".join(f"{count} {name}" for name, count in kills.most_common())
    print(f"{survived} of {options.runs} runs survived {kills.total()} kills ({counts})")
    if survived == options.runs:
        shutil.rmtree(folder)
    return int(survived < options.runs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
