"""Mixup and cutmix: images and labels mixed in pairs."""

import jax
import jax.numpy as jnp
import optax

from train.augment.boxes import Box, inside
from train.config.data import AugmentConfig


def mix(
    config: AugmentConfig,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    classes: int,
    smoothing: float,
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image of a batch with one other, and their labels in the same proportion.

        image_i <- w * image_i + (1 - w) * image_j,   target_i <- mean(w) * target_i + ...

    The partner j of i is its mirror image in the batch. The whole batch shares the weight w: in
    mixup it is the same for all pixels, drawn from Beta(alpha, alpha); in cutmix it is 0 inside a
    box and 1 outside, and the box's fraction of the area, before the image's edges cut it, is
    drawn so. Where both alphas are positive, a coin chooses. Where neither is, images are
    not changed.

    Args:
      config: the alphas: mixup, cutmix.
      key: a PRNG key.
      images: [B, height, width, channels] float32.
      labels: [B] int, from 0 to classes - 1.
      classes: number of classes, C.
      smoothing: fraction of each label that is distributed evenly over the classes, in [0, 1).

    Returns:
      The images, of the same shape and dtype; and the targets, [B, C] float32, each a distribution.

    Source: Zhang et al., 'mixup', 2017, arXiv 1710.09412; Yun et al., 'CutMix', 2019,
    arXiv 1905.04899; the pairing as in Wightman's timm.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, classes), smoothing)
    if not (config.mixup or config.cutmix):
        return images, targets

    _, height, width, _ = images.shape
    weight, mean = _draw_weight(config, key, (height, width))
    return _blend(weight, images), _blend(mean, targets)


def _draw_weight(
    config: AugmentConfig, key: jax.Array, shape: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """The weight of each pixel's own image, [height, width, 1], and its mean, a scalar."""
    coin_key, beta_key, box_key = jax.random.split(key, 3)
    probability = 0.5 if config.mixup and config.cutmix else float(config.cutmix > 0)
    is_cutmix = jax.random.bernoulli(coin_key, probability)

    alpha = jnp.where(is_cutmix, config.cutmix, config.mixup)
    kept = jax.random.beta(beta_key, alpha, alpha)

    outside = 1 - inside(_draw_cut(box_key, 1 - kept, shape), shape).astype(jnp.float32)
    # The mean over pixels, not the fraction that was drawn: the image's edges may cut the box.
    # Zeros and ones are added exactly; the sum of `kept` over all pixels would be off by 1e-5
    # where XLA adds one pixel after the other.
    mean = jnp.where(is_cutmix, outside.mean(), kept)
    return jnp.where(is_cutmix, outside, kept), mean


def _draw_cut(key: jax.Array, area: jax.Array, shape: tuple[int, int]) -> Box:
    """A box of the image's shape and that fraction of its area, centred on any of its pixels."""
    extents = jnp.array(shape)

    # Half extents are cut to whole pixels, and the box may cross the edges, as in the program of
    # the paper. (timm 1.0.31 keeps the last pixel of a side of odd length.)
    reach = (extents.astype(float) * jnp.sqrt(area)).astype(jnp.int32) // 2
    centre = jax.random.randint(key, (2,), 0, extents)
    return Box(*(centre - reach), *(2 * reach))


def _blend(weight: jax.Array, batch: jax.Array) -> jax.Array:
    weight = jnp.expand_dims(weight, range(batch.ndim - weight.ndim))
    return weight * batch + (1 - weight) * batch[::-1]
