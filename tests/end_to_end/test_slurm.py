"""The batch files in examples/slurm, run by small stand-ins for sbatch, srun and scontrol."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.end_to_end.conftest import ROOT

FOLDER = ROOT / "examples" / "slurm"

# Starts as many tasks as the job has, each with the variables that SLURM gives it, passes SIGTERM
# on to them, and ends with the highest status.
SRUN = """\
import os, signal, subprocess, sys
assert sys.argv[1] == "--kill-on-bad-exit=0"
assert os.environ["SRUN_CPUS_PER_TASK"] == os.environ["SLURM_CPUS_PER_TASK"]
count = int(os.environ["SLURM_JOB_NUM_NODES"]) * int(os.environ["SLURM_NTASKS_PER_NODE"])
tasks = []
for i in range(count):
    step = {"SLURM_NTASKS": count, "SLURM_STEP_NUM_TASKS": count, "SLURM_PROCID": i,
            "SLURM_LOCALID": 0, "SLURM_STEP_NODELIST": "localhost"}
    environment = {**os.environ, **{name: str(value) for name, value in step.items()}}
    tasks.append(subprocess.Popen(sys.argv[2:], env=environment))
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
open(os.environ["SRUN_PID"], "w").write(str(os.getpid()))
statuses = [task.wait() for task in tasks]
sys.exit(max(128 - s if s < 0 else s for s in statuses))
"""
SCONTROL = """\
import os, sys
open(os.environ["REQUEUED"], "a").write(" ".join(sys.argv[1:]) + "\\n")
"""


class Cluster:
    """Submits batch files.

    Attributes:
        log: what the jobs wrote.
    """

    def __init__(self, folder):
        self.folder = folder
        self.log = folder / "job.log"
        self.requeued = folder / "requeued"
        self.srun_pid = folder / "srun.pid"
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        for name, program in (("srun", SRUN), ("scontrol", SCONTROL)):
            self.install(name, f"#!{sys.executable}\n{program}")
        self.requeued.touch()

    def install(self, name, program):
        path = self.folder / "bin" / name
        path.write_text(program)
        path.chmod(0o755)

    def submit(self, name, *arguments, **variables):
        """Starts a batch file as SLURM would; returns its process."""
        self.srun_pid.unlink(missing_ok=True)
        options = dict(
            re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", (FOLDER / name).read_text(), re.M)
        )
        assert options["open-mode"] == "append"
        environment = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "REQUEUED": str(self.requeued),
            "SRUN_PID": str(self.srun_pid),
            # JAX makes the port of it.
            "SLURM_JOB_ID": str(1_000_000 + os.getpid()),
            "SLURM_JOB_NUM_NODES": options["nodes"],
            "SLURM_NTASKS_PER_NODE": options["ntasks-per-node"],
            "SLURM_CPUS_PER_TASK": options["cpus-per-task"],
            **variables,
        }
        with self.log.open("a") as log:
            return subprocess.Popen(
                ["bash", FOLDER / name, *arguments],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def run(self, name, *arguments, **variables):
        """Runs a batch file to its end; returns its status."""
        return self.submit(name, *arguments, **variables).wait(300)


@pytest.fixture
def cluster(tmp_path):
    """A cluster of one machine."""
    return Cluster(tmp_path)


@pytest.mark.slow
def test_a_run_on_two_nodes_that_is_told_to_stop_is_put_back_and_continues(
    cluster, tiny_config, tmp_path
):
    workdir = tmp_path / "run"
    command = (f"--config={tiny_config}", f"--workdir={workdir}", "--config.num_epochs=40")
    job = cluster.submit("several_nodes.sbatch", *command)
    deadline = time.monotonic() + 300
    while not (workdir / "checkpoints" / "10").exists():
        assert job.poll() is None, cluster.log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(int(cluster.srun_pid.read_text()), signal.SIGTERM)
    assert job.wait(60) == 75, cluster.log.read_text()
    assert cluster.requeued.read_text() == f"requeue {1_000_000 + os.getpid()}\n"
    assert cluster.run("several_nodes.sbatch", *command, SLURM_RESTART_COUNT="1") == 0
    log = cluster.log.read_text()
    assert log.count("device: 2 x cpu (cpu) in 2 processes") == 2
    assert "resuming after step" in log
    assert log.count("final test accuracy") == 1


@pytest.mark.slow
def test_one_node_and_the_tasks_of_an_array(cluster, tiny_config, tmp_path):
    command = (f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}")
    assert cluster.run("one_node.sbatch", *command) == 0, cluster.log.read_text()
    assert (tmp_path / "run" / "result.json").is_file()
    sweep = (
        "--config=configs/paper_tables.py",
        f"--workdir={tmp_path / 'sweep'}",
        "--config.datasets=digits",
        "--config.columns=avg,flexpool",
        "--config.sac=off",
        "--config.seeds=0",
        "--config.num_epochs=1",
        f"--config.overrides=dataset.image_size=8 dataset.data_dir={tmp_path}",
    )
    array = {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "2"}
    assert cluster.run("sweep.sbatch", *sweep, SLURM_ARRAY_TASK_ID="1", **array) == 0
    results = [path.parent.parent.name for path in tmp_path.glob("sweep/*/*/*/result.json")]
    assert results == ["flexpool"]


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.sbatch")))
def test_only_what_can_continue_is_put_back_and_not_without_end(name, cluster):
    started = cluster.folder / "started"
    for status, restarts, is_put_back in (
        (75, 0, True),
        (134, 19, True),
        (137, 0, name == "several_nodes.sbatch"),
        (75, 20, False),
        (2, 0, False),
        (0, 0, False),
    ):
        program = f'#!/bin/sh\nprintf "%s\\n" "$*" > {shlex.quote(str(started))}\nexit {status}\n'
        cluster.install("srun", program)
        cluster.requeued.write_text("")
        found = cluster.run(name, "--config=a b", SLURM_RESTART_COUNT=str(restarts))
        assert found == status
        assert bool(cluster.requeued.read_text()) == is_put_back
        assert started.read_text().rstrip().endswith("--config=a b")
        is_distributed = "--distributed" in started.read_text()
        assert is_distributed == (name == "several_nodes.sbatch")
