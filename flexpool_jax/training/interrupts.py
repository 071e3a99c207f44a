"""Requests to stop: after SIGTERM, SIGINT or SIGHUP the loop saves, and a command exits with 75.

Python runs a signal handler only between two instructions of the main thread, and so not while XLA
compiles. In a command, a watching thread therefore ends the process itself if there is nothing to
save, or if saving takes too long. In a user's program or notebook, the process is never ended.
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

# A sweep passes SIGTERM on to its run, and a terminal sends Ctrl-C to both: one request.
SAME_REQUEST_SECONDS = 1.0

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """Whether the process has been told to stop, and whether it will then save its state.

    Attributes:
        requested: True from the first signal on.
        saves: whether the loop will check ``requested`` and save its state. If False, a request
            ends the process at once, or raises `Interrupted`.
        repeated: in a user's program, whether a SIGINT came after the first signal.
        agree: function from ``requested`` of this process to one answer for all processes of a run.

    Args:
        may_exit: see `stop_on_signals`.
    """

    def __init__(self, *, may_exit: bool = True) -> None:
        self.requested = False
        self.saves = False
        self.agree: Callable[[bool], bool] = bool
        self.repeated = False
        self._may_exit = may_exit

    def __call__(self, number: int, frame: object) -> None:
        """Python's signal handler. In a command, the watching thread reacts to the signals."""
        if self._may_exit:
            return
        self.repeated = self.requested and number == signal.SIGINT
        self.requested = True
        if self.repeated or not self.saves:
            # Not `Interrupted`, which code that reads damaged files would catch.
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raises `Interrupted` if a stop was requested; all processes raise at the same call."""
        if self.agree(self.requested):
            raise Interrupted("told to stop")


def caught_signals() -> list[signal.Signals]:
    """The signals that are requests to stop; without SIGHUP if it is ignored, as under nohup."""
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in SIGNALS if number != signal.SIGHUP or not is_ignored]


@contextlib.contextmanager
def stop_on_signals(*, may_exit: bool = True) -> Iterator[StopRequest]:
    """Turns SIGTERM, SIGINT and SIGHUP into a request to stop; an ignored SIGHUP stays ignored.

    A SIGINT after a request ends the process at once, with status 130. If this context is already
    active, the same request is yielded again. Outside the main thread, where Python allows no
    handlers, signals are left as they are.

    Args:
        may_exit: whether the process is a command, which a signal may end. If False, a request
            raises `Interrupted` where there is nothing to save, and a SIGINT after it raises
            KeyboardInterrupt.
    """
    stop = signal.getsignal(signal.SIGTERM)
    if isinstance(stop, StopRequest):
        try:
            yield stop
        finally:
            stop.saves = False
        return
    stop = StopRequest(may_exit=may_exit)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    with _watched(stop) if may_exit else contextlib.nullcontext():
        old_handlers = {number: signal.signal(number, stop) for number in caught_signals()}
        try:
            yield stop
        except KeyboardInterrupt:
            if may_exit or stop.repeated or not stop.requested:
                raise
            raise Interrupted("told to stop with nothing to save") from None
        finally:
            for number, handler in old_handlers.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _watched(stop: StopRequest) -> Iterator[None]:
    # The C-level handler writes a byte here at once, whatever the main thread is doing.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    old_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader, stop), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_fd)
        os.close(writer)  # The watcher reads the end of the pipe, and ends.
        watcher.join()
        os.close(reader)


def _forget_in_child() -> None:
    """Undoes `stop_on_signals` in a forked process, such as a worker of multiprocessing.Pool.

    Otherwise the signals of the worker would reach the watching thread of its parent.
    """
    stops = [n for n in SIGNALS if isinstance(signal.getsignal(n), StopRequest)]
    for number in stops:
        signal.signal(number, signal.SIG_DFL)
    if stops:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_in_child)


def _watch(reader: int, stop: StopRequest) -> None:
    deadline: float | None = None
    # Until this time, a SIGINT belongs to a request that began with another signal.
    same_until = 0.0
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
        if number[0] not in SIGNALS:
            continue
        now = time.monotonic()
        if stop.requested and number[0] == signal.SIGINT:
            if now > same_until:
                leave_at_once("stopped at once; the last saved checkpoint stands", 130)
            same_until = 0.0
        elif not stop.requested and number[0] != signal.SIGINT:
            same_until = now + SAME_REQUEST_SECONDS
        stop.requested = True
        if deadline is None:
            deadline = now + GRACE_SECONDS
        if not stop.saves:
            leave_at_once("told to stop with nothing to save; nothing was lost", EXIT_STATUS)


def leave_at_once(message: str, status: int) -> None:
    """Prints a message and ends the process; any thread can call this function."""
    # Not through sys.stderr, whose lock the main thread may hold; and only if writing cannot block.
    if select.select([], [2], [], 0)[1]:
        with contextlib.suppress(OSError):
            os.write(2, f"\n{message}\n".encode())
    os._exit(status)
