"""Whether there are slices of TPUs to compile for, and a compiler."""

import contextlib
import importlib.util
import os
from collections.abc import Collection, Iterator

import jax

from odeformer.errors import unknown
from train.errors import BadInput


def check_generation(name: str, accepted: Collection[str]) -> None:
    """Refuses a generation of TPUs that is not known."""
    if name not in accepted:
        raise BadInput(f"--topology: {unknown('TPU', name, accepted)}")


def check_exists(topology: str, exists: bool, others: str) -> None:
    """Refuses a slice that its generation is not offered in; `others` lists those that it is."""
    if not exists:
        raise BadInput(f"--topology: there is no {topology}; take {others}")


def check_slices(num_slices: int) -> None:
    """Refuses no slice at all."""
    if num_slices < 1:
        raise BadInput(f"--num_slices is 1 or more; {num_slices} was given")


@contextlib.contextmanager
def describing(topology: str) -> Iterator[None]:
    """Reports as bad input that libtpu refuses a slice."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        raise BadInput(f"--topology: libtpu refuses {topology}: {error}") from error


def check_compiler() -> None:
    """Refuses a machine without libtpu."""
    if importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"):
        raise BadInput(
            "compiling for a TPU needs libtpu, its compiler, which is not installed; no TPU is "
            "needed: pip install 'odeformer-jax[tpu]', or pip install 'jax[tpu]'"
        )
