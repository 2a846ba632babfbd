"""The state of a field: one array of tokens, or a dict of arrays, the tokens as 'y' among them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

# The stream that every state has: the tokens.
Y = "y"


def begin(streams: tuple[str, ...], y_BND: jax.Array) -> Any:
    """Returns the state of these streams that begins with tokens: each is a copy of y."""
    return y_BND if streams == (Y,) else dict.fromkeys(streams, y_BND)


def tokens(state: Any) -> Any:
    """Returns the stream y of a state."""
    return state[Y] if isinstance(state, Mapping) else state


def filled(slopes: Mapping[str, jax.Array], state: Any) -> Any:
    """Returns slopes of the state's structure: 0 for streams that have none."""
    if not isinstance(state, Mapping):
        return slopes[Y]

    # XLA drops what is added as a constant 0.
    return {s: slopes[s] if s in slopes else jnp.zeros_like(y) for s, y in state.items()}
