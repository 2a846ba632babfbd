"""Reads the arrays that orbax stored, each process its own part."""

import contextlib
import gc
import logging
import traceback
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp
from etils import epath


def read_arrays(folder: epath.Path, target: Any) -> Any:
    """Returns the arrays of a folder, unverified.

    No process waits for another here, as in orbax's checkpointers: one of them may fail alone.

    Args:
      folder: that a StandardCheckpointHandler wrote.
      target: their tree, of shapes, dtypes and shardings.

    Raises:
      Exception: whatever a broken file leads orbax and tensorstore to raise.
    """
    handler = ocp.StandardCheckpointHandler()
    try:
        with _quiet_asyncio():
            return handler.restore(folder, args=ocp.args.StandardRestore(target))
    finally:
        handler.close()


@contextlib.contextmanager
def _quiet_asyncio() -> Iterator[None]:
    """Silences asyncio while arrays are read.

    Where one read fails, orbax drops the others, and asyncio would log a traceback of each when
    they are collected: hundreds of lines around the one that says what is damaged.
    """
    logger = logging.getLogger("asyncio")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception as error:
        # The frames hold the dropped tasks, which are to be collected while nothing is logged.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        raise
    finally:
        logger.setLevel(level)
