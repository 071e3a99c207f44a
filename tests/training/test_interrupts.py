"""Signals in this process; tests/end_to_end/test_stopping.py tells whole commands to stop."""

import os
import signal
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
