"""Mixup and cutmix: each target is exactly what its image is made of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.augment.mixing import mix
from train.config.data import AugmentConfig

BATCH, HEIGHT, WIDTH, DRAWS = 3, 24, 32, 500
# Image i is 1 in channel i: a mixed pixel's channels are the weights of the images in it.
IMAGES = jnp.broadcast_to(jnp.eye(BATCH)[:, None, None], (BATCH, HEIGHT, WIDTH, BATCH))
LABELS = jnp.arange(BATCH)
SMOOTHING = (0.0, 0.2)
CONFIGS = [(0.6, 1.0), (0.6, 0.0), (0.0, 1.0)]


@functools.cache
def draw(mixup, cutmix):
    """Many draws: images, and targets with each smoothing, in float64 lest the mean rounds."""
    config = AugmentConfig(mixup=mixup, cutmix=cutmix)
    mix_once = lambda key, smoothing: mix(config, key, IMAGES, LABELS, BATCH, smoothing)
    smoothed = jax.vmap(mix_once, (None, 0), out_axes=(None, 0))
    keys = jax.random.split(jax.random.key(0), DRAWS)
    images, targets = jax.jit(jax.vmap(smoothed, (0, None)))(keys, jnp.array(SMOOTHING))
    return np.asarray(images, np.float64), np.asarray(targets, np.float64)


@pytest.mark.parametrize(("mixup", "cutmix"), CONFIGS)
def test_targets_are_shares_of_the_pixels(mixup, cutmix):
    images, targets = draw(mixup, cutmix)
    plain, smoothed = targets[:, 0], targets[:, 1]
    np.testing.assert_allclose(plain, images.mean(axis=(2, 3)), atol=1e-6)
    np.testing.assert_allclose(smoothed, 0.8 * plain + 0.2 / BATCH, atol=1e-6)
    np.testing.assert_allclose(targets.sum(axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize(("mixup", "cutmix"), CONFIGS)
def test_partners_and_weights(mixup, cutmix):
    """Each with its mirror image in the batch, the middle of an odd one with itself."""
    images, targets = draw(mixup, cutmix)
    assert not targets[:, 0][:, [0, 1, 1, 2], [1, 0, 2, 1]].any()
    np.testing.assert_allclose(images[:, 1, ..., 1], 1, atol=1e-6)
    weights = images[:, 0, ..., 0]
    np.testing.assert_array_equal(images[:, 2, ..., 2], weights)  # one draw for the batch
    cut = ((weights == 0) | (weights == 1)).all(axis=(1, 2))
    assert np.ptp(weights[~cut], axis=(1, 2)).max(initial=0) == 0
    if mixup and cutmix:
        assert abs(cut.mean() - 0.5) < 0.07
    else:
        assert cut.mean() == (cutmix > 0)


@pytest.mark.parametrize("cutmix", [0.0, 1.0])
def test_law_of_mixup(cutmix):
    """Beta(0.6, 0.6): mean 1/2, variance 1 / (4 (2 * 0.6 + 1))."""
    weights = draw(0.6, cutmix)[0][:, 0, ..., 0]
    weights = weights[((weights > 0) & (weights < 1)).all(axis=(1, 2)), 0, 0]
    assert abs(weights.mean() - 0.5) < 0.07
    assert abs(weights.var() - 1 / 8.8) < 0.02


def paper_cut_areas(draws):
    """Areas of the boxes of the paper's program at alpha = 1, as fractions of the image's."""
    rng = np.random.default_rng(0)
    ratio, area = np.sqrt(rng.random(draws)), np.ones(draws)
    for size in (HEIGHT, WIDTH):
        half, centre = (size * ratio).astype(int) // 2, rng.integers(0, size, draws)
        area *= (np.clip(centre + half, 0, size) - np.clip(centre - half, 0, size)) / size
    return area


def test_law_of_cutmix():
    images, _ = draw(0.0, 1.0)
    taken = images[:, 0, ..., 0] == 0
    rows, columns = taken.any(axis=2), taken.any(axis=1)
    np.testing.assert_array_equal(taken, rows[:, :, None] & columns[:, None, :])
    quantiles, area = (0.2, 0.4, 0.6, 0.8), taken.mean(axis=(1, 2))
    expected = np.quantile(paper_cut_areas(20_000), quantiles)
    np.testing.assert_allclose(np.quantile(area, quantiles), expected, atol=0.06)
    np.testing.assert_allclose(taken.mean(axis=0), taken.mean(axis=0)[::-1, ::-1], atol=0.12)
    height, width = rows.sum(axis=1) / HEIGHT, columns.sum(axis=1) / WIDTH
    edges = rows[:, [0, -1]].any(axis=1) | columns[:, [0, -1]].any(axis=1)
    assert (~edges & taken.any(axis=(1, 2))).sum() > 50
    assert np.abs(height - width)[~edges].max() < 2 / HEIGHT  # the image's own shape


def test_without_mixing_labels_are_smoothed_and_images_stay():
    config = AugmentConfig()
    images, targets = mix(config, jax.random.key(0), IMAGES, LABELS, 10, 0.1)
    assert images is IMAGES and targets.dtype == jnp.float32
    expected = np.full((BATCH, 10), 0.01)
    expected[range(BATCH), range(BATCH)] = 0.91
    np.testing.assert_allclose(targets, expected, atol=1e-7)
