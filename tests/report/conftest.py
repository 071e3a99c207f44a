"""The fixtures that write runs, shared with the tests of sweeps."""

from tests.sweeps.conftest import write_sweep as write_sweep
