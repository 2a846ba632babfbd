"""RandAugment: operations drawn at random, of about one magnitude."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from train.augment.operations import NAMES, operate
from train.config.data import AugmentConfig
from train.errors import BadInput

# As in Wightman's timm: the probability that an operation is applied, the deviation of its
# magnitude (mstd0.5) and the magnitude at which a change is strongest.
_PROBABILITY = 0.5
_MAGNITUDE_DEVIATION = 0.5
_LARGEST_MAGNITUDE = 10.0


class Operations(NamedTuple):
    """Operations to apply one after the other.

    Attributes:
      index: of each name in NAMES, int32 [ops].
      strength: argument of each, as in `operate`, float32 [ops].
      applied: whether each is applied, bool [ops].
    """

    index: jax.Array
    strength: jax.Array
    applied: jax.Array


def rand_augment(
    config: AugmentConfig,
    key: jax.Array,
    image: jax.Array,
    fill: jax.typing.ArrayLike | Sequence[float],
) -> jax.Array:
    """Applies `randaugment_ops` operations to an image, one after the other.

    Each is drawn from all of them and applied with probability 1/2; its magnitude is normal around
    `randaugment_magnitude` with deviation 1/2, clipped to [0, 10], and its direction is a coin's.
    These are the 'increasing' operations of Wightman's timm, rand-m9-mstd0.5-inc1, except that
    warps interpolate bilinearly, those of the DeiT recipe bicubically.

    Args:
      config: randaugment_ops, randaugment_magnitude.
      key: a PRNG key.
      image: [height, width, channels] float32 in [0, 1], of 1 channel or 3; it is rounded to whole
        255ths first.
      fill: colour of the pixels that a warp brings in, [channels] in [0, 1].

    Returns:
      The image, of the same shape and dtype, in whole 255ths.

    Raises:
      BadInput: an image has neither 1 channel nor 3.

    Source: Cubuk et al., 'RandAugment', 2020, arXiv 1909.13719; Touvron et al., 'Training
    data-efficient image transformers', 2021, arXiv 2012.12877.
    """
    _check_channels(image.shape[-1])
    colour = jnp.round(255 * jnp.asarray(fill, image.dtype))
    pixels = jnp.round(255 * image)

    # No branch: under vmap both sides of one would be computed for every image.
    for index, strength, applied in zip(*draw_operations(config, key), strict=True):
        pixels = jnp.where(applied, operate(index, strength, pixels, colour), pixels)

    return pixels / 255


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise BadInput(
            "config.data.augment.randaugment_ops takes images of 1 channel or 3; these have "
            f"{channels}: set it to 0"
        )


def draw_operations(config: AugmentConfig, key: jax.Array) -> Operations:
    """Draws the operations of one image.

    Args:
      config: randaugment_ops, randaugment_magnitude.
      key: a PRNG key.

    Returns:
      As many operations, of about that magnitude.
    """
    uniform_key, noise_key = jax.random.split(key)
    shape = (config.randaugment_ops,)

    # In one call, as in boxes.py: each call costs a tenth of a second or more to compile.
    choice, chance, direction = jax.random.uniform(uniform_key, (3, *shape))

    noise = _MAGNITUDE_DEVIATION * jax.random.normal(noise_key, shape)
    level = jnp.clip((config.randaugment_magnitude + noise) / _LARGEST_MAGNITUDE, 0, 1)

    index = jnp.floor(choice * len(NAMES)).astype(jnp.int32)
    strength = jax.vmap(strength_of)(index, level, jnp.where(direction < 0.5, -1.0, 1.0))

    return Operations(index, strength, chance < _PROBABILITY)


def strength_of(index: jax.Array, level: jax.Array, sign: jax.Array) -> jax.Array:
    """Returns the strength of an operation at a level.

    Args:
      index: of the operation's name in NAMES, int32 scalar.
      level: in [0, 1], float32 scalar: from the weakest change to the strongest.
      sign: 1 or -1, float32 scalar: the direction, for operations that have two.

    Returns:
      Its argument, as `operate` takes it; float32 scalar.
    """
    return jax.lax.switch(index, [_STRENGTHS[name] for name in NAMES], level, sign)


# All of one signature, as the branches of `lax.switch` must be.
def _slope(level: jax.Array, sign: jax.Array) -> jax.Array:
    return 0.3 * sign * level


def _fraction(level: jax.Array, sign: jax.Array) -> jax.Array:
    return 0.45 * sign * level


def _degrees(level: jax.Array, sign: jax.Array) -> jax.Array:
    return 30 * sign * level


# Away from 1, which changes nothing: the 'increasing' operations start there, at level 0.
def _factor(level: jax.Array, sign: jax.Array) -> jax.Array:
    return 1 + 0.9 * sign * level


def _bits(level: jax.Array, sign: jax.Array) -> jax.Array:
    return 4 - jnp.floor(4 * level)


def _threshold(level: jax.Array, sign: jax.Array) -> jax.Array:
    return 256 - jnp.floor(256 * level)


def _summand(level: jax.Array, sign: jax.Array) -> jax.Array:
    return jnp.floor(110 * level)


def _unused(level: jax.Array, sign: jax.Array) -> jax.Array:
    return level


_STRENGTHS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "ShearX": _slope,
    "ShearY": _slope,
    "TranslateX": _fraction,
    "TranslateY": _fraction,
    "Rotate": _degrees,
    "Color": _factor,
    "Contrast": _factor,
    "Brightness": _factor,
    "Sharpness": _factor,
    "AutoContrast": _unused,
    "Equalize": _unused,
    "Invert": _unused,
    "Posterize": _bits,
    "Solarize": _threshold,
    "SolarizeAdd": _summand,
}
