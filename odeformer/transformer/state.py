"""What the terms of a field are evaluated on: a state of named streams, in a context.

A state is one array of tokens, or a dict of arrays, the tokens as 'y' among them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# The stream that every state has: the tokens.
Y = "y"


class Context(NamedTuple):
    """How the tokens of a batch lie in their sequences, the samples in the batch; what they read.

    Each array has the batch as its leading axis, and is constant over depth.

    Attributes:
      segments: int [B, N]; a token sees only tokens of its own number. Padding has a number too,
        by custom 0. None: each token sees all others of its sample.
      rotation: [B, N, 2, R / 2], cosines and sines of each position; see `rotary.rotation`. None:
        queries and keys are not rotated.
      samples: int [B], each sample's number, from which its dropout masks follow. None: its index.
      source: [B, S, D], other tokens that a term may read, in the state's dtype: a term says so
        itself, by `inputs` of `terms.Term`. None: there are none.
    """

    segments: jax.Array | None = None
    rotation: jax.Array | None = None
    samples: jax.Array | None = None
    source: jax.Array | None = None


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
