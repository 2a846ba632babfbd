"""The groups of a stack: what each is solved with, where it lies in depth-time, its solve."""

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
      offset: its start.
      length: its length; None for that of every group.
    """

    offset: Any
    length: Any = None


class Groups(NamedTuple):
    """What is solved, group by group.

    Attributes:
      field: of `make_vector_field`.
      theta: the weights over depth.
      places: of each group, [G].
      keys: of each group, [G]; None where nothing is random.
    """

    field: VectorField
    theta: Weights
    places: Place
    keys: jax.Array | None


class Inputs(NamedTuple):
    """What all groups receive in addition to the state, with the batch as the leading axis."""

    context: Context | None
    weights: State | None


def make_solve(
    field: VectorField, settings: SolveSettings, length: float, sums: tuple[str, ...] = ()
) -> Callable[..., Solution]:
    """Returns the solve of one group, (theta, place, key, state, inputs) -> Solution.

    Args:
      field: of `make_vector_field`.
      settings: of a group.
      length: of a group, in layers, unless its place says another one.
      sums: of `integrate`.
    """
    axes: Any = FieldParams(None, None, 0)  # pyright: ignore[reportArgumentType]

    def solve_group(theta, place, key, state, inputs) -> Solution:
        # On local time: in float32 small steps late in depth would lose digits.
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
    """Returns the length of each group, [G], the last one's at random; None where none is.

    Source: Ghosh et al., 'STEER: Simple temporal regularization for neural ODEs', 2020, arXiv
    2006.10711.

    Args:
      depth: how the depth is integrated.
      make_rng: of a flax module.
      dtype: of the lengths.
    """
    end_time = depth.flow.end_time
    if not end_time:
        return None

    shift = jax.random.uniform(make_rng("dropout"), (), dtype, -end_time, end_time)
    return jnp.full(depth.groups, depth.length, dtype).at[-1].add(shift)
