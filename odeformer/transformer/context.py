"""What the terms of a field see in addition to the state."""

from typing import NamedTuple

import jax


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
