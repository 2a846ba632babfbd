"""Layer scale: a learnt factor per channel of each term's slope."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import handwritten
from odeformer import TransformerField, make_vector_field
from odeformer.transformer.field import init_params
from odeformer.transformer.norms import LayerScale

BASE = TransformerField(width=16, heads=2, mlp=32, layers=4, layer_scale=0.25)
Y = jax.random.normal(jax.random.key(0), (2, 5, 16))


def parameters(field):
    params = jax.jit(lambda key: init_params(field, key, Y))(jax.random.key(1))
    gamma = 1 + jnp.arange(16.0)
    return params | {
        name: {"gamma": sign * gamma} for name, sign in (("attention_scale", 1), ("mlp_scale", -2))
    }


def slopes(field, params):
    vector_field = make_vector_field(field)
    args = (jnp.float32(1), Y, (params, jnp.float32(0)))
    return [*(term(*args) for term in vector_field.terms), vector_field(*args)]


@pytest.mark.parametrize("fused", [False, True])
def test_each_slope_is_scaled_by_its_own_factors(fused):
    params = parameters(BASE)
    gamma = 1 + np.arange(16.0)
    expected = [gamma * handwritten.attention(params, Y), -2 * gamma * handwritten.mlp(params, Y)]
    for found, slope in zip(
        slopes(BASE.clone(fused=fused), params), [*expected, sum(expected)], strict=True
    ):
        np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-4)


def test_factors_begin_at_the_value_and_are_there_only_with_it():
    params = jax.jit(lambda key: init_params(BASE, key, Y))(jax.random.key(1))
    plain = jax.jit(lambda key: init_params(BASE.clone(layer_scale=None), key, Y))
    scales = {name: params[name] for name in params if name.endswith("_scale")}
    assert set(scales) == {"attention_scale", "mlp_scale"}
    for leaf in jax.tree.leaves(scales):
        np.testing.assert_array_equal(leaf, np.full(16, 0.25, np.float32))

    # The other parameters are the same, as is the program without factors.
    others = {name: leaf for name, leaf in params.items() if name not in scales}
    jax.tree.map(np.testing.assert_array_equal, others, plain(jax.random.key(1)))


def test_products_in_bfloat16_are_scaled_in_float32():
    field = BASE.clone(dtype=jnp.bfloat16)
    params = parameters(field)
    ones = params | {name: {"gamma": jnp.ones(16)} for name in params if name.endswith("_scale")}
    gamma = 1 + np.arange(16, dtype=np.float32)
    for found, slope, sign in zip(
        slopes(field, params), slopes(field, ones), (1, -2), strict=False
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, sign * gamma * slope)


@pytest.mark.parametrize(("dtype", "kept"), [("bfloat16", "float32"), ("float64", "float64")])
def test_factors_have_the_dtype_of_parameters(dtype, kept, float64):
    scale = LayerScale(16, 0.25, jnp.dtype(dtype))
    shapes = jax.eval_shape(scale.init, jax.random.key(0), Y)
    assert shapes["params"]["gamma"].dtype == kept


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), "small", True])
def test_refusals(value):
    with pytest.raises(ValueError, match="layer_scale .*None is accepted, too"):
        BASE.clone(layer_scale=value)
