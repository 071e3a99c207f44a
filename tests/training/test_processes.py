"""Which GPUs a task of a cluster uses; several processes of a run are in end_to_end/."""

import os
import subprocess
import sys

import pytest

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
