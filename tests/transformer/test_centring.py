"""Centred attention, against explicit [N, N] matrices in numpy and scipy's matrix exponential."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from odeformer import (
    TransformerField,
    VectorField,
    integrate,
)
from odeformer.transformer.attention import Attention
from odeformer.transformer.centring import visible_means
from odeformer.transformer.rotary import rotation
from odeformer.transformer.state import Context
from tests.helpers.trees import relative_error

BATCH, TOKENS, WIDTH, HEADS = 2, 7, 8, 2
SIZE = WIDTH // HEADS
INTERLEAVED = np.array([[3, 0, 3, -1, 0, 3, 9], [5, 5, 0, 0, 5, 0, 5]])
PADDED = np.array([[1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1]])
SEGMENTS = {"none": None, "interleaved": INTERLEAVED, "padded": PADDED}
CASES = [(name, causal) for name in SEGMENTS for causal in (False, True)]
CENTRES = (1.0, 0.3, -2)
LINEAR_CENTRE, LENGTH = 0.7, 1.5


def visible(segments, causal, tokens=TOKENS):
    """bool [B, N, N], True where the row's token sees the column's."""
    sees = np.ones((BATCH, tokens, tokens), bool)
    if segments is not None:
        sees &= segments[:, :, None] == segments[:, None]
    return sees & np.tri(tokens, dtype=bool) if causal else sees


def weights(scores, sees, centre):
    """A - centre C of scores [..., N, N]."""
    exp = np.where(sees, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    mean = sees / sees.sum(-1, keepdims=True)
    return exp / exp.sum(-1, keepdims=True) - centre * mean


def reference(params, x, sees, centre):
    """The layer, with its matrices written out."""
    qkv, out = params["qkv"], params["out"]
    q, k, v = np.moveaxis(np.einsum("bnd,dchk->bnchk", x, qkv["kernel"]) + qkv["bias"], 2, 0)
    matrix = weights(np.einsum("bqhk,bnhk->bhqn", q, k) / np.sqrt(SIZE), sees[:, None], centre)
    mixed = np.einsum("bhqn,bnhk->bqhk", matrix, v)
    return np.einsum("bqhk,hkd->bqd", mixed, out["kernel"]) + out["bias"], matrix


def layer_of(**options):
    return Attention(HEADS, WIDTH, **{"dtype": jnp.float64, **options})


def random_params(seed=0):
    """Parameters of the layer that are zero nowhere, in float64."""
    rng = np.random.default_rng(seed)
    shapes = dict(
        qkv=dict(kernel=(WIDTH, 3, HEADS, SIZE), bias=(3, HEADS, SIZE)),
        out=dict(kernel=(HEADS, SIZE, WIDTH), bias=(WIDTH,)),
    )
    is_shape = lambda x: isinstance(x, tuple)
    return jax.tree.map(lambda shape: 0.5 * rng.standard_normal(shape), shapes, is_leaf=is_shape)


X = np.random.default_rng(1).standard_normal((BATCH, TOKENS, WIDTH))


@jax.jit
def outputs(params, x, segments):
    """The layer's output in every case, of one program for several tests, by (case, centre)."""
    found = {}
    for name, causal in CASES:
        layout = None if name == "none" else Context(segments[name])
        for centre in CENTRES if name == "interleaved" else CENTRES[:1]:
            layer = layer_of(causal=causal, centre=centre)
            found[name, causal, centre] = layer.apply({"params": params}, x, layout)
    return found


def found_in(params, x=X, **segments):
    arrays = {name: jnp.asarray(n) for name, n in (SEGMENTS | segments).items() if n is not None}
    return outputs(params, jnp.asarray(x), arrays)


def test_explicit_matrices(float64):
    params = random_params()
    for (segments, causal, centre), found in found_in(params).items():
        expected, matrix = reference(params, X, visible(SEGMENTS[segments], causal), centre)
        np.testing.assert_allclose(matrix.sum(-1), 1 - centre, atol=1e-12)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_constant_added_to_all_values_changes_nothing(float64):
    before, moved = found_in(random_params()), random_params()
    moved["qkv"]["bias"][2] += 3.0
    for case, found in found_in(moved).items():
        if case[-1] == 1.0:
            np.testing.assert_allclose(found, before[case], rtol=0, atol=1e-12)
        else:
            assert np.abs(found - before[case]).max() > 0.1


def test_a_token_that_sees_itself_alone_moves_by_the_output_bias(float64):
    """Exactly: the first of a causal layer, and each that is a segment of its own."""
    params = random_params()
    bias = np.broadcast_to(params["out"]["bias"], X.shape)
    found = found_in(params, interleaved=np.arange(TOKENS)[None].repeat(BATCH, 0))
    for causal in (False, True):
        np.testing.assert_array_equal(found["interleaved", causal, 1.0], bias)
    np.testing.assert_array_equal(found["none", True, 1.0][:, 0], bias[:, 0])


@functools.cache
def flow():
    """The solve of all linear flows at once, (theta, rotation) -> states; one program."""
    field = {
        causal: TransformerField(
            WIDTH, HEADS, mlp=4, dtype=jnp.float64, causal=causal, centre=LINEAR_CENTRE
        )
        for causal in (False, True)
    }

    # The field's own layer, its norm bypassed.
    def slope(t, states, params):
        theta, turned = params
        layouts = {
            name: Context(None if n is None else jnp.asarray(n), turned)
            for name, n in SEGMENTS.items()
        }
        return {
            (name, causal): field[causal].bind({"params": theta}).attention_layer(y, layouts[name])
            for (name, causal), y in states.items()
        }

    def solve(theta, turned):
        y0 = {case: jnp.asarray(X) for case in CASES}
        options = dict(solver="tsit5", rtol=1e-8, atol=1e-10, max_steps=256)
        return integrate(VectorField((slope,)), y0, (theta, turned), 0.0, LENGTH, **options)

    return jax.jit(solve)


@pytest.mark.parametrize("by_position", [False, True])
def test_the_linear_flow_is_a_matrix_exponential(by_position, float64):
    """A is constant: scores of 0, or by position alone, of rotated biases of queries and keys."""
    bias = np.zeros((3, HEADS, SIZE))
    kernel, identity = np.zeros((WIDTH, 3, HEADS, SIZE)), np.eye(WIDTH)
    kernel[:, 2] = identity.reshape(WIDTH, HEADS, SIZE)
    if by_position:
        # The same for all heads, so that one matrix serves all columns.
        bias[:2] = np.random.default_rng(2).standard_normal((2, 1, SIZE))

    # q_i . k_j, pairs of numbers as complex ones, turned by their positions.
    turn = np.exp(1j * np.arange(TOKENS)[:, None] * 1e4 ** (-np.arange(SIZE // 2) * 2 / SIZE))
    q, k = (turn * (b[: SIZE // 2] + 1j * b[SIZE // 2 :]) for b in bias[:2, 0])
    scores = (q @ k.conj().T).real / np.sqrt(SIZE)

    out = dict(kernel=identity.reshape(HEADS, SIZE, WIDTH), bias=np.zeros(WIDTH))
    theta = {"attention_layer": dict(qkv=dict(kernel=kernel, bias=bias), out=out)}
    positions = jnp.arange(TOKENS)[None].repeat(BATCH, 0)
    solution = flow()(theta, rotation(positions, SIZE, jnp.float64))

    assert int(solution.result) == 0
    for (segments, causal), y1 in solution.y1.items():
        matrix = weights(scores, visible(SEGMENTS[segments], causal), LINEAR_CENTRE)
        pairs = zip(matrix, X, strict=True)
        expected = np.stack([scipy.linalg.expm(LENGTH * m) @ x for m, x in pairs])
        np.testing.assert_allclose(y1, expected, rtol=0, atol=1e-6)


def test_no_gradient_reaches_a_token_that_is_not_seen():
    """Exactly 0: of later tokens, and of those of other segments."""
    params = jax.tree.map(jnp.float32, random_params())

    def apply(segments, x):
        layer = layer_of(dtype=jnp.float32, causal=True, centre=1.0)
        layout = None if segments is None else Context(segments[None])
        return layer.apply({"params": params}, x[None], layout)[0]

    @jax.jit
    def influence(x):
        jacobians = [jax.jacrev(functools.partial(apply, s))(x) for s in (None, INTERLEAVED[0])]
        return [jnp.abs(jacobian).max((1, 3)) for jacobian in jacobians]

    for segments, found in zip((None, INTERLEAVED), influence(jnp.float32(X[0])), strict=True):
        sees = visible(segments, True)[0]
        np.testing.assert_array_equal(found[~sees], 0)

        # A token that sees itself alone is centred to nothing.
        assert np.all(found[sees & (sees.sum(-1, keepdims=True) > 1)] > 0)


@functools.partial(jax.jit, static_argnames="causal")
def means_of(v, segments, causal):
    return visible_means(v, segments, causal)


@pytest.mark.parametrize("causal", [False, True])
def test_means_of_any_segments(causal):
    """Of more tokens than a block holds, of every length; what is not finite stays in its own."""
    rng = np.random.default_rng(4)
    lengths = [*range(6), 23]
    segments = rng.permuted(np.repeat(np.arange(7), lengths)[None].repeat(3, 0), axis=1)
    v = rng.standard_normal((3, sum(lengths), 1, 2), "f4")
    sees = (segments[:, :, None] == segments[:, None]) & (np.tri(38, dtype=bool) | (not causal))
    expected = np.einsum("bij,bjhk->bihk", sees / sees.sum(-1, keepdims=True), v)
    plain = means_of(v, segments, causal)
    np.testing.assert_allclose(plain, expected, atol=1e-6)

    v[0, 1], reached = np.nan, sees[0, :, 1]
    found = np.asarray(means_of(v, segments, causal))
    np.testing.assert_array_equal(found[0, ~reached], plain[0, ~reached])
    assert np.isnan(found[0, reached]).all() and not reached.all()
    np.testing.assert_array_equal(found[1:], plain[1:])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_means_are_summed_in_float32(several, causal):
    """In bfloat16 a sum of ones stays at 256."""
    segments = jnp.arange(1000)[None] % 2 if several else None
    means = means_of(jnp.ones((1, 1000, 1, 1), jnp.bfloat16), segments, causal)
    assert means.dtype == jnp.float32
    np.testing.assert_allclose(means, 1, rtol=1e-6)


def test_implementations_agree():
    x, params = jnp.float32(X), jax.tree.map(jnp.float32, random_params())

    @jax.jit
    def apply(x):
        return [
            layer_of(dtype=dtype, implementation=name, causal=True, centre=1.0).apply(
                {"params": params}, x, Context(jnp.asarray(INTERLEAVED))
            )
            for name, dtype in (("auto", "float32"), ("xla", "float32"), ("auto", "bfloat16"))
        ]

    auto, xla, narrow = apply(x)
    np.testing.assert_allclose(auto, xla, rtol=1e-6, atol=1e-6)
    assert narrow.dtype == jnp.bfloat16
    assert relative_error(narrow.astype("float32"), auto) < 0.01  # a rounding is 0.004


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU")
@pytest.mark.parametrize(("segments", "causal"), CASES)
def test_cudnn(segments, causal):
    """The same, but for the rounding of bfloat16; not run without an NVIDIA GPU."""
    x = jax.random.normal(jax.random.key(0), (BATCH, TOKENS, 16), jnp.bfloat16)
    numbers = SEGMENTS[segments]
    layout = None if numbers is None else Context(jnp.asarray(numbers))
    xla, cudnn = (
        Attention(2, 16, jnp.bfloat16, name, causal=causal, centre=1.0) for name in ("xla", "cudnn")
    )
    variables = xla.init(jax.random.key(1), x)
    found, expected = (layer.apply(variables, x, layout) for layer in (cudnn, xla))
    np.testing.assert_allclose(found.astype("float32"), expected.astype("float32"), atol=2e-2)


@pytest.mark.parametrize("value", [1, np.float32(1), np.float64(1)])
def test_every_kind_of_number_serves(value, float64):
    """A numpy float64 does not widen a float32 model."""
    layer = layer_of(dtype=jnp.float32, centre=value)
    params = jax.tree.map(jnp.float32, random_params())
    found = layer.apply({"params": params}, jnp.float32(X))
    expected = layer.clone(centre=1.0).apply({"params": params}, jnp.float32(X))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)
