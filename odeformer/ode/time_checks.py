"""What `integrate` accepts as times: real numbers, in order; known before tracing, or traced."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from odeformer.ode.problem import Span, Times


def as_span(t0: Any, t1: Any, ts: Any = None) -> Span:
    """Returns the span of these times; raises ValueError for anything but real numbers."""
    return Span(as_time("t0", t0), as_time("t1", t1), None if ts is None else as_sequence(ts))


def in_order(span: Span, dtype: Any) -> Span:
    """Returns the span in that dtype; raises ValueError where its times are out of order."""
    t0, t1 = as_times(span.t0, dtype), as_times(span.t1, dtype)
    if span.ts is None:
        return Span(t0, t1, None)

    ts = as_times(span.ts, dtype)
    check_order(ts, t0, t1)
    return Span(t0, t1, ts)


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


def all_finite(*times: Times) -> jax.Array | bool:
    """Returns whether all times are finite: a bool where they are known before tracing."""
    known = [concrete(time) for time in times]
    if not any(time is None for time in known):
        return all(bool(np.isfinite(time).all()) for time in known if time is not None)

    finite = jnp.asarray(True)
    for time in times:
        finite &= jnp.isfinite(time).all()

    return finite


def check_order(ts: Times, t0: Times, t1: Times) -> None:
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


def known_times(ts: Any, times: Times) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ts and the times between the steps, as float64.

    Raises:
      ValueError: one of them is being traced, or the ts are no sequence.
    """
    wanted, grid = concrete(ts), concrete(times)
    if wanted is None or grid is None:
        raise ValueError(
            "under fixed steps ts, t0 and t1 are known before tracing (numpy arrays or floats)"
        )

    _check_sequence(wanted)
    return wanted, grid


def check_on_grid(wanted: np.ndarray, indices: np.ndarray, grid: np.ndarray) -> None:
    """Raises ValueError for ts that are not on the grid of the steps, or out of order.

    Args:
      wanted: the ts, float64 [n].
      indices: of the grid's time that is nearest to each, int [n].
      grid: the times between the steps, finite.
    """
    # Times that were rounded to float32 are still on the grid.
    spacing = abs(grid[-1] - grid[0]) / (len(grid) - 1)
    distances = np.abs(grid[indices] - wanted)
    if not np.all(distances <= 1e-5 * spacing + 1e-6 * np.abs(wanted)):
        raise ValueError(
            f"under fixed steps the ts lie on the grid of the steps, here {grid[0]:g} + n * "
            f"{spacing:g} up to {grid[-1]:g}; {wanted.tolist()} was given: take other ts, another "
            "number of steps, or adaptive steps (rtol=...), which interpolate"
        )

    if np.any(np.diff(indices) < 0):
        raise _disordered(wanted, grid[0], grid[-1])


def known_for_backsolve(
    t0: Times, t1: Times, ts: Times
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns t0, t1 and ts as float64; raises ValueError where one of them is being traced."""
    start, end, wanted = concrete(t0), concrete(t1), concrete(ts)
    if start is None or end is None or wanted is None:
        raise ValueError(
            "under adjoint 'backsolve' ts, t0 and t1 are known before tracing (numpy arrays or "
            "floats); take another adjoint, or leave ts out"
        )

    return start, end, wanted


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
