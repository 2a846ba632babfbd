"""Reads the arrays that orbax stored, each process its own part."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from train.checkpoint.metadata import Damaged
from train.errors import first_line
from train.state import TrainState


def read_state(folder: epath.Path, target: TrainState, former: Mapping[str, str]) -> TrainState:
    """Returns the stored arrays of a state, their values unverified.

    Args:
      folder: of the arrays.
      target: the state's shapes, dtypes and shardings.
      former: {name of a leaf: name under which an earlier version stored it}.

    Raises:
      Damaged: they cannot be read.
    """
    with _reading():
        if not former:
            return read_arrays(folder, target)

        stored = read_arrays(folder, _with_former_names(target, former))
        return _with_current_names(stored, target, former)


def read_part(folder: epath.Path, target: Mapping[str, Any]) -> dict[str, Any]:
    """Returns some of the stored arrays of a state, their values unverified.

    Args:
      folder: of the arrays.
      target: by the name of a part of the state, its tree of shapes, dtypes and shardings; other
        parts, such as the optimiser's, are not read.

    Raises:
      Damaged: they cannot be read.
    """
    # The handler of whole states takes no part of one; it stores through this one.
    handler = ocp.PyTreeCheckpointHandler()
    how = ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    try:
        with _reading(), _waiting_loops():
            return handler.restore(folder, args=how)
    finally:
        handler.close()


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Reports as damage what keeps arrays from being read."""
    try:
        yield

    # A broken file makes orbax and tensorstore raise errors of any type.
    except Exception as error:
        # The device is full: no other checkpoint would fit either.
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
            raise

        raise Damaged(f"its arrays cannot be read: {first_line(error)}") from error


def read_arrays(folder: epath.Path, target: Any) -> Any:
    """Returns the arrays of a folder, unverified.

    Args:
      folder: that a StandardCheckpointHandler wrote.
      target: their tree, of shapes, dtypes and shardings.

    Raises:
      Exception: any type of error that a broken file causes in orbax and tensorstore.
    """
    # Not one of orbax's checkpointers: in these the processes wait for one another, and one whose
    # part of the files is damaged fails alone.
    handler = ocp.StandardCheckpointHandler()
    try:
        with _waiting_loops():
            return handler.restore(folder, args=ocp.args.StandardRestore(target))
    finally:
        handler.close()


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that ends what it has begun before it closes."""

    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

        super().close()


class _Loops(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _Loop()


@contextlib.contextmanager
def _waiting_loops() -> Iterator[None]:
    """Makes orbax wait for the arrays that it is still reading when one of them fails."""
    # orbax closes its event loop while other reads are running, and each of them then prints a
    # traceback: hundreds of lines around the one that says what is damaged. It makes the loop
    # itself, so that only a policy reaches it; to silence asyncio's log instead does not suffice,
    # as tensorstore's threads report to the closed loop later.
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_Loops())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)


def _with_former_names(state: TrainState, former: Mapping[str, str]) -> dict[str, Any]:
    """The state as a dict of its parts; a part whose leaves were renamed is a dict, too."""
    parts = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}

    for part in {name.partition("/")[0] for name in former}:
        leaves = {
            field.name: getattr(parts[part], field.name)
            for field in dataclasses.fields(parts[part])
        }
        parts[part] = _renamed(part, leaves, former)

    return parts


def _with_current_names(
    parts: dict[str, Any], like: TrainState, former: Mapping[str, str]
) -> TrainState:
    """The reverse of `_with_former_names`."""
    current = {old: new for new, old in former.items()}

    for part in {name.partition("/")[0] for name in former}:
        leaves = _renamed(part, parts[part], current)
        parts[part] = type(getattr(like, part))(**leaves)

    return TrainState(**parts)


def _renamed(part: str, leaves: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The leaves of a part, renamed by {'part/leaf': 'part/other leaf'}."""
    full = {f"{part}/{leaf}": value for leaf, value in leaves.items()}
    return {names.get(name, name).partition("/")[2]: value for name, value in full.items()}
