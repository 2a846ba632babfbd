"""The transformer's vector field: the fused sum, dropout, time, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import handwritten
from odeformer import TransformerField, make_vector_field
from odeformer.transformer.field import init_params
from tests.helpers.trees import relative_error

BASE = TransformerField(width=16, heads=2, mlp=32, layers=4)


def setup(field):
    """Parameters away from their initial values, so that scales and biases matter."""
    y = jax.random.normal(jax.random.key(0), (2, 5, 16))
    params = jax.jit(lambda key: init_params(field, key, y))(jax.random.key(1))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return y, jax.tree.unflatten(tree, noisy)


@pytest.mark.parametrize(
    "changes",
    [
        {"time": "none"},
        {"time": "additive"},
        {"activation": "gelu", "norm_epsilon": 0.1},
        {"head_size": 6, "qk_norm": True, "out_bias": False, "kv_heads": 2},
    ],
)
def test_fused_sum_equals_the_unfused(changes):
    plain, fused = (BASE.clone(**changes, fused=fused) for fused in (False, True))
    y, params = setup(plain)
    evaluate = lambda field, params: make_vector_field(field)(
        jnp.float32(1.5), y, (params, jnp.float32(0.5))
    )
    np.testing.assert_allclose(
        evaluate(fused, params), evaluate(plain, params), rtol=1e-4, atol=1e-5
    )
    gradient = lambda field: jax.jit(jax.grad(lambda p: jnp.sum(evaluate(field, p) ** 2)))(params)
    assert relative_error(gradient(fused), gradient(plain)) < 1e-5


def test_fused_sum_takes_one_input_product():
    y, params = setup(BASE)
    programs = [
        str(jax.make_jaxpr(lambda p, f=f: make_vector_field(f)(0.0, y, (p, jnp.zeros(()))))(params))
        for f in (BASE, BASE.clone(fused=True))
    ]
    big = [program.count("f32[2,5,80]") for program in programs]  # 3 * 16 + 32 columns at once
    assert big[0] == 0 and big[1] > 0


def test_terms_add_up_to_the_total():
    y, params = setup(BASE)
    field = make_vector_field(BASE)
    args = (jnp.float32(0.0), y, (params, jnp.float32(0.0)))
    np.testing.assert_allclose(sum(term(*args) for term in field.terms), field(*args), rtol=1e-6)


def test_time_conditioning_shifts_the_normed_state_and_none_is_by_default():
    """By the embedding of t + offset, written by hand, in each term and in their fused sum."""
    timed = BASE.clone(time="additive")
    y, params = setup(timed)
    at = lambda field, params, t, offset=0.0: make_vector_field(field)(
        jnp.float32(t), y, (params, jnp.float32(offset))
    )
    embedding = params["time_embedding"]["projection"]
    for t, offset in ((0.0, 0.0), (0.5, 2.0), (1.0, 0.0)):
        angles = (t + offset) / 100 ** (np.arange(32) / 31)
        shift = np.concatenate([np.sin(angles), np.cos(angles)]) @ embedding["kernel"]
        # A norm's bias is added where the embedding is.
        norms = {
            name: {**params[name], "bias": params[name]["bias"] + shift + embedding["bias"]}
            for name in ("attention_norm", "mlp_norm")
        }
        p = {**params, **norms}
        expected = handwritten.attention(p, y) + handwritten.mlp(p, y)
        for field in (timed, timed.clone(fused=True)):
            found = at(field, params, t, offset)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    y, params = setup(BASE)
    np.testing.assert_array_equal(at(BASE, params, 0.0), at(BASE, params, 1.0))


@pytest.mark.parametrize("fused", [False, True])
def test_masks_depend_on_the_key_alone(fused):
    field = BASE.clone(dropout=0.5, drop_path=0.5, fused=fused)
    y, params = setup(field)
    vector_field = make_vector_field(field, train=True)
    args = (params, jnp.float32(0.0))
    slope = lambda t, y, key: vector_field(jnp.float32(t), y, args, jax.random.key(key))
    zeros = lambda slope: np.asarray(slope == 0)
    np.testing.assert_array_equal(slope(3, y, 0), slope(3, y, 0))
    assert np.any(slope(3, y, 0) != slope(3, y, 1))
    split = sum(term(jnp.float32(3), y, args, jax.random.key(0)) for term in vector_field.terms)
    np.testing.assert_allclose(slope(3, y, 0), split, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(zeros(slope(3, y, 0)), zeros(slope(3, 2 * y, 0)))


def test_every_norm_of_the_field_adds_epsilon_to_the_variance():
    """A norm of a tiny state is the state over the root of epsilon, nearly."""
    _, params = setup(BASE)
    y = 1e-6 * jax.random.normal(jax.random.key(0), (2, 5, 16))
    for fused in (False, True):
        wide = BASE.clone(norm_epsilon=4.0, fused=fused)
        args = (params, jnp.float32(0))
        # Of constant tokens a norm returns its bias alone.
        flat = make_vector_field(wide)(jnp.float32(0), jnp.zeros_like(y), args)
        near = make_vector_field(wide)(jnp.float32(0), y, args)
        far = make_vector_field(BASE.clone(fused=fused))(jnp.float32(0), y, args)
        assert float(jnp.abs(near - flat).max()) < 1e-4
        assert float(jnp.abs(far - flat).max()) > 1e-3


def test_drop_path_drops_whole_samples_and_grows_with_time():
    field = BASE.clone(drop_path=0.5, width=16)
    _, params = setup(field)
    y = jax.random.normal(jax.random.key(5), (400, 5, 16))
    term = make_vector_field(field, train=True).terms[1]
    dropped = []
    for t in (0.0, 1.5, 3.0):
        slope = term(jnp.float32(t), y, (params, jnp.float32(0)), jax.random.key(0))
        zero = np.asarray(slope == 0).reshape(400, -1)
        assert np.all(zero.all(axis=1) == zero.any(axis=1))
        dropped.append(zero.all(axis=1).mean())
    np.testing.assert_allclose(dropped, [0.0, 0.25, 0.5], atol=0.08)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(heads=3), "heads=3 does not divide width=16: take heads from 1, 2, 4, 8, 16"),
        (dict(mlp=0), "mlp is a whole number, 1 or more; 0"),
        (dict(dropout=1.5), r"dropout is in \[0, 1\); 1.5 was given"),
        (dict(drop_path=-0.1), r"drop_path is in \[0, 1\); -0.1 was given"),
        (dict(time="aditive"), "unknown time 'aditive'.*Did you mean 'additive'"),
        (dict(attention="flash"), "unknown attention 'flash'"),
        (dict(activation="gelu_new"), "unknown activation 'gelu_new'; accepted: gelu_tanh, gelu, "),
        (dict(norm_epsilon=0.0), "norm_epsilon is greater than 0, also as float32; 0.0 was given"),
        (dict(norm_epsilon=1e-60), "greater than 0, also as float32; 1e-60 was given"),
        (dict(norm="batch"), "unknown norm 'batch'; accepted: layer, rms"),
        (dict(kv_heads=3), "kv_heads=3 does not divide heads=2"),
        (dict(qk_norm="no"), "qk_norm is True or False; 'no' was given"),
        (dict(fused=True, kv_heads=1), "kv_heads=1 does not fit: take fused=False, or kv_heads=2"),
        (dict(fused=True, gated=True), "gated=True does not fit: take fused=False, or gated=False"),
        (
            dict(fused=True, norm="rms"),
            "norm='rms' does not fit: .* or norm='layer'",
        ),
        (dict(fused=True, qkv_bias=False), "qkv_bias=False does not fit"),
        (dict(fused=True, mlp_bias=False), "mlp_bias=False does not fit"),
        (dict(dtype=jnp.float16), "unknown dtype 'float16'; accepted: float32, bfloat16, float64"),
    ],
)
def test_refusals(values, message):
    with pytest.raises(ValueError, match=message):
        BASE.clone(**values)


def test_matrix_products_in_bfloat16_leave_the_state_alone():
    field = BASE.clone(dtype=jnp.bfloat16)
    y, params = setup(field)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    program = str(jax.make_jaxpr(make_vector_field(field))(0.0, y, (params, jnp.zeros(()))))
    assert make_vector_field(field)(0.0, y, (params, jnp.zeros(()))).dtype == jnp.float32
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert products and any("bf16" in line for line in products)
    exact = make_vector_field(BASE)(0.0, y, (params, jnp.zeros(())))
    found = make_vector_field(field)(0.0, y, (params, jnp.zeros(())))
    assert 1e-4 < relative_error(found, exact) < 0.01  # 0.005 was seen; a rounding is 0.004
