"""Random changes of an image's geometry: affine maps, crops, flips; interpolation is bilinear.

Each takes one image [height, width, channels] float32 and returns one of the same shape.
"""

import jax
import jax.numpy as jnp

from train.augment.boxes import Box, draw_box
from train.config.data import AugmentConfig

_CROP_ELONGATION = 4 / 3


def sample(image: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """Interpolates an image bilinearly; outside of it, its border pixels are repeated.

    Args:
      image: [height, width, channels] float32.
      y: rows to sample at, in pixels, 0 being the centre of the first; any shape.
      x: columns to sample at, in pixels; broadcast against y.

    Returns:
      The shape of y and x, then [channels]; float32.
    """
    height, width, _ = image.shape
    y0, x0 = jnp.floor(y), jnp.floor(x)

    def pixel(row: jax.Array, column: jax.Array) -> jax.Array:
        row = jnp.clip(row, 0, height - 1).astype(jnp.int32)
        column = jnp.clip(column, 0, width - 1).astype(jnp.int32)
        # Clipped here already, so that the gather need not check the indices again.
        return image.at[row, column].get(mode="promise_in_bounds")

    dy, dx = (y - y0)[..., None], (x - x0)[..., None]

    def along_row(row: jax.Array) -> jax.Array:
        left, right = pixel(row, x0), pixel(row, x0 + 1)
        return left + dx * (right - left)

    above, below = along_row(y0), along_row(y0 + 1)
    return above + dy * (below - above)


def affine(config: AugmentConfig, key: jax.Array, image: jax.Array) -> jax.Array:
    """Shifts, rotates and scales an image about its centre; pixels that enter are 0.

    Args:
      config: the bounds: shift_px, rotate_degrees, zoom.
      key: a PRNG key.
      image: [height, width, channels] float32.

    Returns:
      The image, of the same shape and dtype.
    """
    shift_y, shift_x, turn, zoom = jax.random.uniform(key, (4,), minval=-1.0)
    angle = turn * jnp.deg2rad(config.rotate_degrees)
    scale = 1 + zoom * config.zoom

    height, width, _ = image.shape
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    y = jnp.arange(height, dtype=float)[:, None] - centre_y
    x = jnp.arange(width, dtype=float)[None] - centre_x

    # The inverse map, as each pixel of the result asks where in the image it comes from.
    cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
    source_y = cos * y - sin * x + centre_y + shift_y * config.shift_px
    source_x = sin * y + cos * x + centre_x + shift_x * config.shift_px

    # `sample` repeats the border pixels: in a frame of zeros these are 0.
    framed = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    return sample(framed, source_y + 1, source_x + 1)


def padded_crop(padding_px: int, key: jax.Array, image: jax.Array) -> jax.Array:
    """Cuts a random window of the image's size out of the image in a frame of zeros.

    Args:
      padding_px: width of the frame.
      key: a PRNG key.
      image: [height, width, channels] float32.

    Returns:
      The image, of the same shape and dtype.

    Source: He et al., 'Deep Residual Learning for Image Recognition', 2015, arXiv 1512.03385.
    """
    padded = jnp.pad(image, ((padding_px, padding_px), (padding_px, padding_px), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * padding_px + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def resized_crop(min_area: float, key: jax.Array, image: jax.Array) -> jax.Array:
    """Cuts out a random part of an image and enlarges it to the image's size.

    The part's area is uniform in [min_area, 1] of the image's, the ratio of its sides log-uniform
    in [3/4, 4/3]. Where ten attempts do not fit, the largest central part of such a ratio is taken.

    Args:
      min_area: least area of the part, as a fraction of the image's.
      key: a PRNG key.
      image: [height, width, channels] float32.

    Returns:
      The image, of the same shape and dtype.

    Source: Szegedy et al., 'Going Deeper with Convolutions', 2014, arXiv 1409.4842.
    """
    height, width, _ = image.shape
    shape = height, width
    drawn, fits = draw_box(key, shape, (min_area, 1.0), _CROP_ELONGATION, largest=shape)

    tallest = min(height, round(width * _CROP_ELONGATION))
    widest = min(width, round(height * _CROP_ELONGATION))
    central = ((height - tallest) // 2, (width - widest) // 2, tallest, widest)
    box = Box(*(jnp.where(fits, *both) for both in zip(drawn, central, strict=True)))

    # Clipped to the part: no pixel outside of it is blended in, as if it had been cut out first.
    top, left, tall, wide = (side.astype(float) for side in box)
    y, x = jnp.arange(height, dtype=float) + 0.5, jnp.arange(width, dtype=float) + 0.5
    y = jnp.clip(y * (tall / height) - 0.5, 0, tall - 1)
    x = jnp.clip(x * (wide / width) - 0.5, 0, wide - 1)
    return sample(image, (top + y)[:, None], (left + x)[None])


def flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors an image, left to right, with probability 1/2.

    Args:
      key: a PRNG key.
      image: [height, width, channels] float32.

    Returns:
      The image, of the same shape and dtype.
    """
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)
