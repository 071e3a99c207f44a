"""Signals in this process; tests/end_to_end/test_stopping.py tells whole commands to stop."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from flexpool_jax.errors import Interrupted
from flexpool_jax.training.interrupts import stop_on_signals


def test_a_signal_is_a_request_where_the_state_is_saved():
    with stop_on_signals() as stop:
        stop.saves = True
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 30
        while not stop.requested and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(Interrupted):
            stop.check()


def test_signals_are_caught_once_however_often_it_is_asked_for():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    threads = threading.active_count()
    with stop_on_signals() as outer:
        with stop_on_signals() as inner:
            assert inner is outer
            assert threading.active_count() == threads + 1
            inner.saves = True
        assert not outer.saves
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert threading.active_count() == threads


def test_outside_the_main_thread_signals_are_left_as_they_are():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def run():
        with stop_on_signals() as stop:
            found.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(False, before)]


FORKING = """
import multiprocessing, time
from flexpool_jax.training.interrupts import stop_on_signals

with stop_on_signals() as stop:
    stop.saves = True
    with multiprocessing.get_context("fork").Pool(2) as pool:  # Ends its workers by SIGTERM.
        assert pool.map(abs, [-1, 2]) == [1, 2]
    time.sleep(0.2)
    assert not stop.requested
"""


def test_processes_that_are_forked_do_not_pass_their_signals_on():
    assert run_program(FORKING).returncode == 0


LIBRARY = """
import os, signal, sys, time
from flexpool_jax.errors import Interrupted
from flexpool_jax.training.interrupts import stop_on_signals

def kill(number):
    os.kill(os.getpid(), number)
    time.sleep(0.2)

try:
    with stop_on_signals(may_exit=False) as stop:
        kill(signal.SIGINT)
except Interrupted:
    print("interrupted")
with stop_on_signals(may_exit=False) as stop:
    stop.saves = True
    kill(signal.SIGTERM)
    print(stop.requested)
    try:
        kill(signal.SIGINT)
    except KeyboardInterrupt:
        print("at once")
"""


def test_a_users_program_is_not_ended():
    done = run_program(LIBRARY)
    assert (done.returncode, done.stdout.split("\n")[:-1]) == (
        0,
        ["interrupted", "True", "at once"],
    )


SLOW = """
import os, signal, time
from flexpool_jax.training import interrupts

interrupts.GRACE_SECONDS = 1.0
with interrupts.stop_on_signals() as stop:
    stop.saves = True
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


def test_a_command_that_cannot_save_in_time_ends_all_the_same():
    done = run_program(SLOW)
    assert done.returncode == 75
    assert "could not save within 1 s; the last saved checkpoint stands" in done.stderr


COMMAND = """
import os, signal, sys, time
from flexpool_jax.training.interrupts import stop_on_signals

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # Under nohup, it would be ignored.
with stop_on_signals() as stop:
    stop.saves = True
    for number in sys.argv[1:]:
        os.kill(os.getpid(), int(number))
        time.sleep(0.1)
    print("saved")
"""
TERM, INT, HUP = (str(int(n)) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


@pytest.mark.parametrize(
    ("numbers", "status"),
    [
        ((INT,), 0),
        ((HUP,), 0),
        ((TERM, TERM), 0),
        # A sweep's Ctrl-C, in either order, and a second one.
        ((TERM, INT), 0),
        ((INT, TERM), 0),
        ((TERM, INT, INT), 130),
        ((INT, INT), 130),
    ],
)
def test_only_a_second_interrupt_ends_a_command_that_saves(numbers, status):
    done = run_program(COMMAND, *numbers)
    assert (done.returncode, "saved" in done.stdout) == (status, status == 0), done.stderr


def run_program(text, *arguments):
    command = [sys.executable, "-c", text, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
