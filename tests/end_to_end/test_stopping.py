"""Told to stop by a signal, in whatever it is doing, a command leaves in time and loses nothing."""

import signal
import threading
import time

from tests.black_box.conftest import catches
from tests.end_to_end.conftest import SMALL, assert_same_arrays, read_metrics

SECONDS = 30  # What schedulers grant.


class Output:
    """Reads what a process prints as it comes."""

    def __init__(self, process):
        self.process, self.lines = process, []
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def wait_for(self, text, seconds=120):
        deadline = time.monotonic() + seconds
        while not any(text in line for line in self.lines):
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < deadline, self.lines
            time.sleep(0.002)

    def wait_for_files(self, folder, seconds=120):
        deadline = time.monotonic() + seconds
        while not (folder.is_dir() and any(folder.iterdir())):
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < deadline, self.lines
            time.sleep(0.002)

    def wait_for_handlers(self, seconds=120):
        """Waits until the program, not Python at its start, answers SIGTERM."""
        deadline = time.monotonic() + seconds
        while not catches(self.process, signal.SIGTERM):
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < deadline, self.lines
            time.sleep(0.01)

    def stop(self, *numbers, pause=0.05):
        """Sends signals, waits for the end and returns the exit status."""
        started = time.monotonic()
        for number in numbers:
            self.process.send_signal(number)
            time.sleep(pause)
        status = self.process.wait(SECONDS)
        self.thread.join()
        assert time.monotonic() - started < SECONDS
        assert not any("Traceback" in line for line in self.lines), self.lines
        return status


# Text with which a phase begins, and seconds into it. A quick preparation says nothing before it is
# done: it begins with the first file in the data folder.
PHASES = {
    "starting": ("", 0.3),
    "preparing the data": (None, 0.0),
    "before the first step": ("compiling the first step", 0.0),
    "evaluating": ("| step 11/33", 0.1),
    "saving": ("epoch 2/3 | test accuracy", 0.0),
}


def test_told_to_stop_in_every_phase_it_leaves_with_75_and_ends_as_if_it_had_not(
    launch, finished_run, tmp_path
):
    # In batches of 4 an evaluation is long enough to be caught, and comes out the same.
    command = (
        *SMALL,
        f"--workdir={tmp_path / 'run'}",
        f"--config.dataset.data_dir={tmp_path / 'data'}",
        "--config.eval_batch_size=4",
    )
    numbers = [signal.SIGTERM, signal.SIGINT]
    for phase, (text, delay) in PHASES.items():
        output = Output(launch.start(*command))
        if text is None:
            output.wait_for_files(tmp_path / "data")
        elif text:
            output.wait_for(text)
        else:
            output.wait_for_handlers()
        time.sleep(delay)
        numbers.reverse()
        assert output.stop(numbers[0]) == 75, (phase, output.lines)
    launch.run(*command)
    assert_same_arrays(tmp_path / "run", finished_run)
    rounded = {"loss": None, "calibration_error": None}
    tests = [line | rounded for line in read_metrics(tmp_path / "run", "test")]
    assert tests == [line | rounded for line in read_metrics(finished_run, "test")]
