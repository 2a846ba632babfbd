"""Rotary positions: base, scaling to longer texts, the part of a head that turns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import LM, LMConfig
from odeformer.transformer.rotary import Rotary, rotate, rotation

SIZE = 12
POSITIONS = jnp.array([[0, 1, 5, 40]])


def angles(**settings):
    """Per token, of each wave."""
    cos, sin = rotation(jnp.array([[1]]), SIZE, jnp.float32, Rotary(**settings))[0, 0]
    return np.arctan2(sin, cos)


def test_the_base_by_hand():
    expected = 500.0 ** (-np.arange(0, SIZE, 2) / SIZE)
    np.testing.assert_allclose(angles(base=500.0), expected, rtol=1e-5)
    np.testing.assert_allclose(angles(), 10_000.0 ** (-np.arange(0, SIZE, 2) / SIZE), rtol=1e-5)


def test_linear_scaling_divides_every_angle():
    found = angles(base=500.0, scaling="linear", factor=4.0)
    np.testing.assert_allclose(found, angles(base=500.0) / 4, rtol=1e-5)


def test_llama3_scales_long_waves_alone():
    """By wavelengths, as its authors write it; of each kind there is one."""
    rotary = dict(base=100.0, factor=8.0, low_turns=1.0, high_turns=4.0, length=64)
    kinds, expected = [], []
    for angle in angles(base=100.0).tolist():
        wave = 2 * np.pi / angle
        if wave < 64 / 4.0:
            kinds, expected = [*kinds, "kept"], [*expected, angle]
        elif wave > 64 / 1.0:
            kinds, expected = [*kinds, "scaled"], [*expected, angle / 8.0]
        else:
            smooth = (64 / wave - 1.0) / (4.0 - 1.0)
            kinds = [*kinds, "between"]
            expected.append((1 - smooth) * angle / 8.0 + smooth * angle)
    assert set(kinds) == {"kept", "between", "scaled"}
    np.testing.assert_allclose(angles(scaling="llama3", **rotary), expected, rtol=1e-5)


def test_the_first_part_of_a_head_turns_alone():
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, SIZE))
    part = rotation(POSITIONS, SIZE, jnp.float32, Rotary(fraction=0.5, base=100.0))
    assert part.shape == (1, 4, 2, 3)
    # As a head of half the size does, whose waves follow from its own size.
    whole = rotation(POSITIONS, SIZE // 2, jnp.float32, Rotary(base=100.0))
    np.testing.assert_array_equal(part, whole)
    found = rotate(x, part)
    np.testing.assert_array_equal(found[..., :6], rotate(x[..., :6], whole))
    np.testing.assert_array_equal(found[..., 6:], x[..., 6:])
    # Rounded down, as others do: 0.34 of 12 entries are 4.
    assert rotation(POSITIONS, SIZE, jnp.float32, Rotary(fraction=0.34)).shape == (1, 4, 2, 2)


def test_products_in_bfloat16_are_turned_in_float32():
    """By angles of positions that bfloat16 does not hold."""
    turns = rotation(jnp.array([[257]]), 2)
    np.testing.assert_allclose(turns[0, 0, :, 0], [np.cos(257), np.sin(257)], rtol=1e-4)
    x = jax.random.normal(jax.random.key(0), (1, 1, 2, 2), jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        found = rotate(x, turns)
    assert found.dtype == jnp.bfloat16
    exact = rotate(x.astype(jnp.float32), turns).astype(jnp.bfloat16)
    np.testing.assert_array_equal(found, exact)


SMALL = dict(vocabulary=7, block_size=8, width=16, heads=2, mlp=8)


def test_a_model_turns_by_its_config():
    settings = dict(rotary_base=50.0, rotary_fraction=0.5, rotary_scaling="llama3")
    settings |= dict(rotary_factor=3.0, rotary_low_turns=0.5, rotary_high_turns=2.0)
    config = LMConfig(**SMALL, **settings, head_size=SIZE, rotary_length=20)
    found = LM(config).apply({}, POSITIONS, method="rotation")
    rotary = Rotary(
        base=50.0,
        fraction=0.5,
        scaling="llama3",
        factor=3.0,
        low_turns=0.5,
        high_turns=2.0,
        length=20,
    )
    np.testing.assert_array_equal(found, rotation(POSITIONS, SIZE, jnp.float32, rotary))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(head_size=3), "rotate pairs of 3 of a head's 3 entries .*take other heads"),
        (dict(rotary_fraction=0.1), "rotate pairs of 0 of a head's 8 entries"),
        (dict(rotary_fraction=1.5), "rotary_fraction is greater than 0, at most 1; 1.5 was given"),
        (dict(rotary_fraction=0), "rotary_fraction is greater than 0"),
        (dict(rotary_scaling="yarn"), "unknown rotary_scaling 'yarn'; accepted: none, linear"),
        (dict(rotary_scaling="linear"), "rotary_scaling='linear' lacks its rotary_factor"),
        (dict(rotary_factor=2.0), "rotary_factor=2.0 has no effect with .*rotary_scaling='none'"),
        (
            dict(rotary_scaling="linear", rotary_factor=2.0, rotary_length=9),
            "rotary_length=9 has no effect with .*rotary_scaling='linear'",
        ),
        (
            dict(rotary_scaling="llama3", rotary_factor=2.0, rotary_low_turns=4.0),
            "rotary_low_turns=4.0 is not less than rotary_high_turns=4.0",
        ),
        (
            dict(positions="learned", rotary_base=5.0),
            "rotary_base=5.0 has no effect with positions='learned'",
        ),
    ],
)
def test_refusals(values, message):
    with pytest.raises(ValueError, match=message):
        LMConfig(**SMALL, **values)
