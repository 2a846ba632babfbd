"""Data: the fixed splits, the order of the batches, augmentation."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from train.config import AugmentConfig
from train.data.augment import random_affine
from train.data.pipeline import BatchOrder, eval_batches, train_batches
from train.data.sources import load_splits
from train.errors import BadInput


@pytest.fixture(scope="module")
def digits():
    return load_splits("digits")


def test_digits_splits_are_fixed_disjoint_and_stratified(digits):
    assert {name: len(split) for name, split in digits.items()} == {
        "train": 1257,
        "validation": 180,
        "test": 360,
    }
    pixels = [image.tobytes() for split in digits.values() for image in split.images]
    assert len(set(pixels)) == 1797
    for split in digits.values():
        shares = np.bincount(split.labels, minlength=10) / len(split)
        assert shares.min() > 0.085 and shares.max() < 0.115
    assert digits["test"].labels[:8].tolist() == load_splits("digits")["test"].labels[:8].tolist()


def test_standardised_pixels(digits):
    train = digits["train"]
    images = train.standardise(train.to_unit(jnp.asarray(train.images)))
    np.testing.assert_allclose([images.mean(), images.std()], [0.0, 1.0], atol=1e-4)


def order(process=0, processes=1, seed=0, steps=40):
    return BatchOrder(100, 12, steps, seed, process, processes)


def test_every_example_once_an_epoch():
    batches = order(steps=50)
    flat = np.concatenate([batches[step] for step in range(50)])
    for epoch in range(6):
        assert sorted(flat[100 * epoch : 100 * (epoch + 1)]) == list(range(100))
    assert flat[:100].tolist() != flat[100:200].tolist()


def test_order_is_a_function_of_seed_and_step():
    again = order()
    assert order()[17].tolist() == again[17].tolist()
    assert order(seed=1)[17].tolist() != again[17].tolist()


def test_processes_take_contiguous_parts():
    for step in (0, 8, 31):
        parts = [order(process, 3)[step] for process in range(3)]
        assert np.concatenate(parts).tolist() == order()[step].tolist()


def test_batches_go_on_where_they_stopped(digits):
    train = digits["train"]
    whole = list(train_batches(train, 32, 10, seed=0))
    rest = list(train_batches(train, 32, 10, seed=0, start_step=7))
    assert len(whole) == 10 and len(rest) == 3
    for a, b in zip(whole[7:], rest, strict=True):
        np.testing.assert_array_equal(a["index"], b["index"])
    np.testing.assert_array_equal(whole[0]["image"], train.images[whole[0]["index"]])


@pytest.mark.parametrize("batch_size", [7, 180, 256])
def test_evaluation_covers_every_example_once(digits, batch_size):
    seen = collections.Counter()
    for batch in eval_batches(digits["validation"], batch_size):
        assert len(batch["label"]) == batch_size
        seen.update(batch["index"][batch["weight"] == 1].tolist())
    assert seen == collections.Counter(range(180))


def test_refusals(digits):
    with pytest.raises(BadInput, match="batch_size=2000 is larger than the training split of 1257"):
        train_batches(digits["train"], 2000, 1, seed=0)
    with pytest.raises(BadInput, match="not a multiple of the 3 processes"):
        train_batches(digits["train"], 32, 1, seed=0, processes=3)
    with pytest.raises(BadInput, match="unknown data set 'digit'.*Did you mean 'digits'"):
        load_splits("digit")


def augment(images, shift_px=0.0, rotate_degrees=0.0, zoom=0.0):
    keys = jax.random.split(jax.random.key(0), len(images))
    return random_affine(AugmentConfig(shift_px, rotate_degrees, zoom), keys, images), keys


def test_affine_against_scipy(digits):
    images = digits["train"].to_unit(jnp.asarray(digits["train"].images[:8]))
    bounds = dict(shift_px=1.5, rotate_degrees=20.0, zoom=0.2)
    moved, keys = augment(images, **bounds)
    for image, result, key in zip(images, moved, keys, strict=True):
        shift_y, shift_x, turn, zoom = np.asarray(jax.random.uniform(key, (4,), minval=-1.0))
        angle, scale = np.deg2rad(20.0) * turn, 1 + 0.2 * zoom
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
        centre = np.array([3.5, 3.5])
        offset = centre - matrix @ centre + 1.5 * np.array([shift_y, shift_x])
        expected = ndimage.affine_transform(
            np.asarray(image[..., 0]), matrix, offset, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(result[..., 0], expected, atol=1e-5)


def test_no_augmentation_leaves_images_alone(digits):
    images = jnp.asarray(digits["train"].images[:3], jnp.float32)
    assert augment(images)[0] is images
