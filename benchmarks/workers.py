"""Measures contestants in separate processes and in turns: A B C, A B C, ...

Separate processes keep thread pools and allocators apart. Turns distribute the effects of other
programs on the machine over all contestants. A benchmark starts its own program again for each
contestant, as a worker. The worker builds the call that is timed, warms it up, and then waits for
requests.
"""

from __future__ import annotations

import contextlib
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

# `Build` returns a blocking call and the work of each call, for instance a number of images.
Call = Callable[[], Any]
Build = Callable[..., tuple[Call, float]]

# Marks the lines of a worker's standard output that are answers.
_ANSWER = "@answer "
_WORKER_FLAG = "--worker"
WARM_UP_CALLS = 2
# Training steps or batches of one timed call on an accelerator, where configs/default.py dispatches
# as many at once.
ACCELERATOR_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A contestant: its name in the table, the arguments of `build`, environment variables."""

    name: str
    options: Mapping[str, Any]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@functools.cache
def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU. JAX is not used, since it would allocate the GPU's memory."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return listed.stdout.startswith("GPU")


def environment() -> dict[str, str]:
    """Environment variables of all contestants: huge pages, one GPU and a share of its memory."""
    shared = {
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        # So that the last line of an error is its message.
        "JAX_TRACEBACK_FILTERING": "quiet_remove_frames",
    }
    if not has_gpu():
        return shared
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")
    return {
        **shared,
        # Otherwise this project would use all GPUs, and its peers one.
        "CUDA_VISIBLE_DEVICES": visible[0],
        # By default JAX allocates 75 % of a GPU's memory, and the next contestant would fail.
        "XLA_CLIENT_MEM_FRACTION": "0.2",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "",  # The old name; JAX refuses to find both.
    }


def _python(contestant: Contestant) -> str:
    """The interpreter; PyTorch may need another one, with other versions of CUDA libraries."""
    torch = "torch" in contestant.name.lower()
    return os.environ.get("PYTORCH_PYTHON", sys.executable) if torch else sys.executable


class WorkerFailed(Exception):
    """A worker ended without an answer; the message is the last line of its standard error."""


class Worker:
    """A contestant's process.

    Args:
        program: the module to start again, such as ``benchmarks.train_step``.
        contestant: the contestant that the worker measures.
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
        """Waits for the next answer; raises `WorkerFailed` if the worker ends without one."""
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


def only_answer(program: str, contestant: Contestant) -> Any:
    """Starts a worker, waits for its only answer, and ends the worker.

    Raises:
        WorkerFailed: the worker ended without an answer.
    """
    with contextlib.closing(Worker(program, contestant)) as worker:
        return worker.answer()


def race(
    program: str, contestants: Sequence[Contestant], rounds: int, seconds: float
) -> dict[str, list[list[float]]]:
    """Measures contestants in turns.

    Args:
        program: the module that calls `serve` in its workers.
        contestants: the contestants, in the order of their turns.
        rounds: number of turns of each contestant.
        seconds: length of a turn, in which at least one call is made.

    Returns:
        For each name and round the work per second of each call. Contestants that could not be
        built or warmed up are missing; their errors are printed on standard error.
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
    """The options of this process's contestant; None if this process is not a worker."""
    return json.loads(sys.argv[2]) if sys.argv[1:2] == [_WORKER_FLAG] else None


def reply(answer: Any) -> None:
    """Sends an answer from a worker to the process that started it."""
    print(_ANSWER + json.dumps(answer), flush=True)


def serve(build: Build, options: Mapping[str, Any]) -> None:
    """Runs as a worker of `race`: builds and warms up a call, then times it at each request."""
    call, work = build(**options)
    for _ in range(WARM_UP_CALLS):
        call()
    reply("warm")
    for line in sys.stdin:
        # This call is not timed. During the turns of others the system takes back unused memory. A
        # step of batch 1000 on a virtual machine needs a second to allocate this memory again. A
        # real run does not pause.
        call()
        rates: list[float] = []
        end = time.perf_counter() + json.loads(line)
        while not rates or time.perf_counter() < end:
            started = time.perf_counter()
            call()
            rates.append(work / (time.perf_counter() - started))
        reply(rates)
