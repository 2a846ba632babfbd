"""The ends of an interval: of no length, not finite, or differentiated."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from odeformer.ode.problem import FAILED, Solution, State, Times
from odeformer.ode.time_checks import all_finite, concrete


class Interval(NamedTuple):
    """An interval that diffrax can solve over, and what its answer lacks.

    Attributes:
      t0: start, finite.
      t1: end, finite; diffrax takes no step where it equals t0, so neither has a gradient there.
      ts: times to save at, finite, or None.
      finite: whether all original times are; a bool where they are known before tracing.
      lengths: t1 - t0 and ts - t0 with their gradients where the interval is empty, else 0; None
        where all times are known before tracing.
    """

    t0: Times
    t1: Times
    ts: Times | None
    finite: jax.Array | bool
    lengths: tuple[jax.Array, jax.Array | None] | None


def interval(t0: Times, t1: Times, ts: Times | None) -> Interval:
    """Returns the interval from t0 to t1, as diffrax can solve over it.

    Args:
      t0: start, a scalar.
      t1: end, a scalar.
      ts: times to save at, [n], or None.

    Returns:
      An Interval; where a time is not finite, an empty one at 0.
    """
    all_times = [t0, t1, *([] if ts is None else [ts])]

    # Times that are known before tracing have no gradients, and need no amending in the program.
    if all(concrete(times) is not None for times in all_times):
        if finite := all_finite(*all_times):
            return Interval(t0, t1, ts, finite, None)

        zero = np.zeros((), t0.dtype)
        return Interval(zero, zero, None if ts is None else np.zeros_like(ts), finite, None)

    # diffrax is handed an empty interval at 0, and the answer is made NaN afterwards.
    finite = all_finite(*all_times)
    t0, t1 = jnp.where(finite, t0, 0), jnp.where(finite, t1, 0)
    ts = None if ts is None else jnp.where(finite, ts, 0)

    empty = t0 == t1
    lengths = (
        jnp.where(empty, t1 - t0, 0),
        None if ts is None else jnp.where(empty, ts - t0, 0),
    )

    # Where diffrax takes no step, the gradients of its times are 0, or 0 / 0 under vmap.
    t0, t1 = (jnp.where(empty, jax.lax.stop_gradient(t), t) for t in (t0, t1))
    return Interval(t0, t1, ts, finite, lengths)


def amend(solution: Solution, over: Interval, slope: State | None) -> Solution:
    """Returns diffrax's solution with what it lacks: NaN, and the gradients of an empty interval.

    On an empty interval y(t) = y0 + (t - t0) f(t0, y0), whose value is y0.

    Args:
      solution: of diffrax.
      over: the interval.
      slope: f(t0, y0); None to leave the gradients out.

    Returns:
      A Solution. Where a time is not finite its states are NaN, and the result is that of failure.
    """
    if over.finite is True:
        return solution

    y1, ys = solution.y1, solution.ys
    if over.lengths is not None and slope is not None:
        whole, parts = over.lengths

        # Zero where the interval is not empty: 0 times an infinite slope would be NaN.
        slope = jax.tree.map(lambda dy: jnp.where(over.t0 == over.t1, dy, 0), slope)
        y1 = jax.tree.map(lambda y, dy: y + whole * dy, y1, slope)
        if parts is not None:
            ys = jax.tree.map(
                lambda y, dy: y + jax.vmap(jnp.multiply, (0, None))(parts, dy), ys, slope
            )

    # A product, so that the gradients are NaN too, and not 0.
    factor = jnp.where(over.finite, 1.0, jnp.nan)
    y1, ys = jax.tree.map(lambda y: y * factor.astype(y.dtype), (y1, ys))
    result = jnp.where(over.finite, solution.result, FAILED).astype(jnp.int32)
    return solution._replace(y1=y1, ys=ys, result=result)
