"""Random rectangles of pixels, and the pixels inside them."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

_ATTEMPTS = 10


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
    """Draws the size of a box until it fits, in ten attempts at most, then the box's place.

    The area is uniform, the ratio of the sides log-uniform in [1 / elongation, elongation], the
    place uniform.

    Args:
      key: a PRNG key.
      shape: height and width of the image, in pixels.
      areas: least and greatest area, as fractions of the image's.
      elongation: greatest ratio of the longer side to the shorter.
      largest: greatest height and width that fit, in pixels.

    Returns:
      The box, and whether it fits; where no attempt does, the box means nothing.
    """
    # All attempts at once: under vmap a loop would run as long as the slowest image's. And all in
    # one call, which costs a tenth of a second or more to compile.
    uniform = jax.random.uniform(key, (2 * _ATTEMPTS + 2,))
    uniform_area, uniform_ratio, place = jnp.split(uniform, (_ATTEMPTS, 2 * _ATTEMPTS))

    area = shape[0] * shape[1] * (areas[0] + (areas[1] - areas[0]) * uniform_area)
    ratio = jnp.exp(math.log(elongation) * (2 * uniform_ratio - 1))
    height = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
    width = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)

    # The argmax of bools is the first True, and 0 where there is none.
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
      box: it may cross the image's edges.
      shape: height and width of the image, in pixels.
    """
    y, x = jnp.arange(shape[0])[:, None, None], jnp.arange(shape[1])[None, :, None]

    rows = (y >= box.top) & (y < box.top + box.height)
    columns = (x >= box.left) & (x < box.left + box.width)
    return rows & columns
