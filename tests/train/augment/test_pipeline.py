"""The augmentation as a whole: what it depends on, and what it leaves out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.augment import pipeline
from train.augment.pipeline import augment
from train.config.data import AugmentConfig

FILL = (0.5, 0.4, 0.3)
IMAGES = np.random.default_rng(0).random((4, 12, 12, 3), np.float32)
KEYS = jax.random.split(jax.random.key(0), 4)
EVERYTHING = dict(
    shift_px=1.0,
    rotate_degrees=5.0,
    zoom=0.1,
    crop_padding_px=2,
    crop_min_area=0.2,
    flip=True,
    randaugment_ops=1,
    erasing=0.5,
)


def make_augment(standardise=lambda images: images, **changes):
    """Returns the jitted (keys, images) -> images of a config."""
    config = AugmentConfig(**changes)
    return jax.jit(lambda keys, images: augment(config, keys, images, standardise, FILL))


@functools.cache
def make_everything():
    return make_augment(lambda images: (images - 0.5) / 0.25, **EVERYTHING)


def test_same_keys_same_images():
    run = make_everything()
    results = run(KEYS, IMAGES)
    np.testing.assert_array_equal(run(KEYS, IMAGES), results)
    others = run(jax.random.split(jax.random.key(1), 4), IMAGES)
    assert (others != results).any(axis=(1, 2, 3)).all()
    assert results.shape == IMAGES.shape and results.dtype == jnp.float32
    assert np.isfinite(results).all()


@pytest.mark.parametrize(
    ("stage", "part", "changes"),
    [
        (0, "affine", dict(zoom=0.1)),
        (1, "padded_crop", dict(crop_padding_px=1)),
        (2, "resized_crop", dict(crop_min_area=0.5)),
        (3, "flip", dict(flip=True)),
        (4, "rand_augment", dict(randaugment_ops=1)),
        (5, "random_erasing", dict(erasing=0.5)),
    ],
)
def test_each_part_draws_by_a_number_of_its_own(stage, part, changes, monkeypatch):
    """And that number stays: a run is resumed by a later version, too."""
    draw = lambda key: jax.random.uniform(key, IMAGES.shape[1:])
    monkeypatch.setattr(pipeline, part, lambda *args, **_: draw(args[-2]))
    found = augment(AugmentConfig(**changes), KEYS, IMAGES, lambda images: images, FILL)
    expected = jax.vmap(lambda key: draw(jax.random.fold_in(key, stage)))(KEYS)
    np.testing.assert_array_equal(found, expected)


def test_an_image_does_not_depend_on_the_others():
    run = make_everything()
    results = run(KEYS, IMAGES)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_array_equal(run(KEYS[order], IMAGES[order]), results[order])
    others = IMAGES.copy()
    others[1:] = 0.1
    np.testing.assert_array_equal(run(KEYS, others)[0], results[0])


def test_nothing_is_done_or_drawn_when_all_is_off():
    run = make_augment()
    np.testing.assert_array_equal(run(KEYS, IMAGES), IMAGES)
    program = jax.make_jaxpr(lambda *args: augment(AugmentConfig(), *args, lambda x: x, FILL))(
        KEYS, IMAGES
    )
    assert not program.eqns


def test_erasing_comes_after_standardising():
    results = make_augment(lambda images: 0 * images + 7, erasing=1.0)(KEYS, IMAGES)
    kept = results == 7
    assert kept.any(axis=(1, 2, 3)).all() and not kept.all(axis=(1, 2, 3)).any()


def test_a_part_draws_the_same_whatever_else_is_on():
    keys, images = jax.random.split(jax.random.key(0), 16), np.tile(IMAGES, (4, 1, 1, 1))
    cropped = make_augment(crop_padding_px=2)(keys, images)
    both = make_augment(crop_padding_px=2, flip=True)(keys, images)
    mirrored = (both == cropped[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored ^ (both == cropped).all(axis=(1, 2, 3))).all()
    assert mirrored.any() and not mirrored.all()
    alone = make_augment(flip=True)(keys, images) == images[:, :, ::-1]
    np.testing.assert_array_equal(mirrored, alone.all(axis=(1, 2, 3)))
