"""RandAugment: what is drawn, how strong it is, and that what is drawn is done."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.augment.operations import ENHANCEMENTS, NAMES, WARPS, operate
from train.augment.randaugment import draw_operations, rand_augment, strength_of
from train.config.data import AugmentConfig
from train.errors import BadInput

CONFIG = AugmentConfig(randaugment_ops=2, randaugment_magnitude=9.0)
FILL = (0.4,)


def expected_strength(name, level, sign):
    """As timm has it for its increasing operations."""
    if name in ENHANCEMENTS:
        return max(0.1, 1 + 0.9 * sign * level)
    return {
        "Rotate": 30 * sign * level,
        "ShearX": 0.3 * sign * level,
        "ShearY": 0.3 * sign * level,
        "TranslateX": 0.45 * sign * level,
        "TranslateY": 0.45 * sign * level,
        "Posterize": 4 - int(4 * level),
        "Solarize": 256 - int(256 * level),
        "SolarizeAdd": int(110 * level),
    }[name]


def test_strengths():
    levels = (0.0, 0.3, 0.85, 1.0)
    with_strength = [n for n in NAMES if n not in ("AutoContrast", "Equalize", "Invert")]
    cases = [(n, level, sign) for n in with_strength for level in levels for sign in (-1.0, 1.0)]
    index = jnp.array([NAMES.index(name) for name, _, _ in cases])
    level, sign = (jnp.array(column) for column in list(zip(*cases, strict=True))[1:])
    strengths = jax.jit(jax.vmap(strength_of))(index, level, sign)
    np.testing.assert_allclose(
        strengths, [expected_strength(*case) for case in cases], rtol=1e-6, atol=1e-6
    )


def test_law_of_draws():
    """Each operation equally often, applied every second time, either way, of normal magnitude."""
    draw = jax.jit(jax.vmap(lambda key: draw_operations(CONFIG, key)))
    index, strength, applied = map(np.asarray, draw(jax.random.split(jax.random.key(0), 6000)))
    assert index.shape == (6000, 2)
    counts = np.bincount(index.ravel(), minlength=15)
    assert len(counts) == 15 and counts.min() > 690 and counts.max() < 910  # 800 +- 27
    assert abs(applied.mean() - 0.5) < 0.02
    first, second = index.T
    assert abs((first == second).mean() - 1 / 15) < 0.015
    warps = index < len(WARPS)
    full = np.select([index < 2, index < 4], [0.3, 0.45], 30.0)
    magnitude = 10 * strength[warps] / full[warps]
    assert abs((magnitude > 0).mean() - 0.5) < 0.03
    magnitude = np.abs(magnitude)
    np.testing.assert_allclose(
        np.quantile(magnitude, (0.16, 0.5, 0.84)), (8.5, 9.0, 9.5), atol=0.06
    )
    assert abs(applied[strength < 0].mean() - applied[warps & (strength > 0)].mean()) < 0.05
    assert abs(np.corrcoef(applied.ravel(), index.ravel())[0, 1]) < 0.03
    assert magnitude.max() <= 10.0 + 1e-5
    assert abs((magnitude > 10 - 1e-5).mean() - 0.023) < 0.01


def test_what_is_drawn_is_done_in_its_order():
    """One operation after the other, on whole 255ths, and nothing where none is applied."""

    def run(key, image):
        drawn, pixels = draw_operations(CONFIG, key), jnp.round(255 * image)
        for n in range(2):
            changed = operate(drawn.index[n], drawn.strength[n], pixels, jnp.array([102.0]))
            pixels = jnp.where(drawn.applied[n], changed, pixels)
        return rand_augment(CONFIG, key, image, FILL), pixels, drawn.applied

    images = np.random.default_rng(0).random((12, 8, 9, 1), np.float32)
    keys = jax.random.split(jax.random.key(3), 12)
    results, pixels, applied = jax.jit(jax.vmap(run))(keys, images)
    assert {0, 1, 2} == set(applied.sum(axis=1).tolist()), "choose a key that shows every case"
    np.testing.assert_allclose(255 * results, pixels, atol=1e-4)
    assert (pixels == 102).any(axis=(1, 2, 3)).any(), "choose a key that shows a warp"


def test_channels_without_a_luminance_are_refused():
    config = dataclasses.replace(CONFIG, randaugment_ops=1)
    with pytest.raises(BadInput, match=r"1 channel or 3; these have 2: set it to 0"):
        rand_augment(config, jax.random.key(0), jnp.zeros((8, 8, 2)), (0.0, 0.0))
