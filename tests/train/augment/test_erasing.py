"""Random erasing: the box, its frequency and its noise."""

import jax
import numpy as np

from train.augment.erasing import random_erasing

COUNT, HEIGHT, WIDTH = 2000, 24, 32
IMAGE = np.random.default_rng(0).uniform(50, 60, (HEIGHT, WIDTH, 2)).astype(np.float32)


def test_law_of_erasing():
    keys = jax.random.split(jax.random.key(0), COUNT)
    erase = jax.jit(jax.vmap(random_erasing, (None, 0, None)))
    results = np.asarray(erase(0.25, keys, IMAGE))
    erased = results != IMAGE
    assert (erased[..., 0] == erased[..., 1]).all()
    erased = erased[..., 0]
    hit = erased.any(axis=(1, 2))
    assert abs(hit.mean() - 0.25) < 0.03
    rows, columns = erased[hit].any(axis=2), erased[hit].any(axis=1)
    np.testing.assert_array_equal(erased[hit], rows[:, :, None] & columns[:, None, :])
    for line in (rows, columns):  # each a single run, shorter than the image
        assert ((np.diff(line.astype(int), prepend=0, axis=1) == 1).sum(axis=1) == 1).all()
        assert not line.all(axis=1).any()
    heights, widths = rows.sum(axis=1), columns.sum(axis=1)
    areas, ratios = heights * widths / (HEIGHT * WIDTH), heights / widths
    assert areas.min() > 0.01 and areas.max() < 0.36 and areas.min() < 0.05 < 0.3 < areas.max()
    assert abs(areas.mean() - (0.02 + 1 / 3) / 2) < 0.02
    assert 0.25 < ratios.min() < 0.4 and 2.5 < ratios.max() < 4
    noise = results[hit][erased[hit]]  # [pixels, channels]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.02
    assert np.unique(noise).size > 0.99 * noise.size
    always, never = (np.asarray(erase(chance, keys, IMAGE)) for chance in (1.0, 0.0))
    assert (always != IMAGE).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(never, np.broadcast_to(IMAGE, never.shape))


def test_an_image_too_narrow_for_a_box_stays():
    image = IMAGE[:, :1]
    result = jax.jit(random_erasing)(1.0, jax.random.key(0), image)
    np.testing.assert_array_equal(result, image)
