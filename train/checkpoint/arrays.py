"""Reads the arrays that orbax stored, each process its own part."""

import contextlib
import dataclasses
import gc
import logging
import traceback
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
    try:
        if not former:
            return read_arrays(folder, target)

        stored = read_arrays(folder, _with_former_names(target, former))
        return _with_current_names(stored, target, former)

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
        with _quiet_asyncio():
            return handler.restore(folder, args=ocp.args.StandardRestore(target))
    finally:
        handler.close()


@contextlib.contextmanager
def _quiet_asyncio() -> Iterator[None]:
    """Silences asyncio while arrays are read."""
    # When one read fails, orbax drops the others, and asyncio would log a traceback for each when
    # they are collected: hundreds of lines around the one that says what is damaged.
    logger = logging.getLogger("asyncio")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception as error:
        # The frames hold the dropped reads, which must be collected while nothing is logged.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        raise
    finally:
        logger.setLevel(level)


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
