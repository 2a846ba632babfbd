"""The times between fixed steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def make_grid(t0: Any, t1: Any, steps: int, dtype: Any) -> jax.Array:
    """Returns the times between the steps, [steps + 1] of that dtype, each rounded once."""
    if isinstance(t0, jax.Array) or isinstance(t1, jax.Array):
        t0, t1 = jnp.asarray(t0, dtype), jnp.asarray(t1, dtype)
        return t0 + (t1 - t0) * (jnp.arange(steps + 1, dtype=dtype) / steps)
    return jnp.asarray(float(t0) + (float(t1) - float(t0)) * np.arange(steps + 1) / steps, dtype)


def grid_indices(ts: Any, grid: jax.Array) -> np.ndarray:
    """Returns which of the grid's times the ts are, int [len(ts)].

    Raises:
      ValueError: a time that is not on the grid, or times that are being traced.
    """
    try:
        with jax.ensure_compile_time_eval():
            wanted, times = np.asarray(ts, np.float64), np.asarray(grid, np.float64)
    except jax.errors.TracerArrayConversionError as error:
        raise ValueError(
            "under fixed steps ts, t0 and t1 are known before tracing (numpy arrays or floats)"
        ) from error
    distances = np.abs(times[None, :] - wanted[:, None])
    spacing = abs(times[-1] - times[0]) / (len(times) - 1)
    if np.any(distances.min(axis=1) > 1e-5 * spacing + 1e-6 * np.abs(wanted)):
        raise ValueError(
            f"under fixed steps the ts lie on the grid of the steps, here {times[0]:g} + n * "
            f"{spacing:g} up to {times[-1]:g}; {wanted.tolist()} was given: take other ts, another "
            "number of steps, or adaptive steps (rtol=...), which interpolate"
        )
    return distances.argmin(axis=1)
