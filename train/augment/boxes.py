"""Rectangles of pixels: drawing one, and the pixels inside it."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

_TRIES = 10


class Box(NamedTuple):
    """A rectangle of pixels, [top, top + height) x [left, left + width); int32 scalars."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


def draw_box(
    key: jax.Array,
    shape: tuple[int, int],
    areas: tuple[float, float],
    elongation: float,
    largest: tuple[int, int],
) -> tuple[Box, jax.Array]:
    """Draws the size of a box until it fits, ten times at most, then the box's place.

    The area is uniform, the ratio of the sides log-uniform in [1 / elongation, elongation], the
    place uniform.

    Args:
      key: a PRNG key.
      shape: height and width of the image, in pixels.
      areas: least and greatest area, as fractions of the image's.
      elongation: greatest ratio of the longer side to the shorter.
      largest: greatest height and width that fit, in pixels.

    Returns:
      The box, and whether it fits; where no draw did, the box means nothing.
    """
    # All in one call: a call costs a tenth of a second or more to compile.
    draws = jax.random.uniform(key, (2 * _TRIES + 2,))
    area_draws, ratio_draws, place = jnp.split(draws, (_TRIES, 2 * _TRIES))
    area = shape[0] * shape[1] * (areas[0] + (areas[1] - areas[0]) * area_draws)
    ratio = jnp.exp(math.log(elongation) * (2 * ratio_draws - 1))
    height = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
    width = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
    fits = (height >= 1) & (height <= largest[0]) & (width >= 1) & (width <= largest[1])
    first = fits.argmax()
    height, width = height[first], width[first]
    rows, columns = shape[0] - height + 1, shape[1] - width + 1
    top = jnp.floor(place[0] * rows.astype(float)).astype(jnp.int32)
    left = jnp.floor(place[1] * columns.astype(float)).astype(jnp.int32)
    return Box(top, left, height, width), fits.any()


def inside(box: Box, shape: tuple[int, int]) -> jax.Array:
    """Returns bool [height, width, 1], True for the pixels inside the box.

    Args:
      box: may reach over the image's edges.
      shape: height and width of the image, in pixels.
    """
    y, x = jnp.arange(shape[0])[:, None, None], jnp.arange(shape[1])[None, :, None]
    rows = (y >= box.top) & (y < box.top + box.height)
    columns = (x >= box.left) & (x < box.left + box.width)
    return rows & columns
