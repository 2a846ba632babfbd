"""Convolution and damping: by hand in numpy, segments, causality, decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import (
    LM,
    Context,
    DepthConfig,
    LMConfig,
    ODEStack,
    TransformerField,
    integrate,
    make_vector_field,
    solvers,
    terms,
)
from odeformer.models.decoding import advance, decode, init_cache, predict
from odeformer.transformer.convolution import Convolution
from odeformer.transformer.field import init_params
from tests.helpers.trees import noisy

RNG = np.random.default_rng(0)
X, KERNEL, BIAS = RNG.normal(size=(2, 7, 4)), RNG.normal(size=(3, 4, 4)), RNG.normal(size=4)
PARAMS = {"params": {"shifted": {"kernel": KERNEL, "bias": BIAS}}}
SEGMENTS = {"none": np.zeros((2, 7)), "mixed": RNG.integers(-1, 2, (2, 7))}
NEIGHBOURS = {False: (-1, 0, 1), True: (-2, -1, 0)}


def by_hand(segments, causal):
    out = np.zeros(X.shape) + BIAS
    for b, i in np.ndindex(2, 7):
        for s, offset in enumerate(NEIGHBOURS[causal]):
            j = i + offset
            if 0 <= j < 7 and segments[b, j] == segments[b, i]:
                out[b, i] += X[b, j] @ KERNEL[s]
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("segments", SEGMENTS)
def test_a_convolution_is_its_sum(float64, segments, causal):
    """Zeros beyond the ends, and nothing of another segment, wherever its tokens lie."""
    numbers = SEGMENTS[segments]
    layer = Convolution(4, jnp.float64, causal)
    apply = lambda x: layer.apply(PARAMS, x, Context(jnp.asarray(numbers)))
    np.testing.assert_allclose(apply(X), by_hand(numbers, causal), rtol=0, atol=1e-12)
    if segments == "none":
        np.testing.assert_array_equal(layer.apply(PARAMS, X), apply(X))

    # The influence of every token on every other, exactly 0 where there is none.
    influence = np.abs(jax.jacrev(lambda x: apply(x)[1])(jnp.asarray(X))[:, :, 1]).sum((1, 3))
    i, j = np.indices((7, 7))
    sees = np.isin(j - i, NEIGHBOURS[causal]) & (numbers[1][i] == numbers[1][j])
    np.testing.assert_array_equal(influence > 0, sees)


def test_damping_decays_at_its_rates(float64):
    """y(t) = exp(-lambda t) y(0), which an adaptive solve finds; 0.1 at initialisation."""
    field = TransformerField(width=4, heads=2, mlp=4, dtype=jnp.float64, terms=("damping",))
    theta = init_params(field, jax.random.key(0), jnp.asarray(X))
    assert set(theta) == {"damping_layer"}
    np.testing.assert_allclose(np.log1p(np.exp(theta["damping_layer"]["raw"])), 0.1, rtol=1e-12)

    raw = RNG.normal(size=4)
    params = ({"damping_layer": {"raw": raw}}, 0.0)
    solve = lambda y: integrate(
        make_vector_field(field), y, params, t1=2.0, solver="dopri8", rtol=1e-12, atol=1e-12
    )
    expected = X * np.exp(-2 * np.log1p(np.exp(raw)))
    np.testing.assert_allclose(jax.jit(solve)(jnp.asarray(X)).y1, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", solvers.NAMES)
def test_every_solver_takes_them(solver):
    depth = DepthConfig(layers=2, solver=solver)
    field = TransformerField(width=4, heads=2, mlp=4, terms=("attention", "mlp", "conv", "damping"))
    stack = ODEStack(depth, field)
    shapes = jax.eval_shape(lambda: stack.init_with_output(jax.random.key(0), jnp.float32(X)))
    solution, _ = shapes
    assert solution.y1.shape == X.shape and solution.nfe.shape == (2, 4)


CONFIG = LMConfig(7, 16, width=8, heads=2, mlp=12, terms=("attention", "conv", "mlp", "damping"))
TOKENS = jnp.asarray(RNG.integers(0, 7, (3, 12)))


def model_of(**changes):
    """A causal model of all terms that there are, and parameters that are nowhere zero."""
    config = LMConfig(**{**vars(CONFIG), **changes})
    model = LM(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return model, noisy(zeros, 0.3)


def test_no_later_token_has_any_influence():
    """Nor has one of another document: exactly 0, in the slopes of every term that there is."""
    field = TransformerField(width=8, heads=2, mlp=12, causal=True, terms=tuple(terms.NAMES))
    y = jax.random.normal(jax.random.key(1), (1, 12, 8))
    shapes = jax.eval_shape(lambda key: init_params(field, key, y), jax.random.key(0))
    theta = noisy(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), 0.3)
    segments = jnp.array([[0] * 5 + [1] * 7])

    @jax.jit
    def influences(segments):
        each = []
        for name in field.terms:
            slope = lambda y, name=name: field.apply(
                {"params": theta}, name, 0.0, y, False, Context(segments), method="term"
            )
            jacobian = jax.jacrev(lambda y, slope=slope: slope(y)[0].sum(-1))(y)
            each.append(jnp.abs(jacobian[:, 0]).sum(-1))
        return each

    later = ~np.tri(12, dtype=bool)
    apart = np.asarray(segments[0])[:, None] != np.asarray(segments[0])[None]
    for numbers, hidden in ((jnp.zeros_like(segments), later), (segments, later | apart)):
        for name, influence in zip(field.terms, influences(numbers), strict=True):
            assert np.all(influence[hidden] == 0), name
            assert np.all(np.diag(influence) > 0), name


@pytest.mark.parametrize(
    "solver",
    ["strang", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lie_trotter", "rk4"))],
)
def test_decoding_is_the_whole_pass(solver):
    """In chunks of several lengths, filled up; conv keeps two inputs for each evaluation."""
    depth = DepthConfig(layers=2, share=2, steps=2, solver=solver)
    model, variables = model_of(depth=depth, time="additive")

    @jax.jit
    def both(variables):
        cache, logits = init_cache(model.config, 3), []
        for begin, width, length in ((0, 4, 4), (4, 3, 1), (5, 3, 2), (7, 5, 5)):
            chunk = TOKENS[:, begin : begin + width]
            y, cache = advance(model, variables, chunk, cache, jnp.full(3, length))
            logits.append(predict(model, variables, y)[:, :length])
        return jnp.concatenate(logits, axis=1), cache, model.apply(variables, TOKENS)

    decoded, cache, whole = both(variables)
    each = solvers.evaluations(solver, 4)
    assert set(cache.terms) == {"attention", "conv"}
    assert cache.terms["conv"].shape == (1, 2, each[1], 3, 2, 8)
    assert float(jnp.abs(whole).max()) > 0.5
    np.testing.assert_allclose(decoded, whole, rtol=0, atol=1e-4)


def test_prompts_of_different_lengths():
    """The shortest is one token long: of its two inputs before the next one, one is padding."""
    model, variables = model_of(depth=DepthConfig(layers=1, solver="lie_trotter"))
    lengths = jnp.array([1, 4, 3])
    read = jax.jit(lambda *args: decode(model, *args))
    first, cache = read(variables, TOKENS[:, :4], init_cache(model.config, 3), lengths)
    following = jnp.take_along_axis(TOKENS, lengths[:, None], axis=1)
    second, _ = read(variables, following, cache, jnp.ones(3, int))
    whole = model.apply(variables, TOKENS)
    rows = jnp.arange(3)
    np.testing.assert_allclose(first, whole[rows, lengths - 1], rtol=0, atol=1e-4)
    np.testing.assert_allclose(second, whole[rows, lengths], rtol=0, atol=1e-4)


def test_a_term_without_cached_decoding_is_refused(tables):
    conv = terms.get("conv")
    terms.register("mute", terms.Term(make=conv.make, flops=conv.flops, causal=True))
    config = LMConfig(7, 16, width=8, heads=2, mlp=12, terms=("attention", "mute"))
    with pytest.raises(ValueError, match="'mute' has no cached decoding: .*pass whole sequences"):
        init_cache(config, 1)
