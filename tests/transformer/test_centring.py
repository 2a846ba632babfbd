"""Centred attention, against explicit [N, N] matrices in numpy and scipy's matrix exponential."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from odeformer import (
    LM,
    DepthConfig,
    LMConfig,
    TextConfig,
    TransformerField,
    VectorField,
    ViTConfig,
    flops,
    integrate,
    make_model,
    solvers,
)
from odeformer.models.decoding import advance, init_cache, predict
from odeformer.models.registry import example_inputs
from odeformer.transformer.attention import Attention, Layout, rotation
from odeformer.transformer.centring import visible_means

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
        layout = None if name == "none" else Layout(segments[name])
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
    params = random_params()
    before = found_in(params)
    params["qkv"]["bias"][2] += 3.0
    for case, found in found_in(params).items():
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
            name: Layout(None if n is None else jnp.asarray(n), turned)
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
        layout = None if segments is None else Layout(segments[None])
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
                {"params": params}, x, Layout(jnp.asarray(INTERLEAVED))
            )
            for name, dtype in (("auto", "float32"), ("xla", "float32"), ("auto", "bfloat16"))
        ]

    auto, xla, narrow = apply(x)
    np.testing.assert_allclose(auto, xla, rtol=1e-6, atol=1e-6)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype("float32"), auto, atol=0.05)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU")
@pytest.mark.parametrize(("segments", "causal"), CASES)
def test_cudnn(segments, causal):
    """The same, but for the rounding of bfloat16; not run without an NVIDIA GPU."""
    x = jax.random.normal(jax.random.key(0), (BATCH, TOKENS, 16), jnp.bfloat16)
    numbers = SEGMENTS[segments]
    layout = None if numbers is None else Layout(jnp.asarray(numbers))
    xla, cudnn = (
        Attention(2, 16, jnp.bfloat16, name, causal=causal, centre=1.0) for name in ("xla", "cudnn")
    )
    variables = xla.init(jax.random.key(1), x)
    found, expected = (layer.apply(variables, x, layout) for layer in (cudnn, xla))
    np.testing.assert_allclose(found.astype("float32"), expected.astype("float32"), atol=2e-2)


BASE = dict(width=16, heads=2, mlp=32)
SHARED = DepthConfig(layers=2, share=2)
PACKED = jnp.asarray(np.array([[1, 1, 2, 2, 2, 1, 0, 0], [3, 3, 3, 1, 1, 1, 1, 0]]))
WORDS = jnp.asarray(np.random.default_rng(0).integers(0, 7, (2, 8)))


def config_of(kind, **changes):
    values = {"depth": DepthConfig(layers=2), **BASE, **changes}
    if kind == "vit":
        return ViTConfig(image_size=8, patch_size=4, channels=1, **values)
    return (LMConfig if kind == "lm" else TextConfig)(7, 8, **values)


def inputs_of(kind):
    if kind == "vit":
        return (jax.random.normal(jax.random.key(0), (2, 8, 8, 1)),)
    return (WORDS, PACKED) if kind == "lm" else (WORDS, PACKED != 0)


@functools.cache
def variables_of(kind, **changes):
    model = make_model(config_of(kind, **changes))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs_of(kind))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [0.3 * rng.standard_normal(x.shape, "f4") for x in leaves])


def primitives(function, *args):
    """How often each primitive stands in a program, those of inner programs too."""
    counts = collections.Counter()

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            counts[equation.primitive.name] += 1
            for inner in flops._jaxprs(equation.params):
                walk(getattr(inner, "jaxpr", inner))

    walk(jax.make_jaxpr(function)(*args).jaxpr)
    return counts


@pytest.mark.parametrize("kind", ["vit", "lm", "text"])
@pytest.mark.parametrize("fused", [False, True])
def test_uncentred_is_the_program_without_it(kind, fused, monkeypatch):
    """What centre adds is the means, their product, their difference and its casts: 0 has none."""
    inputs, variables = inputs_of(kind), variables_of(kind)
    plain, zero, one = (
        primitives(make_model(config_of(kind, fused=fused, **changes)).apply, variables, *inputs)
        for changes in ({}, dict(centre=0.0), dict(centre=1.0))
    )
    assert zero == plain

    batch, tokens = (2, 5) if kind == "vit" else (2, 8)
    v = jnp.zeros((batch, tokens, 2, 8))
    segments = None if kind == "vit" else PACKED
    added = lambda v: v - 1.0 * visible_means(v, segments, kind == "lm")
    assert one - plain == primitives(added, v) and not plain - one
    assert {"vit": "reduce_sum", "lm": "sort", "text": "sort"}[kind] in one - plain

    monkeypatch.setattr("odeformer.transformer.attention.visible_means", pytest.fail)
    jax.eval_shape(make_model(config_of(kind, fused=fused)).apply, variables, *inputs)


@pytest.mark.parametrize("kind", ["vit", "lm", "text"])
def test_parameters_do_not_depend_on_the_centre(kind):
    shapes = [
        jax.eval_shape(
            make_model(config_of(kind, centre=centre)).init, jax.random.key(0), *inputs_of(kind)
        )
        for centre in (0.0, 1.0)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("kind", ["vit", "lm"])
def test_the_fused_sum_is_the_same(kind):
    variables = variables_of(kind)
    models = [
        make_model(config_of(kind, **changes))
        for changes in ({}, dict(centre=1.0), dict(centre=1.0, fused=True))
    ]
    apply = jax.jit(lambda variables, *inputs: [m.apply(variables, *inputs) for m in models])
    plain, centred, fused = apply(variables, *inputs_of(kind))
    np.testing.assert_allclose(fused, centred, rtol=1e-4, atol=1e-5)
    assert np.abs(plain - centred).max() > 1e-3


def test_packed_texts_are_centred_each_alone():
    """Documents that interleave, and padding, give what each gives by itself."""
    lm, classifier = (make_model(config_of(kind, centre=1.0)) for kind in ("lm", "text"))
    segments = np.array([1, 1, 2, 2, 2, 1, 0, 0])
    positions = jnp.asarray([0, 1, 0, 1, 2, 2, 0, 0])[None].repeat(2, 0)
    places = [np.flatnonzero(segments == number) for number in (1, 2)]
    mask = jnp.arange(8)[None].repeat(2, 0) < 6

    @jax.jit
    def apply(variables, text_variables):
        packed = lm.apply(variables, WORDS, jnp.asarray(segments)[None].repeat(2, 0), positions)
        alone = [lm.apply(variables, WORDS[:, place]) for place in places]
        padded = classifier.apply(text_variables, WORDS, mask)
        return packed, alone, padded, classifier.apply(text_variables, WORDS[:, :6])

    packed, alone, padded, shorter = apply(variables_of("lm"), variables_of("text"))
    for place, expected in zip(places, alone, strict=True):
        np.testing.assert_allclose(packed[:, place], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(padded, shorter, rtol=1e-4, atol=1e-5)


BY_DEFAULT = ("lie_trotter", "midpoint")


@pytest.mark.parametrize(
    "solver",
    [
        name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow)
        for name in solvers.NAMES
    ],
)
def test_decoding_equals_the_whole_pass(solver):
    """In chunks that padding fills up: 5 tokens, then 3 of 4 and 4 of 4, by every solver."""
    depth = DepthConfig(layers=2, share=2, solver=solver)
    config = LMConfig(7, 16, centre=1.0, time="additive", depth=depth, **BASE)
    model = LM(config)
    variables = decoded_variables()
    tokens = jnp.asarray(np.random.default_rng(3).integers(0, 7, (2, 12)))

    @jax.jit
    def both(variables):
        cache, logits = init_cache(config, 2), []
        for begin, width, length in ((0, 5, 5), (5, 4, 3), (8, 4, 4)):
            chunk, lengths = tokens[:, begin : begin + width], jnp.full(2, length)
            y, cache = advance(model, variables, chunk, cache, lengths)
            logits.append(predict(model, variables, y)[:, :length])
        return jnp.concatenate(logits, axis=1), cache, model.apply(variables, tokens)

    decoded, cache, whole = both(variables)
    assert cache.sums.shape == (*cache.k.shape[:4], *cache.k.shape[5:])
    assert float(jnp.abs(whole).max()) > 0.5
    np.testing.assert_allclose(decoded, whole, rtol=0, atol=1e-4)


@functools.cache
def decoded_variables():
    config = LMConfig(7, 16, time="additive", depth=DepthConfig(layers=2, share=2), **BASE)
    shapes = jax.eval_shape(LM(config).init, jax.random.key(0), WORDS)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [0.3 * rng.standard_normal(x.shape, "f4") for x in leaves])


def test_the_cache_of_a_plain_model_has_no_sums():
    config = config_of("lm", dtype="bfloat16")
    assert init_cache(config, 2).sums is None
    sums = init_cache(dataclasses.replace(config, centre=1.0), 2).sums
    assert sums.dtype == jnp.float32


@pytest.mark.parametrize(("kind", "fused"), [("vit", True), ("lm", False), ("text", True)])
def test_centring_has_no_matrix_products(kind, fused):
    config = config_of(kind, centre=1.0, depth=DepthConfig(layers=2, adjoint="store"))
    model, inputs = make_model(config), example_inputs(config)
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    loss = lambda variables, *inputs: jnp.sum(model.apply(variables, *inputs))
    assert flops.count(model.apply, variables, *inputs) == flops.forward(config)
    assert flops.count(jax.grad(loss), variables, *inputs) == flops.training(config)
    plain = dataclasses.replace(config, centre=0.0)
    assert flops.training(config) == flops.training(plain)


def test_no_array_has_the_tokens_twice():
    """In the means and in their gradient, of segments too: memory grows with N, not with N^2."""
    tokens = 64
    v = jnp.zeros((1, tokens, 2, 4))
    for causal in (False, True):
        program = jax.make_jaxpr(
            jax.grad(lambda v, c=causal: visible_means(v, jnp.zeros((1, tokens), int), c).sum())
        )(v)
        assert f"{tokens},{tokens}" not in str(program)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, 1e39, "1", True, None])
def test_a_centre_that_is_no_finite_number_is_refused(value):
    for make in (
        lambda: config_of("vit", centre=value),
        lambda: config_of("lm", centre=value),
        lambda: config_of("text", centre=value),
        lambda: TransformerField(16, 2, 32, centre=value),
        lambda: Attention(2, 16, centre=value),
    ):
        with pytest.raises(ValueError, match="centre is a finite number of float32; .* was given"):
            make()


@pytest.mark.parametrize("value", [1, np.float32(1), np.float64(1)])
def test_every_kind_of_number_serves(value, float64):
    """A numpy float64 does not widen a float32 model."""
    layer = layer_of(dtype=jnp.float32, centre=value)
    params = jax.tree.map(jnp.float32, random_params())
    found = layer.apply({"params": params}, jnp.float32(X))
    expected = layer.clone(centre=1.0).apply({"params": params}, jnp.float32(X))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)


def test_strict_modes():
    """What JAX refuses there it refuses while it traces."""
    config = config_of("lm", centre=1.0, dtype="bfloat16")
    classifier = make_model(config_of("text", centre=1.0))
    loss = lambda variables: jnp.sum(classifier.apply(variables, *inputs_of("text")))

    def read(variables):
        lengths = jnp.full(2, 3, jnp.int32)
        return advance(LM(config), variables, WORDS[:, :3], init_cache(config, 2), lengths)

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        jax.eval_shape(jax.grad(loss), variables_of("text"))
        jax.eval_shape(read, variables_of("lm"))


@pytest.mark.parametrize("solver", solvers.NAMES)
def test_every_solver_takes_it(solver):
    """Traced: one value for each is computed by the slow tests of decoding."""
    config = config_of("text", centre=1.0, depth=DepthConfig(layers=2, share=2, solver=solver))
    model, inputs = make_model(config), inputs_of("text")
    loss = lambda variables: jnp.sum(model.apply(variables, *inputs))
    assert jax.eval_shape(loss, variables_of("text", depth=SHARED)).shape == ()
