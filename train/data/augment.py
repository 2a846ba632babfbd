"""Augmentation on the device, inside the train step."""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from train.config import AugmentConfig


def random_affine(config: AugmentConfig, keys: jax.Array, images: jax.Array) -> jax.Array:
    """Shifts, rotates and scales each image at random, bilinearly; what enters is 0.

    Args:
      config: the bounds.
      keys: one PRNG key an image, [B].
      images: [B, height, width, channels] float32.

    Returns:
      The images, of the same shape and dtype.
    """
    if not (config.shift_px or config.rotate_degrees or config.zoom):
        return images
    return jax.vmap(lambda key, image: _affine(config, key, image))(keys, images)


def _affine(config: AugmentConfig, key: jax.Array, image: jax.Array) -> jax.Array:
    height, width, channels = image.shape
    shift_y, shift_x, turn, zoom = jax.random.uniform(key, (4,), minval=-1.0)
    angle = turn * jnp.deg2rad(config.rotate_degrees)
    scale = 1 + zoom * config.zoom
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(height) - centre_y, jnp.arange(width) - centre_x, indexing="ij")
    cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
    source_y = cos * y - sin * x + centre_y + shift_y * config.shift_px
    source_x = sin * y + cos * x + centre_x + shift_x * config.shift_px
    planes = [
        map_coordinates(image[..., c], [source_y, source_x], order=1) for c in range(channels)
    ]
    return jnp.stack(planes, axis=-1)
