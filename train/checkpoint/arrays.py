"""Reads the arrays that orbax stored, each process its own part, and quietly where that fails."""

import asyncio
import contextlib
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
        with _loops_that_end():
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
def _loops_that_end() -> Iterator[None]:
    """Makes orbax wait for the arrays that it is still reading when one of them fails.

    It would close its event loop in the midst of them, and each would print a traceback: hundreds
    of lines around the one that says what is damaged.
    """
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_Loops())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)
