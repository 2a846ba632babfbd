"""Times: those between fixed steps, and those at which states are returned."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Times = np.ndarray | jax.Array


class Span(NamedTuple):
    """The interval over which a field is solved, and the times at which states are returned.

    Attributes:
      t0: start, a scalar: float64 of NumPy, or a traced array.
      t1: end, a scalar as t0.
      ts: times at which states are returned, [n]; None if none are.
    """

    t0: Times
    t1: Times
    ts: Times | None

    def in_order(self, dtype: Any) -> "Span":
        """Returns the span in that dtype; raises ValueError where its times are out of order."""
        t0, t1 = as_times(self.t0, dtype), as_times(self.t1, dtype)
        if self.ts is None:
            return Span(t0, t1, None)

        ts = as_times(self.ts, dtype)
        check_times(ts, t0, t1)
        return Span(t0, t1, ts)


def as_span(t0: Any, t1: Any, ts: Any = None) -> Span:
    """Returns the span of these times; raises ValueError for anything but real numbers."""
    return Span(as_time("t0", t0), as_time("t1", t1), None if ts is None else as_sequence(ts))


def step_times(t0: Any, t1: Any, steps: int, dtype: Any) -> Times:
    """Returns the times between equal steps, t_n = t0 + (t1 - t0) n / steps.

    Args:
      t0: start of the first step.
      t1: end of the last one.
      steps: number of steps.
      dtype: of the times.

    Returns:
      [steps + 1] of that dtype: a NumPy array, or, where t0 or t1 is being traced, a traced one.
      Where an end is not finite in that dtype, all are NaN.
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
    wanted, grid = concrete(ts), concrete(times)
    if wanted is None or grid is None:
        raise ValueError(
            "under fixed steps ts, t0 and t1 are known before tracing (numpy arrays or floats)"
        )

    _check_sequence(wanted)

    # All states are NaN then, so that any index will do.
    if not np.isfinite(grid).all():
        return np.full(len(wanted), len(grid) - 1)

    # Times that were rounded to float32 are still on the grid.
    distances = np.abs(grid[None, :] - wanted[:, None])
    spacing = abs(grid[-1] - grid[0]) / (len(grid) - 1)
    if not np.all(distances.min(axis=1) <= 1e-5 * spacing + 1e-6 * np.abs(wanted)):
        raise ValueError(
            f"under fixed steps the ts lie on the grid of the steps, here {grid[0]:g} + n * "
            f"{spacing:g} up to {grid[-1]:g}; {wanted.tolist()} was given: take other ts, another "
            "number of steps, or adaptive steps (rtol=...), which interpolate"
        )

    indices = distances.argmin(axis=1)
    if np.any(np.diff(indices) < 0):
        raise _disordered(wanted, grid[0], grid[-1])
    return indices


def check_times(ts: Times, t0: Times, t1: Times) -> None:
    """Raises ValueError where ts is not a sequence of times in order from t0 to t1."""
    _check_sequence(ts)

    # Traced times are left to diffrax, which checks them while the program runs.
    wanted, ends = concrete(ts), concrete([t0, t1])
    if wanted is None or ends is None or not np.isfinite(ends).all():
        return

    forwards = 1 if ends[1] >= ends[0] else -1
    passed = forwards * np.concatenate([ends[:1], wanted, ends[1:]])
    if not np.all(np.diff(passed) >= 0):
        raise _disordered(wanted, *ends)


def as_time(name: str, time: Any) -> Times:
    """Returns one time: float64 of NumPy, or the traced array where it is being traced.

    Raises:
      ValueError: anything but one real number.
    """
    array = _as_array(name, time)
    if array.ndim:
        raise ValueError(
            f"{name} is one time; an array of shape {list(array.shape)} was given: take jax.vmap "
            "for several intervals"
        )
    return array


def as_sequence(ts: Any) -> Times:
    """Returns a sequence of times: float64 of NumPy, or the traced array.

    Raises:
      ValueError: anything but a sequence of real numbers.
    """
    array = _as_array("ts", ts)
    _check_sequence(array)
    return array


def _as_array(name: str, times: Any) -> Times:
    refusal = ValueError(
        f"{name} takes real numbers, Python's or those of an array; {times!r} was given: convert it"
    )
    try:
        array = np.asarray(times)
    except jax.errors.TracerArrayConversionError:
        array = jnp.asarray(times)
    # A ragged list, for example.
    except (TypeError, ValueError) as error:
        raise refusal from error

    is_real = jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.floating)
    if not is_real:
        raise refusal

    return array.astype(np.float64) if isinstance(array, np.ndarray) else array


def as_times(times: Any, dtype: Any) -> Times:
    """Returns times of that dtype: a numpy array, or a traced one where they are being traced."""
    values = concrete(times)
    with np.errstate(over="ignore"):
        return jnp.asarray(times, dtype) if values is None else values.astype(dtype)


def concrete(times: Any) -> np.ndarray | None:
    """Returns times as float64, or None where one of them is being traced."""
    try:
        return np.asarray(times, np.float64)
    except jax.errors.TracerArrayConversionError:
        return None


def _check_sequence(ts: Times) -> None:
    if ts.ndim != 1:
        raise ValueError(
            f"ts is a sequence of times; an array of shape {list(ts.shape)} was given: put a "
            "single time in a list"
        )


def _disordered(ts: np.ndarray, t0: float, t1: float) -> ValueError:
    return ValueError(
        f"the ts lie between t0={t0:g} and t1={t1:g}, in order from t0 to t1; {ts.tolist()} was "
        "given: sort them, or move the ends"
    )
