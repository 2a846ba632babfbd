"""Learned positions of one grid of patches, carried over to another.

A table [1, n + rows columns, D] begins with the n places of tokens that have none in the grid
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

    That is torch's `interpolate(..., mode="bicubic", align_corners=False)`: beyond the border stand
    copies of it, and a smaller grid is not smoothed first.
    """
    rows, columns = (_plain_weights(old, new) for old, new in zip(places.shape, grid, strict=False))
    resampled = np.einsum("ai,bj,ijd->abd", rows, columns, places, optimize=True)
    return resampled.astype(places.dtype)


def _plain_weights(old: int, new: int) -> np.ndarray:
    """What each of the new places takes of each old one, [new, old]."""
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
    """Carries learned positions over to another grid of patches.

    The same grid gives the same table, bit for bit.

    Args:
      table: [1, n + rows columns, D], of the old grid; the first n places are kept.
      old: rows and columns of its grid.
      new: rows and columns to resample it to.
      rule: of `odeformer.interop.positions`: `antialiased` as Pillow does, or `plain` as the
        library transformers does.

    Returns:
      A table [1, n + new rows columns, D].

    Raises:
      ValueError: a table that has fewer places than the grid.
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
