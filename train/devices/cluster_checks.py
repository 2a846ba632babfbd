"""Whether the flags, or the environment, name the processes of one run."""

from collections.abc import Mapping

from train.errors import BadInput

# Stands for the coordinator that jax finds, if the environment names none.
AUTO = "auto"

FLAGS = "--coordinator, --num_processes and --process_id"


def incomplete(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> BadInput:
    """Returns the error for some of the flags without the others."""
    flags = dict(coordinator=coordinator, num_processes=num_processes, process_id=process_id)
    missing = " and ".join(f"--{name}" for name, value in flags.items() if value is None)
    return BadInput(
        f"{FLAGS} go together, {missing} missing: give all three, or --coordinator={AUTO} "
        "alone, or none"
    )


def check_flags(coordinator: str, num_processes: int, process_id: int) -> None:
    """Refuses an address that is none, and numbers out of range."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BadInput(
            f"--coordinator={coordinator} is no address: give HOST:PORT, of the machine that "
            "process 0 runs on and a port that is free there, e.g. 10.0.0.1:1234"
        )
    if num_processes < 1:
        raise BadInput(f"--num_processes={num_processes} was given: give 1 or more")
    if not 0 <= process_id < num_processes:
        raise BadInput(
            f"--process_id={process_id} was given: the {num_processes} processes of "
            f"--num_processes are numbered from 0 to {num_processes - 1}"
        )


def check_open_mpi(environ: Mapping[str, str], num_processes: int) -> None:
    """Refuses a version of Open MPI under which jax finds no coordinator."""
    # jax reads its address from this variable, which not every version sets.
    if "OMPI_MCA_orte_hnp_uri" not in environ:
        raise BadInput(
            f"mpirun started {num_processes} processes, and jax cannot find the first of them "
            f"under this version of Open MPI: give {FLAGS}, the last as "
            "--process_id=$OMPI_COMM_WORLD_RANK"
        )


def check_joined(hosts: int) -> None:
    """Refuses a TPU slice of several hosts, which jax counts even if they were not joined."""
    if hosts > 1:
        raise BadInput(
            f"this TPU slice has {hosts} hosts, which the environment does not name: "
            f"give --coordinator={AUTO} to every process"
        )
