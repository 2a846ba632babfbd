"""Joins the processes of one run: one a host on TPUs, one a GPU under SLURM and Open MPI.

Each process runs the same program on the same config, and takes its own part of every batch. What
is printed and written, the first process prints and writes; checkpoints alone are written by all.
"""

import atexit
import contextlib
import dataclasses
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.errors import BadInput, ProcessError, Stopped

AUTO = "auto"  # the coordinator that jax finds, where the environment does not say

_FLAGS = "--coordinator, --num_processes and --process_id"
_TPU_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")  # the first that is set counts
_SLURM_STEP = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)
_KEEP_TRYING_SECS = 86_400  # jax ends the whole process when its own time is up: ours comes first
_PROBE_SECS = 2
# The most that a process which failed waits for the others to end, too: the first, without which
# jax aborts them all, the longest.
_FIRST_LEAVES_SECS, _LEAVES_SECS = 10, 3


@dataclasses.dataclass(frozen=True)
class Group:
    """The processes of one run, and this one among them; None is what only jax knows."""

    method: str | None  # by which jax finds the others, of those jax.distributed.initialize names
    coordinator: str | None = None  # HOST:PORT of process 0
    processes: int | None = None
    process: int | None = None


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    timeout_secs: int = 300,
) -> None:
    """Joins the other processes, where the flags or the environment say that there are any.

    Otherwise nothing is done, and nothing asked of a network. To be called once, before any
    computation.

    Args:
      coordinator: HOST:PORT, on which process 0 is reached and which it opens; 'auto' for what jax
        finds by itself, a network's answers among it.
      processes: how many there are.
      process: the number of this one, from 0.
      timeout_secs: to wait for the others.

    Raises:
      BadInput: flags that do not go together, or a TPU slice of several hosts that were not joined.
      ProcessError: not every process came.
    """
    group = find_group(coordinator, processes, process, os.environ)
    if group is not None:
        _join(group, timeout_secs)
    elif jax.process_count() > 1:
        raise BadInput(
            f"this TPU slice has {jax.process_count()} hosts, of which the environment says "
            f"nothing: give --coordinator={AUTO} to every process"
        )


def is_primary() -> bool:
    """Returns whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here; returns at once where there is one.

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
    """Whether any process says yes, asked every step by all of them; nobody waits for the answer.

    Of several processes each hears what was said one call before, and all hear the same.
    """

    def __init__(self):
        self._answer: jax.Array | None = None
        mesh = Mesh(np.array(jax.devices()), ("devices",))
        self._split = NamedSharding(mesh, PartitionSpec("devices"))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, yes: bool) -> bool:
        """Says yes or no, and returns what is known."""
        if jax.process_count() == 1:
            return yes
        before, said = self._answer, np.full(jax.local_device_count(), yes)
        self._answer = self._any(jax.make_array_from_process_local_data(self._split, said))
        return before is not None and bool(before)


@contextlib.contextmanager
def exiting_together() -> Iterator[None]:
    """Has the processes of a run end together, each with its own exit code.

    Those that are done, or were told to stop, wait for one another here: process 0 holds what ties
    them together, and without it jax aborts whoever is left. One that fails waits only for a while,
    as the others may be waiting for it.
    """
    try:
        yield
    except Stopped:
        jax.distributed.shutdown()
        raise
    except (Exception, KeyboardInterrupt) as error:
        if jax.distributed.is_initialized():
            code = 2 if isinstance(error, BadInput) else 1
            # Started here, as an interpreter that exits starts no thread any more.
            others = threading.Thread(target=jax.distributed.shutdown, daemon=True)
            others.start()
            wait_secs = _FIRST_LEAVES_SECS if is_primary() else _LEAVES_SECS
            atexit.register(_leave, code, others, wait_secs)
        raise
    else:
        # Not left to jax's own end: of Python 3.13's multiprocessing, no process runs that.
        jax.distributed.shutdown()


def find_group(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    environ: Mapping[str, str],
) -> Group | None:
    """Returns the processes that the flags or the environment speak of; None where this is alone.

    Args:
      coordinator: as in `start`.
      processes: as in `start`.
      process: as in `start`.
      environ: the environment's variables.

    Raises:
      BadInput: flags that do not go together, or an Open MPI that jax cannot ask.
    """
    if coordinator == AUTO and processes is None and process is None:
        return Group(method=None)
    if coordinator is not None or processes is not None or process is not None:
        return _by_flags(coordinator, processes, process)
    return _open_mpi(environ) or _slurm(environ) or _tpu_pod(environ)


def _by_flags(coordinator: str | None, processes: int | None, process: int | None) -> Group | None:
    if coordinator is None or processes is None or process is None:
        given = dict(coordinator=coordinator, num_processes=processes, process_id=process)
        missing = " and ".join(f"--{name}" for name, value in given.items() if value is None)
        raise BadInput(
            f"{_FLAGS} go together, {missing} missing: give all three, or --coordinator={AUTO} "
            "alone, or none"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BadInput(
            f"--coordinator={coordinator} is no address: give HOST:PORT, of the machine that "
            "process 0 runs on and a port that is free there, e.g. 10.0.0.1:1234"
        )
    if processes < 1:
        raise BadInput(f"--num_processes={processes} was given: give 1 or more")
    if not 0 <= process < processes:
        raise BadInput(
            f"--process_id={process} was given: the {processes} processes of --num_processes are "
            f"numbered from 0 to {processes - 1}"
        )
    if processes == 1:
        return None
    return Group("deactivate", coordinator, processes, process)


def _open_mpi(environ: Mapping[str, str]) -> Group | None:
    processes = int(environ.get("OMPI_COMM_WORLD_SIZE", 1))
    if processes == 1:
        return None
    if "OMPI_MCA_orte_hnp_uri" not in environ:
        raise BadInput(
            f"mpirun started {processes} processes, and this version of Open MPI does not tell "
            f"jax where: give {_FLAGS}, the last as --process_id=$OMPI_COMM_WORLD_RANK"
        )
    return Group("ompi", None, processes, int(environ["OMPI_COMM_WORLD_RANK"]))


def _slurm(environ: Mapping[str, str]) -> Group | None:
    # Without srun, inside salloc or sbatch, some of them are missing, or the step has one task.
    if any(name not in environ for name in _SLURM_STEP):
        return None
    processes = int(environ["SLURM_NTASKS"])
    if processes == 1 or environ.get("SLURM_STEP_NUM_TASKS") == "1":
        return None
    return Group("slurm", None, processes, int(environ["SLURM_PROCID"]))


def _tpu_pod(environ: Mapping[str, str]) -> Group | None:
    names = next((environ[name] for name in _TPU_HOSTS if name in environ), "")
    hosts, slices = len(names.split(",")), int(environ.get("MEGASCALE_NUM_SLICES") or 1)
    if not names or hosts * slices == 1:
        return None
    number = int(environ.get("TPU_WORKER_ID") or 0)
    number += hosts * int(environ.get("MEGASCALE_SLICE_ID") or 0)
    return Group("gketpu", None, hosts * slices, number)


def _join(group: Group, timeout_secs: int) -> None:
    """Joins in a thread: jax would leave no word, and hear no Ctrl-C, while it waits."""
    failures = []

    def join() -> None:
        try:
            jax.distributed.initialize(
                group.coordinator,
                group.processes,
                group.process,
                cluster_detection_method=group.method,
                initialization_timeout=_KEEP_TRYING_SECS,
            )
        except (RuntimeError, ValueError, OSError) as error:
            failures.append(error)

    thread = threading.Thread(target=join, daemon=True)
    atexit.register(_leave)
    thread.start()
    thread.join(timeout_secs)
    if thread.is_alive():
        raise ProcessError(_absence(group, timeout_secs))
    atexit.unregister(_leave)
    if failures and group.method is None and isinstance(failures[0], ValueError):
        raise BadInput(
            f"--coordinator={AUTO}: jax finds no other processes here ({failures[0]}): give "
            f"{_FLAGS}"
        ) from failures[0]
    if failures:
        raise ProcessError(
            f"{_who(group)} could not join the others: {failures[0]}. {_advice(group)}"
        ) from failures[0]


def _leave(code: int = 1, others: threading.Thread | None = None, wait_secs: int = 0) -> None:
    """Ends the process without jax's own end, which may wait for what never comes."""
    sys.stdout.flush()
    sys.stderr.flush()
    if others is not None:
        others.join(wait_secs)
    os._exit(code)


def _absence(group: Group, timeout_secs: int) -> str:
    """Says what is missing, as far as it can be told: jax tells no process who else came."""
    if group.process == 0 and group.processes == 2:
        missing = "process 1 did not come"
    elif group.process == 0:
        missing = "the others did not all come"
    elif group.coordinator is not None and not _answers(group.coordinator):
        missing = "nothing answers at the coordinator's address"
    else:
        missing = "the coordinator was not reached, or waits for others still"
    return (
        f"{_who(group)} waited for {timeout_secs} s, and {missing}. {_advice(group)} "
        "--join_timeout_secs=N waits longer."
    )


def _who(group: Group) -> str:
    coordinator = f"coordinator {group.coordinator or 'as ' + _SOURCES[group.method] + ' says'}"
    if group.process is None:
        return f"this process ({coordinator})"
    return f"process {group.process} of {group.processes} ({coordinator})"


_SOURCES = {None: "jax", "ompi": "Open MPI", "slurm": "SLURM", "gketpu": "TPU_WORKER_HOSTNAMES"}


def _advice(group: Group) -> str:
    numbers = "" if group.coordinator is None else ", but for --process_id,"
    where = "" if group.coordinator is None else f" at {group.coordinator}"
    return (
        f"Check that all {group.processes or ''} processes run, that each runs the same "
        f"command{numbers} and that no firewall keeps them from process 0{where}."
    ).replace("  ", " ")


def _answers(coordinator: str) -> bool:
    host, _, port = coordinator.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PROBE_SECS).close()
    except OSError:
        return False
    return True
