"""A reversible pair over the whole depth: it runs through all groups, and backwards again.

One gradient spans the groups, so that under adjoint 'reversible' the last pair alone is stored.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from odeformer.ode.checks import as_state
from odeformer.ode.problem import (
    REVERSIBLE,
    Solution,
    SolveSettings,
    VectorField,
    in_state_dtype,
)
from odeformer.ode.problem_checks import check_recoverable
from odeformer.ode.reversible import (
    begin,
    make_steps,
    relative_gap,
    run_reversibly,
    step_inputs,
)
from odeformer.ode.scans import Pair, reversible_scan, scan_back, scan_pull, scan_steps
from odeformer.ode.steps import count_fixed_steps, step_times
from odeformer.transformer.context import Context
from odeformer.transformer.field import FieldParams
from odeformer.transformer.sharding import by_shard, pull_by_shard
from odeformer.transformer.streams import tokens


class Depth(NamedTuple):
    """What a pair runs through.

    Attributes:
      field: of `make_vector_field`.
      settings: of a group, with a `reversible`.
      length: of a group, in layers.
      groups: of each group its parameters, its depth-time and its key.
      context: as for an `ODEStack`.
    """

    field: VectorField
    settings: SolveSettings
    length: float
    groups: tuple[Any, jax.Array, jax.Array | None]
    context: Context | None


class Recovered(NamedTuple):
    """What a pair returns in addition to the Solution.

    Attributes:
      states: tokens after each group, [G, B, N, D], if they are asked for.
      error: () -> |y_0' - y_0| / |y_0| of the state y_0' that a run backwards recovers, [].
    """

    states: jax.Array | None
    error: Callable[[], jax.Array]


def through_groups(depth: Depth, y0: Any, kept: bool) -> tuple[Solution, Recovered]:
    """Solves for a pair through all groups.

    Args:
      depth: the groups.
      y0: the state before the first one, arrays with the batch as their leading axis.
      kept: whether tokens after each group are returned.

    Returns:
      A Solution as that of an `ODEStack`, its gap [B]; and what else there is.

    Raises:
      ValueError: a lambda under which so many steps cannot be undone.
    """
    y0 = as_state(y0, depth.settings.per_sample)
    number, dtype = len(depth.groups[1]), tokens(y0).dtype
    group = _Group(depth, dtype)
    check_recoverable(depth.settings.reversible, number * group.number, dtype)

    # On a mesh each shard of the batch runs its own pairs, as it does plain states.
    first: Any = begin(y0)
    forth, split, context, merge = by_shard(group.forth, first, depth.context, depth.settings)
    back, *_ = by_shard(group.back, first, depth.context, depth.settings)
    pair: Any = split
    pull = pull_by_shard(group.pull, depth.settings)

    def through(pair, x, context):
        return forth(*x, pair, context).y1

    def keep(pair):
        return tokens(pair.y) if kept else None

    def pull_group(pair, g_pair, x, context):
        pair, g_pair, g_theta, g_context = pull(*x, (pair, g_pair), context)
        return pair, g_pair, (g_theta, None, None), g_context

    groups = depth.groups
    if depth.settings.adjoint == REVERSIBLE:
        scan = reversible_scan(through, pull_group, keep)
        last, states = run_reversibly(scan, pair, groups, context)
    else:
        # As many groups as there are stay in a scan, like those of a plain state.
        last, states = scan_steps(through, pair, groups, context, keep)

    def error() -> jax.Array:
        def undo(pair, x, context):
            return back(*x, pair, context).y1

        first = scan_back(undo, *jax.lax.stop_gradient((last, groups, context)))
        return relative_gap(y0, merge(first.y))

    y1, z1 = map(merge, last[:2])
    solution = group.counts(number, len(tokens(y0)))
    solution = solution._replace(y1=y1, gap=jax.vmap(relative_gap)(y1, z1))
    merged: Any = jax.vmap(merge)(states) if kept else None
    return solution, Recovered(merged, error)


class _Group:
    """The steps of one group, on its local time."""

    def __init__(self, depth: Depth, dtype: Any):
        number: Any = depth.settings.steps
        self.number, self._depth = number, depth
        self._times = step_times(0.0, depth.length, number, dtype)
        self._steps = make_steps(in_state_dtype(depth.field), depth.settings, scanned=number > 1)

    def forth(self, theta, offset, key, pair, context) -> Solution:
        """The pair after the group, as the y1 of a Solution."""
        shared, xs = (FieldParams(theta, offset, context), key), step_inputs(self._times)
        pair, _ = scan_steps(self._steps.forth, pair, xs, shared, keep=_nothing)
        return self._solution(pair)

    def back(self, theta, offset, key, pair, context) -> Solution:
        """The pair before the group."""
        shared, xs = (FieldParams(theta, offset, context), key), step_inputs(self._times)
        return self._solution(scan_back(self._steps.back, pair, xs, shared))

    def pull(self, theta, offset, key, pairs, context) -> tuple[Pair, Pair, Any, Any]:
        """The pair before the group; the cotangents of it, of theta and of the context."""
        pair, g_pair = pairs
        shared, xs = (FieldParams(theta, offset, context), key), step_inputs(self._times)
        cotangents = g_pair, None
        pair, g_pair, _, (g_params, _) = scan_pull(
            self._steps.pull, pair, cotangents, xs=xs, shared=shared, keep=_nothing
        )
        return pair, g_pair, g_params.theta, g_params.context

    def counts(self, groups: int, batch: int) -> Solution:
        """The counts of all groups, as those of an `ODEStack`."""
        settings = self._depth.settings
        axes = (groups, batch) if settings.per_sample else (groups,)
        return jax.tree.map(lambda n: jnp.broadcast_to(n, (*axes, *n.shape)), self._solution(None))

    def _solution(self, y1: Any) -> Solution:
        terms = len(self._depth.field.terms)
        return count_fixed_steps(self._depth.settings, terms, self._times)._replace(y1=y1)


def _nothing(pair: Pair) -> None:
    return None
