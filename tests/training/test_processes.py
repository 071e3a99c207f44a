"""Which GPUs a task of a cluster uses; several processes of a run are in end_to_end/."""

import os
import subprocess
import sys

import pytest

from flexpool_jax.errors import PeerLost
from flexpool_jax.training import processes

PROGRAM = """
import jax
from flexpool_jax.training import processes
with processes.joined():
    print(jax.config.read("jax_cuda_visible_devices"))
"""


@pytest.mark.parametrize(
    ("tasks_per_node", "seen", "used"),
    [
        ("1(x2)", "0,1", "all"),
        ("1", "0,1", "all"),
        ("2(x3),1", "0,1", "1"),
        ("4", "0,1,2,3", "1"),
        ("4", "1", "all"),  # As --gpus-per-task=1 sets it.
    ],
)
def test_a_task_uses_all_gpus_only_if_they_are_its_own(tasks_per_node, seen, used):
    slurm = {
        "SLURM_JOB_ID": str(os.getpid()),  # JAX makes the port of it.
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": tasks_per_node,
        "CUDA_VISIBLE_DEVICES": seen,
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **slurm, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == used, done.stderr


@pytest.mark.parametrize(
    ("message", "is_loss"),
    [
        (
            "NCCL operation ncclAllReduce failed: remote process exited",
            True,
        ),
        ("Connection closed by peer [10.0.0.2]:4321", True),
        ("CUDA_ERROR_PEER_ACCESS_UNSUPPORTED: peer access is not supported", False),
    ],
)
def test_errors_of_collectives_tell_that_a_process_was_lost(message, is_loss, monkeypatch):
    monkeypatch.setattr(processes, "_client", lambda: True)
    kind = PeerLost if is_loss else RuntimeError
    with pytest.raises(kind, match=r"NCCL|peer"), processes.explaining_loss():
        raise RuntimeError(message)
