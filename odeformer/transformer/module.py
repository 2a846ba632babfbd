"""A module whose parameters are created without solving over depth."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import flax.linen as nn


class DepthModule(nn.Module):
    """A module that integrates over depth; its `init` creates parameters without solving.

    `init_with_output` solves, and so does the `init` of another module that holds this one.
    """

    @nn.nowrap
    def init(self, *args: Any, capture_intermediates: Any = False, **kwargs: Any) -> Any:
        """Returns the variables: only parameters, without a solve's counts; see flax."""
        kwargs["capture_intermediates"] = capture_intermediates

        # Captured intermediates are outputs too, and so need the solve.
        with contextlib.nullcontext() if capture_intermediates else _without_output():
            return super().init(*args, **kwargs)


# A context variable: flax hands no argument from `init` down to the stack inside a model.
output_is_dropped = contextvars.ContextVar("output_is_dropped", default=False)


@contextlib.contextmanager
def _without_output() -> Iterator[None]:
    """A context in which a stack that is being initialised need not trace its solve."""
    token = output_is_dropped.set(True)
    try:
        yield
    finally:
        output_is_dropped.reset(token)
