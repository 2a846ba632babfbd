"""Heads that share keys and values, of a size of their own, normed; gated MLPs; norms.

The layers that share keys are compared with plain ones whose kernels repeat those of the shared
heads: the same function.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer.transformer.attention import Attention, KeyValues
from odeformer.transformer.heads import as_heads, as_rows, mask_of_rows
from odeformer.transformer.layers import MLP
from odeformer.transformer.norms import make_norm
from odeformer.transformer.rotary import rotation
from odeformer.transformer.state import Context
from tests.helpers.trees import noisy

BATCH, TOKENS, WIDTH, HEADS, SIZE = 2, 7, 8, 4, 6
PACKED = jnp.array([[1, 1, 1, 2, 2, 0, 0], [3, 0, 3, 3, 0, 5, 5]])
X = jax.random.normal(jax.random.key(0), (BATCH, TOKENS, WIDTH))
POSITIONS = jnp.arange(TOKENS)[None].repeat(BATCH, 0)


def make(keys, dtype=jnp.float32, **changes):
    """A layer whose heads share keys, and the plain one of the same function, with parameters."""
    shared = Attention(HEADS, WIDTH, dtype, head_size=SIZE, kv_heads=keys, **changes)
    plain = shared.clone(kv_heads=None)
    x = X.astype(dtype) if dtype == jnp.float64 else X
    params = noisy(jax.jit(shared.init)(jax.random.key(1), x))["params"]
    assert params["q"]["kernel"].shape == (WIDTH, HEADS, SIZE)
    assert params["kv"]["kernel"].shape == (WIDTH, 2, keys, SIZE)

    def join(q, kv):
        kv = jnp.repeat(kv, HEADS // keys, axis=-2)
        return jnp.concatenate([jnp.expand_dims(q, -3), kv], axis=-3)

    joined = {name: leaf for name, leaf in params.items() if name not in ("q", "kv")}
    joined["qkv"] = jax.tree.map(join, params["q"], params["kv"])
    return shared, params, plain, joined


CASES = [
    dict(keys=2, causal=True),
    dict(keys=1, causal=False, centre=0.7, qk_norm=True, norm="rms"),
    dict(keys=2, causal=True, centre=1.0, qk_norm=True, qkv_bias=False, out_bias=False),
]


@pytest.mark.parametrize(
    ("case", "segments"), [(CASES[0], PACKED), (CASES[1], PACKED), (CASES[2], None)]
)
def test_shared_keys_are_repeated_ones(case, segments):
    shared, params, plain, joined = make(**case)
    context = Context(segments, rotation(POSITIONS, SIZE))
    apply = lambda layer: jax.jit(lambda p: layer.apply({"params": p}, X, context))
    found, expected = apply(shared)(params), apply(plain)(joined)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert ("bias" in params["q"]) == case.get("qkv_bias", True)
    assert ("bias" in params["out"]) == case.get("out_bias", True)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_shared_keys_outside_of_the_library_of_jax(dtype, float64):
    """In float64, and in bfloat16 where JAX promotes nothing, the attention is our own."""
    shared, params, plain, joined = make(2, dtype, causal=True)
    context = Context(PACKED)
    with jax.numpy_dtype_promotion("strict"):
        x = X.astype(jnp.float64) if dtype == jnp.float64 else X
        apply = lambda layer: jax.jit(lambda p: layer.apply({"params": p}, x, context))
        found, expected = apply(shared)(params), apply(plain)(joined)
    assert found.dtype == expected.dtype == dtype
    error = jnp.abs(found.astype("float64") - expected.astype("float64")).max()
    assert error < (1e-12 if dtype == jnp.float64 else 0.05)


def test_a_cache_of_shared_keys_reads_as_a_whole_pass():
    layer, params, *_ = make(2, causal=True, centre=0.5, qk_norm=True)
    angles = rotation(POSITIONS, SIZE)
    shape = (BATCH, TOKENS, 2, SIZE)

    @jax.jit
    def both(params):
        """A pass over all tokens; chunks of them, each of which has a cache of those before it."""
        variables, outs = {"params": params}, []
        k, v, sums = jnp.zeros(shape), jnp.zeros(shape), jnp.zeros((BATCH, 2, SIZE))
        for new in (slice(0, 4), slice(4, 5), slice(5, 7)):
            seen = KeyValues(k, v, jnp.full(BATCH, new.start), sums)
            out, (k_new, v_new) = layer.apply(
                variables, X[:, new], seen, angles[:, new], method="extend"
            )
            assert k_new.shape == v_new.shape == (BATCH, new.stop - new.start, 2, SIZE)
            k, v, sums = k.at[:, new].set(k_new), v.at[:, new].set(v_new), sums + v_new.sum(axis=1)
            outs.append(out)
        return layer.apply(variables, X, Context(rotation=angles)), jnp.concatenate(outs, axis=1)

    whole, chunks = both(params)
    np.testing.assert_allclose(chunks, whole, rtol=1e-5, atol=1e-5)


def test_rows_and_heads_are_inverse():
    x = jnp.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    for keys in (1, 2, 4):
        rows = as_rows(x, keys)
        assert rows.shape == (2, 3 * 4 // keys, keys, 5)
        np.testing.assert_array_equal(as_heads(rows, 4), x)
    # The rows of a token follow one another, and see what it sees.
    np.testing.assert_array_equal(as_rows(x, 1)[0, :4, 0], x[0, 0])
    sees = jnp.tril(jnp.ones((3, 3), bool))
    np.testing.assert_array_equal(mask_of_rows(sees, 4, 2)[:, 0], [True] * 6)
    np.testing.assert_array_equal(mask_of_rows(sees, 4, 2)[:, 1], [False] * 2 + [True] * 4)


def test_queries_and_keys_are_normed_by_hand():
    """Each head by itself, before the rotation; values are not."""
    layer = Attention(2, WIDTH, head_size=SIZE, qk_norm=True, norm="rms", norm_epsilon=0.1)
    params = noisy(jax.jit(layer.init)(jax.random.key(1), X))["params"]
    assert params["q_norm"]["scale"].shape == params["k_norm"]["scale"].shape == (SIZE,)

    @jax.jit
    def by_hand(params):
        qkv = jnp.einsum("bnd,dchk->cbnhk", X, params["qkv"]["kernel"])
        q, k, v = qkv + params["qkv"]["bias"][:, None, None]
        norm = lambda x, p: p["scale"] * x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 0.1)
        q, k = norm(q, params["q_norm"]), norm(k, params["k_norm"])
        scores = jnp.einsum("bqhk,bnhk->bhqn", q, k) / np.sqrt(SIZE)
        mixed = jnp.einsum("bhqn,bnhk->bqhk", jax.nn.softmax(scores), v)
        return jnp.einsum("bnhk,hkd->bnd", mixed, params["out"]["kernel"]) + params["out"]["bias"]

    found = jax.jit(layer.apply)({"params": params}, X)
    np.testing.assert_allclose(found, by_hand(params), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("activation", "bias"), [("silu", False), ("gelu", True)])
def test_gated_mlps_by_hand(activation, bias):
    """SwiGLU and GeGLU."""
    layer = MLP(WIDTH, 12, activation=activation, gated=True, bias=bias)
    params = noisy(jax.jit(layer.init)(jax.random.key(1), X))["params"]

    @jax.jit
    def by_hand(params):
        dense = lambda name, x: x @ params[name]["kernel"] + params[name].get("bias", 0)
        gate = dense("gate", X)
        gate *= jax.nn.sigmoid(gate) if activation == "silu" else jax.scipy.stats.norm.cdf(gate)
        return dense("down", gate * dense("up", X))

    found = jax.jit(layer.apply)({"params": params}, X)
    np.testing.assert_allclose(found, by_hand(params), rtol=1e-5, atol=1e-6)
    assert all(("bias" in leaf) == bias for leaf in params.values())


def test_an_rms_norm_by_hand():
    x = np.array([[1.0, -1.0, 3.0, 5.0]], np.float32)
    norm = make_norm("rms", jnp.float32, 0.25)
    assert jax.tree.map(jnp.shape, norm.init(jax.random.key(0), x)) == {"params": {"scale": (4,)}}
    found = norm.apply({"params": {"scale": jnp.full(4, 2.0)}}, x)
    np.testing.assert_allclose(found, 2 * x / np.sqrt(9 + 0.25), rtol=1e-6)
    assert norm.apply({"params": {"scale": jnp.ones(4)}}, x.astype("float16")).dtype == jnp.float32
    with pytest.raises(ValueError, match="unknown norm 'batch'; accepted: layer, rms"):
        make_norm("batch", jnp.float32, 1e-6)


@pytest.mark.parametrize(("kind", "by_hand"), [("layer", [-1, 1]), ("rms", [1, 3])])
def test_norms_take_a_configs_epsilon_and_dtype(kind, by_hand, float64):
    x = jnp.array([[1.0, 3.0]], jnp.float64)
    found, variables = make_norm(kind, jnp.float64, 0.5).init_with_output(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float64")}
    variance = 1.0 if kind == "layer" else 5.0
    np.testing.assert_allclose(found[0], np.array(by_hand) / np.sqrt(variance + 0.5), rtol=1e-12)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(kv_heads=3), "kv_heads=3 does not divide heads=4, .*: take kv_heads from 1, 2, 4"),
        (dict(kv_heads=0), "kv_heads is a whole number, 1 or more; 0"),
        (dict(head_size=0), "head_size is a whole number, 1 or more; 0"),
        (dict(heads=3), "heads=3 does not divide width=8: .* or give head_size"),
        (
            dict(head_size=12, dtype=jnp.bfloat16, implementation="cudnn"),
            "multiple of 8, at most 256; head_size=12 was given",
        ),
    ],
)
def test_refusals(values, message):
    with pytest.raises(ValueError, match=message):
        Attention(**{"heads": 4, "width": 8} | values)
