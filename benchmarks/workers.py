"""Contestants in processes of their own, measured in turns: A B C, A B C, ...

A process each, so that thread pools and allocators do not meet; turns, so that whatever else the
machine does falls on all of them alike. A program starts itself again as each contestant's worker,
which builds what is timed, calls it until it is warm, and then waits to be asked.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Calls are blocking, and each does this much work, for instance a number of images.
Call = Callable[[], Any]
Build = Callable[..., tuple[Call, float]]

# Marks the lines of a worker's standard output that are answers.
_ANSWER = "@answer "
_WORKER_FLAG = "--worker"
WARM_UP_CALLS = 2


@dataclasses.dataclass(frozen=True)
class Contestant:
    """What is measured: a name for the table, `build`'s arguments, and environment variables."""

    name: str
    options: Mapping[str, Any]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@functools.cache
def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU; asked without JAX, which would take the GPU's memory."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return listed.stdout.startswith("GPU")


def environment() -> dict[str, str]:
    """What every contestant gets alike: huge pages, and room beside the others on a GPU."""
    shared = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    # JAX takes 75 % of a GPU at once by default, and the next contestant would find none left.
    return {**shared, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.2"} if has_gpu() else shared


def _python(contestant: Contestant) -> str:
    """The interpreter: on GPUs JAX and PyTorch may want CUDA libraries of different versions."""
    torch = "torch" in contestant.name.lower()
    return os.environ.get("PYTORCH_PYTHON", sys.executable) if torch else sys.executable


class WorkerFailed(Exception):
    """A contestant did not get as far as an answer; the message is its last line."""


class Worker:
    """A contestant's process.

    Args:
        program: the module to start again, such as ``benchmarks.train_step``.
        contestant: who this is.
    """

    def __init__(self, program: str, contestant: Contestant) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            [
                _python(contestant),
                "-m",
                program,
                _WORKER_FLAG,
                json.dumps(dict(contestant.options)),
            ],
            env={**os.environ, **environment(), **contestant.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def answer(self) -> Any:
        """Waits for the next answer."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_ANSWER):
                return json.loads(line.removeprefix(_ANSWER))
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        raise WorkerFailed(lines[-1] if lines else f"exit status {self._process.wait()}")

    def ask(self, question: Any) -> Any:
        """Sends a question and waits for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def race(
    program: str, contestants: Sequence[Contestant], rounds: int, seconds: float
) -> dict[str, list[list[float]]]:
    """Measures contestants in turns.

    Args:
        program: the module that calls `serve` in its workers.
        contestants: in the order of their turns.
        rounds: turns of each.
        seconds: length of a turn; it holds one call at least.

    Returns:
        For each name and round the work done per second by each call. Who failed is missing, and
        said on standard error.
    """
    workers: dict[str, Worker] = {}
    rates: dict[str, list[list[float]]] = {}
    try:
        for contestant in contestants:
            started = time.perf_counter()
            worker = workers[contestant.name] = Worker(program, contestant)
            try:
                worker.answer()
            except WorkerFailed as error:
                workers.pop(contestant.name).close()
                print(f"{contestant.name} failed: {error}", file=sys.stderr)
                continue
            warm = time.perf_counter() - started
            print(f"{contestant.name}: warm after {warm:.1f} s", file=sys.stderr, flush=True)
            rates[contestant.name] = []
        for _ in range(rounds):
            for name, worker in workers.items():
                rates[name].append(worker.ask(seconds))
    finally:
        for worker in workers.values():
            worker.close()
    return rates


def worker_options() -> dict[str, Any] | None:
    """The options of the contestant that this process is a worker for, if it is one."""
    return json.loads(sys.argv[2]) if sys.argv[1:2] == [_WORKER_FLAG] else None


def reply(answer: Any) -> None:
    """Answers from a worker."""
    print(_ANSWER + json.dumps(answer), flush=True)


def serve(build: Build, options: Mapping[str, Any]) -> None:
    """Is a worker of `race`: builds, warms up, then times calls as often as it is asked to."""
    call, work = build(**options)
    for _ in range(WARM_UP_CALLS):
        call()
    reply("warm")
    for line in sys.stdin:
        # While others had their turns the system took unused memory back; the first call has to ask
        # for it again: a second, for a step of batch 1000 on a virtual machine. Runs do not pause.
        call()
        rates: list[float] = []
        end = time.perf_counter() + json.loads(line)
        while not rates or time.perf_counter() < end:
            started = time.perf_counter()
            call()
            rates.append(work / (time.perf_counter() - started))
        reply(rates)
