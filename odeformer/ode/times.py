"""The times of fixed steps, and those among them at which states are returned."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from odeformer.ode.problem import State, Times
from odeformer.ode.time_checks import check_on_grid, concrete, known_times


def step_times(t0: Any, t1: Any, steps: int, dtype: Any) -> Times:
    """Returns the times before, between and after equal steps, t_n = t0 + (t1 - t0) n / steps.

    Args:
      t0: start of the first step.
      t1: end of the last one.
      steps: number of steps.
      dtype: of the times.

    Returns:
      [steps + 1] of that dtype, a NumPy array, or a traced one where t0 or t1 is being traced. If
      an end is not finite in that dtype, all times are NaN.
    """
    ends = concrete([t0, t1])

    # In float64, so that each time is rounded once.
    if ends is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            times = (ends[0] + (ends[1] - ends[0]) * np.arange(steps + 1) / steps).astype(dtype)
        return times if np.isfinite(times).all() else np.full_like(times, np.nan)

    start, end = jnp.asarray(t0, dtype), jnp.asarray(t1, dtype)
    return start + (end - start) * (jnp.arange(steps + 1, dtype=dtype) / steps)


def step_indices(ts: Any, times: Times) -> np.ndarray:
    """Returns the indices of the ts among the times between the steps.

    Args:
      ts: times, in order from t0 to t1.
      times: of `step_times`, [steps + 1].

    Returns:
      int [len(ts)].

    Raises:
      ValueError: a ts that is not among the times, or is out of order, or is being traced.
    """
    wanted, grid = known_times(ts, times)

    # All states are then NaN, so any index will do.
    if not np.isfinite(grid).all():
        return np.full(len(wanted), len(grid) - 1)

    indices = np.abs(grid[None, :] - wanted[:, None]).argmin(axis=1)
    check_on_grid(wanted, indices, grid)
    return indices


def states_at(y0: State, saved: Any, indices: np.ndarray | None) -> State | None:
    """Returns the states at these indices of the times, of y0 and those saved after each step."""
    if indices is None:
        return None

    return jax.tree.map(lambda y0, ys: jnp.concatenate([y0[None], ys])[indices], y0, saved)
