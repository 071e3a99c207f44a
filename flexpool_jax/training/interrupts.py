"""Requests to stop: after SIGTERM or SIGINT the loop saves and exits with status 75.

Python runs a signal handler only between two instructions of the main thread, and so not while XLA
compiles. A watching thread therefore ends the process itself if there is nothing to save, or if
saving takes too long.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator

from flexpool_jax.errors import Interrupted

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: schedulers can requeue such a job.

# Schedulers kill a process 30 s after telling it to stop, and do not requeue a killed process.
GRACE_SECONDS = 25.0


class StopRequest:
    """Whether the process has been told to stop, and whether it will then save its state.

    Attributes:
        requested: True from the first SIGTERM or SIGINT on.
        saves: whether the loop will check ``requested`` and save its state. If False, a request
            ends the process at once.
        agree: function from ``requested`` of this process to one answer for all processes of a run.
    """

    def __init__(self) -> None:
        self.requested = False
        self.saves = False
        self.agree: Callable[[bool], bool] = bool

    def __call__(self, number: int, frame: object) -> None:
        """Python's signal handler. It does nothing: the watching thread reacts to the signals."""

    def check(self) -> None:
        """Raises `Interrupted` if a stop was requested; all processes raise at the same call."""
        if self.agree(self.requested):
            raise Interrupted("told to stop")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns SIGTERM and SIGINT into a request to stop.

    A SIGINT after a request ends the process at once, with status 130. If this context is already
    active, the same request is yielded again. Outside the main thread, where Python allows no
    handlers, signals are left as they are.
    """
    stop = signal.getsignal(signal.SIGTERM)
    if isinstance(stop, StopRequest):
        try:
            yield stop
        finally:
            stop.saves = False
        return
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # The C-level handler writes a byte here at once, whatever the main thread is doing.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    old_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signals = (signal.SIGTERM, signal.SIGINT)
    old_handlers = {number: signal.signal(number, stop) for number in signals}
    watcher = threading.Thread(target=_watch, args=(reader, stop), daemon=True)
    watcher.start()
    try:
        yield stop
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_fd)
        os.close(writer)  # The watcher reads the end of the pipe, and ends.
        watcher.join()
        os.close(reader)


def _watch(reader: int, stop: StopRequest) -> None:
    deadline: float | None = None
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([reader], [], [], left)[0]:
            leave_at_once(
                f"told to stop, but could not save within {GRACE_SECONDS:.0f} s; "
                "the last saved checkpoint stands",
                EXIT_STATUS,
            )
        number = os.read(reader, 1)
        if not number:
            return
        if number[0] not in (signal.SIGTERM, signal.SIGINT):
            continue
        if stop.requested and number[0] == signal.SIGINT:
            leave_at_once("stopped at once; the last saved checkpoint stands", 130)
        stop.requested = True
        if deadline is None:
            deadline = time.monotonic() + GRACE_SECONDS
        if not stop.saves:
            leave_at_once("told to stop with nothing to save; nothing was lost", EXIT_STATUS)


def leave_at_once(message: str, status: int) -> None:
    """Prints a message and ends the process; any thread can call this function."""
    # Not through sys.stderr, whose lock the main thread may hold; and only if writing cannot block.
    if select.select([], [2], [], 0)[1]:
        with contextlib.suppress(OSError):
            os.write(2, f"\n{message}\n".encode())
    os._exit(status)
