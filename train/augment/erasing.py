"""Random erasing: a rectangle of noise over an image."""

import jax
import jax.numpy as jnp

from train.augment.boxes import draw_box, inside

_AREAS = (0.02, 1 / 3)
_ELONGATION = 1 / 0.3


def random_erasing(probability: float, key: jax.Array, image: jax.Array) -> jax.Array:
    """Replaces the pixels of a random box by normal noise, N(0, 1) each.

    The box's area is uniform in [0.02, 1/3] of the image's, the ratio of its sides log-uniform in
    [0.3, 1/0.3]; both are drawn up to ten times, until each side is shorter than the image's.

    Args:
      probability: that a box is erased.
      key: a PRNG key.
      image: [height, width, channels] float32, standardised.

    Returns:
      The image, of the same shape and dtype.

    Source: Zhong et al., 'Random Erasing Data Augmentation', 2017, arXiv 1708.04896; the noise of
    each pixel as in Wightman's timm.
    """
    coin_key, box_key, noise_key = jax.random.split(key, 3)
    height, width, _ = image.shape
    shape, largest = (height, width), (height - 1, width - 1)
    box, fits = draw_box(box_key, shape, _AREAS, _ELONGATION, largest)

    # Where no box fits, as in an image one pixel wide, nothing is erased.
    erased = inside(box, shape) & fits & jax.random.bernoulli(coin_key, probability)

    noise = jax.random.normal(noise_key, image.shape, image.dtype)
    return jnp.where(erased, noise, image)
