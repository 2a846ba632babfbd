"""Learned positions, resampled from one grid of patches to another.

A table [1, n + rows columns, D] begins with the positions of n tokens that are not on the grid
(class, distillation, registers); these are kept as they are.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from odeformer.interop.checks import check_grid

Grid = tuple[int, int]  # rows, columns
Rule = Callable[[np.ndarray, Grid], np.ndarray]  # (places [rows, columns, D], grid) -> places


def antialiased(places: np.ndarray, grid: Grid) -> np.ndarray:
    """Resamples as Pillow does: bicubic (a = -1/2), over as many places as one new place covers.

    Source: Keys, 'Cubic convolution interpolation for digital image processing', 1981.
    """
    shape = (*grid, places.shape[-1])
    return np.asarray(jax.image.resize(jnp.asarray(places), shape, "bicubic", antialias=True))


def plain(places: np.ndarray, grid: Grid) -> np.ndarray:
    """Resamples as the library transformers does: bicubic (a = -3/4), over four places per axis.

    That is torch's `interpolate(..., mode="bicubic", align_corners=False)`: the border is repeated
    beyond the grid, and nothing is smoothed first for a smaller grid.
    """
    rows, columns = (_plain_weights(old, new) for old, new in zip(places.shape, grid, strict=False))
    resampled = np.einsum("ai,bj,ijd->abd", rows, columns, places, optimize=True)
    return resampled.astype(places.dtype)


def _plain_weights(old: int, new: int) -> np.ndarray:
    """The weight of each old place in each new one, [new, old]."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        place = np.floor(centre) + offset
        inside = np.clip(place, 0, old - 1).astype(int)
        np.add.at(weights, (np.arange(new), inside), _cubic(np.abs(centre - place), -0.75))

    return weights


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel at distances x."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, far)


def resample_positions(
    table: jax.Array | np.ndarray, old: Grid, new: Grid, rule: Rule = antialiased
) -> np.ndarray:
    """Resamples learned positions to another grid of patches; the same grid changes no bit.

    Args:
      table: positions on the old grid, [1, n + rows columns, D]; the first n are kept.
      old: rows and columns of the old grid.
      new: rows and columns of the new grid.
      rule: `antialiased` of `odeformer.interop.positions`, as Pillow does it, or `plain`, as the
        library transformers does it.

    Returns:
      A table [1, n + new rows new columns, D].

    Raises:
      ValueError: a table with fewer positions than the grid.
    """
    array = np.asarray(table)
    before = array.shape[1] - math.prod(old)
    check_grid(array.shape[1], old)
    if old == new:
        return array

    width, dtype = array.shape[-1], np.promote_types(array.dtype, np.float32)
    places = array[0, before:].reshape(*old, width).astype(dtype)
    resampled = rule(places, new).reshape(1, -1, width).astype(array.dtype)
    return np.concatenate([array[:, :before], resampled], axis=1)
