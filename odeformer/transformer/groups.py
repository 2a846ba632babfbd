"""The groups of a stack: what a group is, where it lies in depth-time, and its solve."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from odeformer.ode.integrate import solve
from odeformer.ode.problem import Solution, SolveSettings, State, VectorField
from odeformer.transformer.bases import Weights
from odeformer.transformer.config import DepthConfig
from odeformer.transformer.field import FieldParams
from odeformer.transformer.state import Context


class Place(NamedTuple):
    """Where a group lies in depth-time.

    Attributes:
      offset: the depth-time at which it starts, in layers.
      length: its length in layers; None where all groups have `DepthConfig.length`.
    """

    offset: Any
    length: Any = None


class Groups(NamedTuple):
    """The ODEs of a stack, one per group.

    Attributes:
      field: the vector field of all groups, as `make_vector_field` returns it.
      theta: the weights over depth.
      places: where each group lies, [G].
      keys: a PRNG key per group, [G]; None where nothing is random.
    """

    field: VectorField
    theta: Weights
    places: Place
    keys: jax.Array | None


class Inputs(NamedTuple):
    """What all groups read in addition to the state, each array with a leading batch axis."""

    context: Context | None
    weights: State | None


def make_solve(
    field: VectorField, settings: SolveSettings, length: float, sums: tuple[str, ...] = ()
) -> Callable[..., Solution]:
    """Returns the solve of one group, (theta, place, key, state, inputs) -> Solution.

    Args:
      field: the vector field, as `make_vector_field` returns it.
      settings: how one group is solved.
      length: length of a group in layers, unless its place says another one.
      sums: what is summed along the solution, as for `integrate`.
    """
    # Only the context has the batch as an axis.
    axes: Any = FieldParams(None, None, 0)  # pyright: ignore[reportArgumentType]

    def solve_group(theta, place, key, state, inputs) -> Solution:
        # On local time from 0: late in depth, float32 would lose digits of small steps.
        return solve(
            field,
            state,
            FieldParams(theta, place.offset, inputs.context),
            settings,
            t1=length if place.length is None else place.length,
            key=key,
            params_axes=axes,
            weights=inputs.weights,
            sums=sums,
            # The groups are scanned, and a scan's body needs no guard against merging.
            prevent_cse=False,
        )

    return solve_group


def random_lengths(
    depth: DepthConfig, make_rng: Callable[[str], jax.Array], dtype: Any
) -> jax.Array | None:
    """Returns the length of each group, [G], the last one random; None if no length is random.

    Source: Ghosh et al., 'STEER: Simple temporal regularization for neural ODEs', 2020, arXiv
    2006.10711.

    Args:
      depth: says how far from its end the last group may end.
      make_rng: a flax module's, which is asked for the rng stream 'dropout'.
      dtype: dtype of the lengths.
    """
    end_time = depth.flow.end_time
    if not end_time:
        return None

    shift = jax.random.uniform(make_rng("dropout"), (), dtype, -end_time, end_time)
    return jnp.full(depth.groups, depth.length, dtype).at[-1].add(shift)
