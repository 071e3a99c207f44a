"""Several processes that train one run together: they join, exchange values, and one writes.

All processes run the same steps, each on its own devices and its own part of every batch. Only
process 0 reads the checkpoint from which a run continues, and writes to the workdir. With one
process each function here is trivial, so that callers need no special case.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # JAX's key-value store has no public name.
from jax.experimental import multihost_utils

from flexpool_jax.errors import PeerLost, UserError, one_line
from flexpool_jax.training import interrupts

# Time for all processes to start; importing JAX from a busy file system may take a minute.
JOINING_SECONDS = 300
# Time without an answer after which a process counts as dead; JAX then aborts the others (SIGABRT).
HEARTBEAT_SECONDS = 60
# Time for the other processes to reach the end as well.
LEAVING_SECONDS = 10
# Time until another machine sees a file of process 0: NFS caches missing files for a minute.
FILE_SECONDS = 90

# A living process may prepare data for any length of time; the heartbeat finds dead processes.
_WAIT_MS = 7 * 24 * 3600 * 1000

# Words in errors of collectives and of JAX's service when another process has ended.
_LOST = re.compile(
    r"coordination|socket closed|remote peer|by peer|connection (reset|refused|closed)"
    r"|remote process exited|ncclRemoteError",
    re.I,
)

# JAX gives each task of SLURM and of Open MPI a single device, by its number on its node. Here the
# only task of a node uses all visible devices.
_VISIBLE = ("jax_cuda_visible_devices", "jax_rocm_visible_devices")

# Every process makes the same exchanges, in the same order.
_exchanges = itertools.count()


@contextlib.contextmanager
def joined(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[None]:
    """Joins the other processes of a run; at the end all processes leave together.

    Enter this context before JAX makes an array. In it, only the first process prints, so that a
    log has each line once.

    Args:
        coordinator_address: HOST:PORT at which process 0 listens; None lets JAX detect the cluster.
        num_processes: number of processes of the run; JAX detects it if there is no address.
        process_id: number of this process, from 0; JAX detects it if there is no address.

    Raises:
        UserError: no cluster is detected; or another process raised a UserError.
        PeerLost: another process failed.
    """
    _join(coordinator_address, num_processes, process_id)
    with contextlib.ExitStack() as stack:
        if not is_first():
            nowhere = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            yield
        except PeerLost:
            if _client() is not None and is_first():
                # The other processes notice the loss as well. JAX aborts processes that still run
                # when process 0 ends.
                time.sleep(LEAVING_SECONDS / 5)
            raise
        except Exception as error:
            message = one_line(error, limit=None)
            _leave({"error": message, "mistake": isinstance(error, UserError)})
            raise
        _leave()


def _join(address: str | None, count: int | None, index: int | None) -> None:
    # JAX's own service would replace the handler of SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    visible = {name: jax.config.read(name) for name in _VISIBLE}
    late = (
        f"launch.py: not all processes of this run were there within {JOINING_SECONDS} s; run the "
        "same command again in all of them",
        interrupts.EXIT_STATUS,
    )
    # JAX's own timeout ends the process by SIGABRT.
    timer = threading.Timer(JOINING_SECONDS, interrupts.leave_at_once, late)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            cluster_detection_method="deactivate" if address else None,
            initialization_timeout=2 * JOINING_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=LEAVING_SECONDS,
        )
    except (ValueError, RuntimeError, ImportError) as error:
        if address:
            raise UserError(f"--coordinator_address={address}: {one_line(error)}") from error
        reason = one_line(error).rstrip(".")
        raise UserError(
            f"--distributed: JAX cannot join a cluster ({reason}); start the tasks by srun or "
            "Open MPI 4's mpirun, or give --coordinator_address, --num_processes and --process_id"
        ) from error
    finally:
        timer.cancel()
    if "JAX_LOCAL_DEVICE_IDS" not in os.environ and not _shares_its_node():
        for name, value in visible.items():
            jax.config.update(name, value)


def _shares_its_node() -> bool:
    """Whether several tasks of this run are on one node, and see the GPUs of all of them."""
    if len(os.environ.get("CUDA_VISIBLE_DEVICES", ",").split(",")) == 1:
        return False  # The launcher has given this task a GPU of its own.
    # SLURM's "2(x3),1" means two tasks on each of three nodes, and one on another.
    counts = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(",")
    counts.append(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", ""))
    return any(count.partition("(")[0] not in ("", "1") for count in counts)


def _leave(error: Mapping[str, Any] | None = None) -> None:
    """Waits for the other processes, then disconnects: JAX aborts processes that outlive process 0.

    Args:
        error: record of an error, which the other processes raise at their next exchange.
    """
    with contextlib.suppress(RuntimeError):
        if _client() is not None:
            if error is not None:
                _send(error)
            _client().wait_at_barrier("flexpool_jax", LEAVING_SECONDS * 1000)
            jax.distributed.shutdown()


@contextlib.contextmanager
def explaining_loss() -> Iterator[None]:
    """Turns the errors that JAX raises when another process has ended into a `PeerLost`."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        is_mistake = isinstance(error, UserError)
        if _client() is None or is_mistake or not _LOST.search(str(error)):
            raise
        raise PeerLost(
            f"another process of this run has ended ({one_line(error)}); the last saved "
            "checkpoint stands, run the same command again in all of them"
        ) from error


def is_first() -> bool:
    """Whether this is process 0, the only one that writes; does not start JAX's backend."""
    return distributed.global_state.process_id == 0


def gather(value: Any) -> list[Any]:
    """Exchanges a value between all processes; waits for all of them.

    Args:
        value: value of this process, which JSON can hold.

    Returns:
        The values of all processes, in the order of their numbers.

    Raises:
        UserError: another process raised a UserError before this exchange.
        PeerLost: another process raised another error before this exchange.

    Example:
        >>> gather({"seed": 1})
        [{'seed': 1}]
    """
    client = _client()
    if client is None:
        if jax.process_count() > 1:  # As JAX detects on a TPU by itself.
            raise UserError(f"{jax.process_count()} processes, but no --distributed; add it")
        return [value]
    exchange = _send({"value": value})
    found = [
        json.loads(client.blocking_key_value_get(f"{exchange}/{i}", _WAIT_MS))
        for i in range(jax.process_count())
    ]
    for i, record in enumerate(found):
        if "error" in record:
            _leave()
            kind = UserError if record["mistake"] else PeerLost
            raise kind(f"process {i}: {record['error']}")
    return [record["value"] for record in found]


def _client() -> Any:
    """JAX's connection to process 0; None if there is only one process."""
    return distributed.global_state.client


def _send(record: Mapping[str, Any]) -> str:
    """Publishes this process's record for the next exchange; returns the exchange's name."""
    number, index = next(_exchanges), distributed.global_state.process_id
    _client().key_value_set(f"flexpool_jax/{number}/{index}", json.dumps(record))
    # All processes have published in exchange `number - 1`, so they have read `number - 2`.
    _client().key_value_delete(f"flexpool_jax/{number - 2}/{index}")
    return f"flexpool_jax/{number}"


def broadcast(tree: Any) -> Any:
    """Returns the arrays of process 0 in every process, as NumPy arrays.

    Args:
        tree: arrays of the same shapes and dtypes in each process.

    Example:
        >>> broadcast({"w": np.float32([1, 2])})
        {'w': array([1., 2.], dtype=float32)}
    """
    tree = jax.tree.map(np.asarray, jax.device_get(tree))
    if jax.process_count() == 1:
        return tree
    leaves: list[np.ndarray] = jax.tree.leaves(tree)
    # As one array of bytes: JAX adds zeros to what it broadcasts, which would turn -0.0 into 0.0.
    content = np.frombuffer(b"".join(leaf.tobytes() for leaf in leaves), np.uint8)
    content = np.asarray(multihost_utils.broadcast_one_to_all(content, is_source=is_first()))
    ends = np.cumsum([leaf.nbytes for leaf in leaves])
    parts = np.split(content, ends[:-1])
    received = [
        p.view(leaf.dtype).reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), received)


def local_devices() -> slice:
    """The rows of this process in an array whose leading axis is all devices of the run.

    `jax.pmap` numbers devices process by process.
    """
    count = jax.local_device_count()
    return slice(jax.process_index() * count, (jax.process_index() + 1) * count)


def shared_flag() -> Callable[[bool], bool]:
    """Returns a function of this process's flag that is True in all processes at the same call.

    If there is only one process, the function returns the flag itself. Otherwise each call passes
    on this process's flag, and returns whether any process raised its flag in the previous call.
    So a call does not wait for the devices. All processes must call the function at the same places
    between the steps.
    """
    if jax.process_count() == 1:
        return bool
    is_any_raised = jax.pmap(lambda flag: jax.lax.pmax(flag, "all"), "all", out_axes=None)
    latest: jax.Array | bool = False

    def share(flag: bool) -> bool:
        nonlocal latest
        previous = latest
        latest = is_any_raised(np.full(jax.local_device_count(), flag, np.int32))
        return bool(previous)

    return share


def check_alike(facts: Mapping[str, Any]) -> None:
    """Checks that all processes were started alike.

    Args:
        facts: values by name that must be equal in all processes, and that JSON can hold.

    Raises:
        UserError: a value differs. Every process raises this error, which states both values.
    """
    first, *others = gather(dict(facts))
    for i, other in enumerate(others, start=1):
        different = [name for name in first | other if first.get(name) != other.get(name)]
        if different:
            listed = "; ".join(f"{n} is {other.get(n)} ({first.get(n)})" for n in different)
            raise UserError(
                f"process {i} was not started as process 0 was: {listed}; give all processes the "
                "same command, code and data"
            )


def check_shared(file: Path) -> None:
    """Checks that every process sees the file that process 0 sees, and so the same workdir.

    Raises:
        UserError: a process sees another file or none. Every process raises this error, which
            names the folder of that process.
    """
    folder = str(file.parent)
    content, wanted = gather([_read(file), folder])[0]
    deadline = time.monotonic() + (FILE_SECONDS if folder == wanted else 0)
    while (is_same := _read(file) == content) is False and time.monotonic() < deadline:
        time.sleep(0.5)
    for i, (sees_it, found) in enumerate(gather([is_same, folder])):
        if not sees_it:
            raise UserError(
                f"--workdir={found} of process {i} is not the folder --workdir={wanted} of process "
                "0; give all processes the same folder, on a file system that all machines share"
            )


def _read(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return None


@contextlib.contextmanager
def writable(workdir: Path) -> Iterator[Path]:
    """Yields the workdir in process 0; in other processes, an empty folder, removed at the end.

    So all processes run the same code, but only process 0 writes to the workdir.
    """
    if is_first():
        yield workdir
        return
    with tempfile.TemporaryDirectory(prefix="flexpool_jax_") as folder:
        yield Path(folder)
