"""What a stack does to its flow beyond integrating it: sums along depth, a random end."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Flow(NamedTuple):
    """What a stack does to its flow beyond integrating it; by default nothing.

    Attributes:
      sums: of `integrate`, that each group's solve returns.
      end_time: b, in layers: in training the last group, of length T, ends at U(T - b, T + b).
    """

    sums: tuple[str, ...] = ()
    end_time: float = 0.0


class Place(NamedTuple):
    """Where a group lies in depth-time.

    Attributes:
      offset: its start.
      length: its length; None for that of every group.
    """

    offset: Any
    length: Any = None


def random_lengths(
    depth: Any, make_rng: Callable[[str], jax.Array], dtype: Any
) -> jax.Array | None:
    """Returns the length of each group, [G], the last one's at random; None where none is.

    Source: Ghosh et al., 'STEER: Simple temporal regularization for neural ODEs', 2020, arXiv
    2006.10711.

    Args:
      depth: a DepthConfig.
      make_rng: of a flax module.
      dtype: of the lengths.
    """
    end_time = depth.flow.end_time
    if not end_time:
        return None

    # A stack draws it after the masks of dropout, which so are those of a flow that ends in time.
    shift = jax.random.uniform(make_rng("dropout"), (), dtype, -end_time, end_time)
    return jnp.full(depth.groups, depth.length, dtype).at[-1].add(shift)
