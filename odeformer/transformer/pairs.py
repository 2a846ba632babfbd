"""A reversible pair over the whole depth: it runs through all groups, and backwards again.

One gradient spans the groups, so that under adjoint 'reversible' the last pair alone is stored.
"""

import functools
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
from odeformer.ode.steps import count_fixed_steps
from odeformer.ode.times import step_times
from odeformer.transformer import lora
from odeformer.transformer.config import DepthConfig
from odeformer.transformer.field import FieldParams
from odeformer.transformer.groups import Groups
from odeformer.transformer.sharding import by_shard, pull_by_shard
from odeformer.transformer.state import Context, tokens


class Recovered(NamedTuple):
    """What a pair returns in addition to the Solution.

    Attributes:
      states: the tokens after each group, [G, B, N, D], if they were asked for.
      error: () -> |y_0' - y_0| / |y_0| of the state y_0' that a run backwards recovers, [].
    """

    states: jax.Array | None
    error: Callable[[], jax.Array]


def through_pairs(
    groups: Groups,
    config: DepthConfig,
    y0: Any,
    context: Context | None,
    *,
    adapted: bool = False,
    kept: bool = False,
) -> tuple[Solution, Recovered]:
    """Solves all groups as one reversible pair.

    Args:
      groups: the groups of the stack.
      config: how the depth is integrated; its `reversible` is set.
      y0: the state before the first group, arrays with the batch as their leading axis.
      context: as for an `ODEStack`.
      adapted: whether adapters are attached to the weights over depth.
      kept: whether to return the tokens after each group.

    Returns:
      The Solution that an `ODEStack` returns, with its gap, [B]; and a `Recovered`.

    Raises:
      ValueError: a lambda under which so many steps cannot be undone.
    """
    settings, dtype = config.group_settings, tokens(y0).dtype
    y0 = as_state(y0, settings.per_sample)
    group = _Group(groups.field, settings, config.length, dtype, adapted)
    check_recoverable(settings.reversible, config.groups * group.steps, dtype)

    # On a mesh each shard of the batch runs its own pairs, as it does plain states.
    first: Any = begin(y0)
    split_up = functools.partial(by_shard, settings=settings, recompute=adapted)
    back, *_ = split_up(group.back, first, context)
    forth, split, context, merge = split_up(group.forth, first, context)
    pair: Any = split
    pull = pull_by_shard(group.pull, settings)

    # The functions of `odeformer.ode.scans`, of which each group is a step.
    of_group = groups.theta.of_group

    def through(pair, x, shared):
        (scanned, offset, key), (context, common) = x, shared
        return forth(of_group(scanned, common), offset, key, pair, context).y1

    def keep(pair):
        return tokens(pair.y) if kept else None

    def pull_group(pair, g_pair, x, shared):
        (scanned, offset, key), (context, common) = x, shared
        theta, pull_theta = jax.vjp(of_group, scanned, common)
        pair, g_pair, g_theta, g_context = pull(theta, offset, key, (pair, g_pair), context)
        g_scanned, g_common = pull_theta(g_theta)
        return pair, g_pair, (g_scanned, None, None), (g_context, g_common)

    xs = groups.theta.scanned, groups.places.offset, groups.keys
    shared = context, groups.theta.common
    if settings.adjoint == REVERSIBLE:
        scan = reversible_scan(through, pull_group, keep)
        last, states = run_reversibly(scan, pair, xs, shared)
    else:
        # The gradient is JAX's own, which stores the pair before each group.
        last, states = scan_steps(through, pair, xs, shared, keep)

    def error() -> jax.Array:
        def undo(pair, x, shared):
            (scanned, offset, key), (context, common) = x, shared
            return back(of_group(scanned, common), offset, key, pair, context).y1

        first = scan_back(undo, *jax.lax.stop_gradient((last, xs, shared)))
        return relative_gap(y0, merge(first.y))

    y1, z1 = map(merge, last[:2])
    solution = group.counts(config.groups, len(tokens(y0)))
    solution = solution._replace(y1=y1, gap=jax.vmap(relative_gap)(y1, z1))
    merged: Any = jax.vmap(merge)(states) if kept else None
    return solution, Recovered(merged, error)


class _Group:
    """The steps of one group, on its local time."""

    def __init__(
        self, field: VectorField, settings: SolveSettings, length: float, dtype: Any, adapted: bool
    ):
        steps: Any = settings.steps
        self.steps, self._terms, self._settings = steps, len(field.terms), settings
        self._times = step_times(0.0, length, steps, dtype)
        self._xs = step_inputs(self._times)
        self._pair = make_steps(in_state_dtype(field), settings, scanned=steps > 1)

        # Merged below, where 'checkpoint' recomputes: no merged kernel outlives its group.
        self._merged = lora.merge_attached if adapted else lambda theta: theta

    def forth(self, theta, offset, key, pair, context) -> Solution:
        """The pair after the group, as the y1 of a Solution."""
        shared = FieldParams(self._merged(theta), offset, context), key
        pair, _ = scan_steps(self._pair.forth, pair, self._xs, shared, keep=_nothing)
        return self._solution(pair)

    def back(self, theta, offset, key, pair, context) -> Solution:
        """The pair before the group."""
        shared = FieldParams(self._merged(theta), offset, context), key
        return self._solution(scan_back(self._pair.back, pair, self._xs, shared))

    def pull(self, theta, offset, key, pairs, context) -> tuple[Pair, Pair, Any, Any]:
        """The pair before the group, and the cotangents of that pair, of theta and the context."""
        pair, g_pair = pairs
        theta, pull_merged = jax.vjp(self._merged, theta)
        shared = FieldParams(theta, offset, context), key
        pair, g_pair, _, (g_params, _) = scan_pull(
            self._pair.pull, pair, (g_pair, None), self._xs, shared, keep=_nothing
        )
        return pair, g_pair, *pull_merged(g_params.theta), g_params.context

    def counts(self, groups: int, batch: int) -> Solution:
        """A Solution with the counts of all groups, in the shapes that an `ODEStack` has."""
        axes = (groups, batch) if self._settings.per_sample else (groups,)
        return jax.tree.map(lambda n: jnp.broadcast_to(n, (*axes, *n.shape)), self._solution(None))

    def _solution(self, y1: Any) -> Solution:
        return count_fixed_steps(self._settings, self._terms, self._times)._replace(y1=y1)


def _nothing(pair: Pair) -> None:
    return None
