"""Joins the processes of one run: one per host on TPUs, one per GPU under SLURM and Open MPI.

Each process runs the same program on the same config, and takes its own part of every batch. The
first process alone prints and writes; only checkpoints are written by all.
"""

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.devices.cluster import Cluster, failure_message, find_cluster, timeout_message
from train.devices.cluster_checks import AUTO, FLAGS, check_joined
from train.errors import BadInput, ProcessError, Stopped
from train.startup import note

# At its own timeout jax ends the process, without our message: ours must come first.
_JAX_TIMEOUT_SECS = 86_400

# The longest that a process which failed waits for the others to end, too. The first waits longer:
# without it jax aborts them all.
_PRIMARY_EXIT_SECS, _EXIT_SECS = 10, 3


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_secs: int = 300,
) -> None:
    """Joins the other processes, if the flags or the environment say that there are any.

    Otherwise nothing is done, and no network is asked. To be called once, before any computation.

    Args:
      coordinator: HOST:PORT, at which process 0 is reached and which it opens; 'auto' for what jax
        finds by itself, from a network's answers, too.
      num_processes: how many there are.
      process_id: the number of this one, from 0.
      timeout_secs: to wait for the others.

    Raises:
      BadInput: flags that do not go together, or a TPU slice of several hosts that were not joined.
      ProcessError: not every process came.
    """
    cluster = find_cluster(coordinator, num_processes, process_id, os.environ)

    if cluster is None:
        check_joined(jax.process_count())
    else:
        _join(cluster, timeout_secs)


def is_primary() -> bool:
    """Returns whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here; returns at once if there is only one.

    Args:
      name: of the place, the same in every process.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def all_agree(yes: bool) -> bool:
    """Returns whether every process says yes, and waits for their answers."""
    if jax.process_count() == 1:
        return yes

    return bool(multihost_utils.process_allgather(np.array(yes)).all())


class AnyProcess:
    """Whether any process says yes, asked of all of them every step, one step late."""

    def __init__(self):
        self._answer: jax.Array | None = None
        mesh = Mesh(np.array(jax.devices()), ("devices",))
        self._split = NamedSharding(mesh, PartitionSpec("devices"))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, yes: bool) -> bool:
        """Says yes or no; returns whether any process said yes, at the previous call if several."""
        if jax.process_count() == 1:
            return yes

        # The answer to this call is fetched at the next one, so that no process waits for it; and
        # all of them get the same, so that they stop after the same step.
        previous = self._answer
        local = np.full(jax.local_device_count(), yes)
        self._answer = self._any(jax.make_array_from_process_local_data(self._split, local))
        return previous is not None and bool(previous)


@contextlib.contextmanager
def exiting_together() -> Iterator[None]:
    """Has the processes of a run end together, each with its own exit code."""
    # Process 0 holds the coordinator, and when it is gone jax aborts all that are left. So those
    # that are done, or were stopped, wait for one another; one that fails waits only for a while,
    # as the others may be waiting for it in a computation.
    try:
        yield
    except Stopped:
        jax.distributed.shutdown()
        raise
    except (Exception, KeyboardInterrupt) as error:
        if jax.distributed.is_initialized():
            code = 2 if isinstance(error, BadInput) else 1

            # Started here: an interpreter that is exiting can start no thread.
            shutdown = threading.Thread(target=jax.distributed.shutdown, daemon=True)
            shutdown.start()
            wait_secs = _PRIMARY_EXIT_SECS if is_primary() else _EXIT_SECS
            atexit.register(_leave, code, shutdown, wait_secs)
        raise
    else:
        # Not left to jax's exit hook: processes of Python 3.13's multiprocessing run none.
        jax.distributed.shutdown()


def _join(cluster: Cluster, timeout_secs: int) -> None:
    """Joins the other processes, or raises when the time is up."""
    failures = []

    def join() -> None:
        try:
            jax.distributed.initialize(
                cluster.coordinator,
                cluster.num_processes,
                cluster.process_id,
                cluster_detection_method=cluster.method,
                initialization_timeout=_JAX_TIMEOUT_SECS,
            )
        except (RuntimeError, ValueError, OSError) as error:
            failures.append(error)

    # In a thread: while jax waits, the main thread could neither report nor react to Ctrl-C.
    thread = threading.Thread(target=join, daemon=True)
    atexit.register(_leave)
    note("waiting for the other processes")
    thread.start()
    thread.join(timeout_secs)

    # The process still exits by `_leave`: jax's own end would wait for the thread.
    if thread.is_alive():
        raise ProcessError(timeout_message(cluster, timeout_secs))

    atexit.unregister(_leave)
    if failures:
        raise _refusal(cluster, failures[0]) from failures[0]


def _refusal(cluster: Cluster, error: Exception) -> Exception:
    """The error to report for one of jax's."""
    # With --coordinator=auto jax raises ValueError if it finds no others.
    if cluster.method is None and isinstance(error, ValueError):
        return BadInput(
            f"--coordinator={AUTO}: jax finds no other processes here ({error}): give {FLAGS}"
        )

    return ProcessError(failure_message(cluster, error))


def _leave(code: int = 1, shutdown: threading.Thread | None = None, wait_secs: int = 0) -> None:
    """Ends the process without jax's exit hook, which may wait for what never comes."""
    sys.stdout.flush()
    sys.stderr.flush()

    if shutdown is not None:
        shutdown.join(wait_secs)

    os._exit(code)
