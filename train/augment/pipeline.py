"""The augmentation of training images, from their pixels to the model's input."""

from collections.abc import Callable, Sequence
from functools import partial

import jax

from train.augment.erasing import random_erasing
from train.augment.geometry import affine, flip, padded_crop, resized_crop
from train.augment.randaugment import rand_augment
from train.config.data import AugmentConfig

# (key, image) -> image
Change = Callable[[jax.Array, jax.Array], jax.Array]


def augment(
    config: AugmentConfig,
    keys: jax.Array,
    images: jax.Array,
    standardise: Callable[[jax.Array], jax.Array],
    fill: jax.typing.ArrayLike | Sequence[float],
) -> jax.Array:
    """Changes each image at random and standardises it.

    The changes come in this order: affine map, padded crop, resized crop, flip, RandAugment,
    standardise, erasing. Those that the config leaves out are not in the program. The randomness of
    the others depends neither on them nor on the other images.

    Args:
      config: what to do, and how strongly.
      keys: one PRNG key per image, [B].
      images: [B, height, width, channels] float32 in [0, 1].
      standardise: images in [0, 1] -> about mean 0 and standard deviation 1, of the same shape.
      fill: colour of the pixels that RandAugment's warps bring in, [channels] in [0, 1].

    Returns:
      The standardised images, of the same shape and dtype.

    Raises:
      BadInput: RandAugment of images that have neither 1 channel nor 3.
    """

    # Each stage keeps its number, so that one which is left out does not change the keys of the
    # others.
    def change(stage: int, function: Change, images: jax.Array) -> jax.Array:
        stage_keys = jax.vmap(lambda key: jax.random.fold_in(key, stage))(keys)
        return jax.vmap(function)(stage_keys, images)

    if config.shift_px or config.rotate_degrees or config.zoom:
        images = change(0, partial(affine, config), images)
    if config.crop_padding_px:
        images = change(1, partial(padded_crop, config.crop_padding_px), images)
    if config.crop_min_area:
        images = change(2, partial(resized_crop, config.crop_min_area), images)
    if config.flip:
        images = change(3, flip, images)
    if config.randaugment_ops:
        images = change(4, partial(rand_augment, config, fill=fill), images)

    # Erasing fills with normal noise of deviation 1, that of standardised pixels.
    images = standardise(images)
    if config.erasing:
        images = change(5, partial(random_erasing, config.erasing), images)

    return images
