"""Geometric augmentation: affine maps, crops, flips, and the boxes that crops are drawn from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from train.augment.boxes import Box, draw_box, inside
from train.augment.geometry import affine, flip, padded_crop, resized_crop
from train.config.data import AugmentConfig

OFF = AugmentConfig()
IMAGE = np.random.default_rng(0).random((10, 14, 2), np.float32)


def change_many(function, image, count):
    """Returns the results of that many draws."""
    keys = jax.random.split(jax.random.key(0), count)
    return keys, np.asarray(jax.jit(jax.vmap(function, (0, None)))(keys, image))


def test_affine_against_scipy():
    config = dataclasses.replace(OFF, shift_px=1.5, rotate_degrees=20.0, zoom=0.2)
    keys, moved = change_many(lambda key, image: affine(config, key, image), IMAGE, 4)
    for key, result in zip(keys, moved, strict=True):
        shift_y, shift_x, turn, zoom = np.asarray(jax.random.uniform(key, (4,), minval=-1.0))
        angle, scale = np.deg2rad(20.0) * turn, 1 + 0.2 * zoom
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
        centre = np.array([4.5, 6.5])
        offset = centre - matrix @ centre + 1.5 * np.array([shift_y, shift_x])
        for channel in range(2):
            expected = ndimage.affine_transform(
                IMAGE[..., channel], matrix, offset, order=1, mode="grid-constant"
            )
            np.testing.assert_allclose(result[..., channel], expected, atol=1e-5)


def test_padded_crop_cuts_every_window_equally_often():
    _, crops = change_many(lambda key, image: padded_crop(1, key, image), IMAGE, 900)
    padded = np.pad(IMAGE, ((1, 1), (1, 1), (0, 0)))
    windows = [padded[top : top + 10, left : left + 14] for top in range(3) for left in range(3)]
    counts = [(crops == window).all(axis=(1, 2, 3)).sum() for window in windows]
    assert sum(counts) == 900
    assert min(counts) > 70 and max(counts) < 130  # 3 standard deviations of 9.4


def enlarged(image, top, left, height, width):
    """Crop, then resize, by Pillow, channel by channel in float32."""
    size, box = image.shape[1::-1], (left, top, left + width, top + height)
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(image, -1, 0)]
    bilinear = Image.Resampling.BILINEAR
    return np.stack([plane.crop(box).resize(size, bilinear) for plane in planes], axis=-1)


def test_resized_crop_against_pillow():
    keys, crops = change_many(lambda key, image: resized_crop(0.1, key, image), IMAGE, 20)
    draw = jax.vmap(lambda key: draw_box(key, (10, 14), (0.1, 1.0), 4 / 3, (10, 14)))
    boxes, fits = jax.jit(draw)(keys)
    assert fits.all()
    for result, *box in zip(crops, *(part.tolist() for part in boxes), strict=True):
        np.testing.assert_allclose(result, enlarged(IMAGE, *box), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "box"), [((4, 64), (0, 29, 4, 5)), ((64, 4), (29, 0, 5, 4))], ids=["wide", "tall"]
)
def test_resized_crop_of_what_no_draw_fits_is_central(shape, box):
    image = np.random.default_rng(1).random((*shape, 1), np.float32)
    _, crops = change_many(lambda key, image: resized_crop(0.9, key, image), image, 2)
    for crop in crops:
        np.testing.assert_allclose(crop, enlarged(image, *box), atol=1e-5)


def test_flip_mirrors_every_second_image():
    _, flipped = change_many(flip, IMAGE, 400)
    mirrored = (flipped == IMAGE[:, ::-1]).all(axis=(1, 2, 3))
    same = (flipped == IMAGE).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all() and 160 < mirrored.sum() < 240


def test_law_of_boxes():
    """Area uniform, log-ratio uniform, every place that the box fits in, the limits kept."""
    draw = jax.vmap(lambda key: draw_box(key, (200, 300), (0.1, 0.4), 2.0, (199, 299)))
    box, fits = jax.jit(draw)(jax.random.split(jax.random.key(0), 4000))
    assert fits.all()
    top, left, height, width = (np.asarray(part, float) for part in box)
    area, ratio = height * width / 60_000, np.log(height / width) / np.log(2)
    # The tallest boxes do not fit: sqrt(0.4 * 60,000 * 2) = 219 rows.
    small = area < 0.3
    quantiles = np.linspace(0.1, 0.9, 9)
    np.testing.assert_allclose(
        np.quantile(area[small], quantiles), 0.1 + 0.2 * quantiles, atol=0.015
    )
    np.testing.assert_allclose(np.quantile(ratio[small], quantiles), 2 * quantiles - 1, atol=0.08)
    assert area.max() > 0.39 and np.abs(ratio).max() < 1.03 and height.max() <= 199
    for first, free in ((top, 200 - height), (left, 300 - width)):
        assert (first >= 0).all() and (first <= free).all()
        np.testing.assert_allclose(np.quantile(first / (free + 1), quantiles), quantiles, atol=0.04)


def test_boxes_reach_every_edge():
    draw = jax.vmap(lambda key: draw_box(key, (4, 4), (0.2, 0.3), 1.0, (4, 4))[0])
    box = jax.jit(draw)(jax.random.split(jax.random.key(0), 900))
    assert set(zip(box.top.tolist(), box.left.tolist(), strict=True)) == {
        (top, left) for top in range(3) for left in range(3)
    }


def test_boxes_that_do_not_fit_are_told():
    draw = jax.vmap(lambda key: draw_box(key, (4, 40), (0.9, 1.0), 1.3, (4, 40))[1])
    assert not jax.jit(draw)(jax.random.split(jax.random.key(0), 3)).any()


def test_inside_a_box_that_an_edge_cuts():
    box = Box(*(jnp.array(n) for n in (-1, 2, 3, 3)))
    expected = np.zeros((5, 6), bool)
    expected[:2, 2:5] = True
    np.testing.assert_array_equal(inside(box, (5, 6))[..., 0], expected)
