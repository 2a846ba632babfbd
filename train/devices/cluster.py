"""Finds the processes of one run, by flags or in the environment: SLURM, Open MPI, TPU pods."""

import dataclasses
import socket
from collections.abc import Mapping, Sequence

from train.devices.cluster_checks import AUTO, check_flags, check_open_mpi, incomplete

_TPU_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")  # the first that is set counts
_SLURM_STEP = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)
_SOURCES = {None: "jax", "ompi": "Open MPI", "slurm": "SLURM", "gketpu": "TPU_WORKER_HOSTNAMES"}
_PROBE_SECS = 2


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of one run, and this one among them; a field that only jax finds is None."""

    method: str | None  # by which jax finds the others, as jax.distributed.initialize names it
    coordinator: str | None = None  # HOST:PORT of process 0
    num_processes: int | None = None
    process_id: int | None = None


def find_cluster(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    environ: Mapping[str, str],
) -> Cluster | None:
    """Returns the processes that the flags or the environment name; None if this one is alone.

    Args:
      coordinator: HOST:PORT of process 0, or 'auto'.
      num_processes: how many there are.
      process_id: the number of this one, from 0.
      environ: the environment's variables.

    Raises:
      BadInput: flags that do not go together, or a version of Open MPI that jax cannot read.
    """
    if coordinator == AUTO and num_processes is None and process_id is None:
        return Cluster(method=None)

    if coordinator is not None or num_processes is not None or process_id is not None:
        return _by_flags(coordinator, num_processes, process_id)

    # Open MPI first: under mpirun inside a SLURM job both have set their variables.
    return _open_mpi(environ) or _slurm(environ) or _tpu_pod(environ)


def is_first(arguments: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Returns whether flags or environment say that this process is alone, or the first of several.

    For what is printed before jax is imported: what cannot be found out without it, or will be
    refused, counts as no.

    Args:
      arguments: the command line.
      environ: the environment's variables.
    """
    given = dict.fromkeys(("coordinator", "num_processes", "process_id"))
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, text = option.lstrip("-").partition("=")
        if option.startswith("-") and name in given:
            given[name] = text if equals else value

    number, process = given["num_processes"], given["process_id"]
    try:
        cluster = find_cluster(
            given["coordinator"],
            None if number is None else int(number),
            None if process is None else int(process),
            environ,
        )
    except ValueError:
        return False

    return cluster is None or cluster.process_id == 0


def _by_flags(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Cluster | None:
    if coordinator is None or num_processes is None or process_id is None:
        raise incomplete(coordinator, num_processes, process_id)

    check_flags(coordinator, num_processes, process_id)
    if num_processes == 1:
        return None

    # 'deactivate': jax is not to look for what the flags say in the environment, too.
    return Cluster("deactivate", coordinator, num_processes, process_id)


def _open_mpi(environ: Mapping[str, str]) -> Cluster | None:
    num_processes = int(environ.get("OMPI_COMM_WORLD_SIZE", 1))
    if num_processes == 1:
        return None

    check_open_mpi(environ, num_processes)
    return Cluster("ompi", None, num_processes, int(environ["OMPI_COMM_WORLD_RANK"]))


def _slurm(environ: Mapping[str, str]) -> Cluster | None:
    # Without srun, inside salloc or sbatch, some of them are missing, or the step has one task.
    if any(name not in environ for name in _SLURM_STEP):
        return None

    num_processes = int(environ["SLURM_NTASKS"])
    if num_processes == 1 or environ.get("SLURM_STEP_NUM_TASKS") == "1":
        return None

    return Cluster("slurm", None, num_processes, int(environ["SLURM_PROCID"]))


def _tpu_pod(environ: Mapping[str, str]) -> Cluster | None:
    names = next((environ[name] for name in _TPU_HOSTS if name in environ), "")

    # Several slices are several such lists: each slice has its own, of the same length.
    hosts, slices = len(names.split(",")), int(environ.get("MEGASCALE_NUM_SLICES") or 1)
    if not names or hosts * slices == 1:
        return None

    worker, slice_id = (
        int(environ.get(name) or 0) for name in ("TPU_WORKER_ID", "MEGASCALE_SLICE_ID")
    )
    return Cluster("gketpu", None, hosts * slices, slice_id * hosts + worker)


def timeout_message(cluster: Cluster, timeout_secs: int) -> str:
    """Returns who did not come in time, as far as that is known, and what to check."""
    # jax tells no process which others came; the coordinator's address can be tried.
    if cluster.process_id == 0 and cluster.num_processes == 2:
        missing = "process 1 did not come"
    elif cluster.process_id == 0:
        missing = "the others did not all come"
    elif cluster.coordinator is not None and not _answers(cluster.coordinator):
        missing = "nothing answers at the coordinator's address"
    else:
        missing = "the coordinator was not reached, or is still waiting for others"

    return (
        f"{_name(cluster)} waited for {timeout_secs} s, and {missing}. {_advice(cluster)} "
        "--join_timeout_secs=N waits longer."
    )


def failure_message(cluster: Cluster, error: Exception) -> str:
    """Returns which process could not join the others and why, and what to check."""
    return f"{_name(cluster)} could not join the others: {error}. {_advice(cluster)}"


def _name(cluster: Cluster) -> str:
    address = cluster.coordinator or f"as {_SOURCES[cluster.method]} says"
    if cluster.process_id is None:
        return f"this process (coordinator {address})"

    return f"process {cluster.process_id} of {cluster.num_processes} (coordinator {address})"


def _advice(cluster: Cluster) -> str:
    number = f"{cluster.num_processes} " if cluster.num_processes is not None else ""

    # Only flags differ between the processes; a launcher gives each the same command.
    except_id, where = "", ""
    if cluster.coordinator is not None:
        except_id, where = ", but for --process_id,", f" at {cluster.coordinator}"

    return (
        f"Check that all {number}processes run, that each runs the same command{except_id} and "
        f"that no firewall keeps them from process 0{where}."
    )


def _answers(coordinator: str) -> bool:
    """Whether anything accepts connections at an address."""
    host, _, port = coordinator.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PROBE_SECS).close()
    except OSError:
        return False

    return True
