"""Incremental decoding: the logits of a full pass, whatever the solver and the chunks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import LM, DepthConfig, LMConfig, integrate, solvers
from odeformer.models.decoding import advance, decode, init_cache, predict
from odeformer.ode.steps import staged_step

BLOCK, VOCABULARY = 64, 7
SMALL = LMConfig(vocabulary=VOCABULARY, block_size=BLOCK, width=16, heads=2, mlp=32)
TOKENS = jax.random.randint(jax.random.key(0), (2, BLOCK), 0, VOCABULARY)
SINGLE = dict(layers=2)
SHARED = dict(layers=4, share=2, steps=3)
SHARED_KEYS = dict(kv_heads=1, head_size=6, qk_norm=True, norm="rms", gated=True, centre=0.5)


@functools.cache
def make_variables(config):
    """Parameters that are zero nowhere."""
    variables = jax.eval_shape(LM(config).init, jax.random.key(0), TOKENS)
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [0.3 * rng.standard_normal(x.shape, "f4") for x in leaves])


def make(depth, **changes):
    """A model and its parameters, the same for every solver."""
    config = dataclasses.replace(SMALL, depth=DepthConfig(**depth), **changes)
    neutral = dataclasses.replace(config.depth, solver="euler", reversible=None)
    neutral = dataclasses.replace(config, depth=neutral)
    return LM(config), make_variables(neutral)


def full_pass(model, variables, tokens=TOKENS):
    return jax.jit(model.apply)(variables, tokens)


def decode_all(model, variables, width, lengths):
    """Logits of every token, read in chunks of those lengths, each filled up to one width."""
    begins = np.cumsum([0, *lengths[:-1]])
    numbers = begins[:, None] + np.arange(width)  # of the tokens of each chunk
    chunks = TOKENS[:, np.minimum(numbers, BLOCK - 1)].swapaxes(0, 1)

    def read(cache, xs):
        tokens_BC, length = xs
        lengths_B = jnp.full(len(TOKENS), length)
        y_BCD, cache = advance(model, variables, tokens_BC, cache, lengths_B)
        return cache, predict(model, variables, y_BCD)

    cache = init_cache(model.config, len(TOKENS))
    cache, logits = jax.lax.scan(read, cache, (chunks, jnp.array(lengths)))
    real = np.arange(width) < np.array(lengths)[:, None]
    return jnp.swapaxes(logits, 1, 2)[real].swapaxes(0, 1), cache.filled


def compare(model, variables, width, lengths, atol=1e-4):
    decoded, filled = jax.jit(lambda v: decode_all(model, v, width, lengths))(variables)
    assert filled.tolist() == [BLOCK] * len(TOKENS)
    full = full_pass(model, variables)
    assert float(jnp.abs(full).max()) > 0.5
    np.testing.assert_allclose(decoded, full, atol=atol, rtol=0)


PROMPT_ONES_THREES = (5, [5, *[1] * 29, *[3] * 10])  # one program of that width for all
ONES = (1, [1] * BLOCK)


@pytest.mark.parametrize("solver", solvers.NAMES)
def test_groups_of_several_steps(solver):
    compare(*make(SHARED | {"solver": solver}), *PROMPT_ONES_THREES)


@pytest.mark.parametrize(
    ("basis", "coefficients", "solver"), [("hat", 3, "midpoint"), ("legendre", 3, "strang")]
)
def test_weights_in_a_basis(basis, coefficients, solver):
    depth = dict(layers=4, basis=basis, coefficients=coefficients, solver=solver, steps=2)
    compare(*make(depth), *PROMPT_ONES_THREES)


@pytest.mark.filterwarnings("ignore:reversible")
@pytest.mark.parametrize(
    "solver",
    ["strang", *(pytest.param(name, marks=pytest.mark.slow) for name in ("midpoint", "rk4"))],
)
def test_a_reversible_pair(solver):
    """Each state of the pair evaluates the terms: the caches are doubled."""
    depth = SHARED | {"solver": solver, "reversible": 0.99}
    model, variables = make(depth)
    compare(model, variables, *PROMPT_ONES_THREES)
    (keys,) = jax.tree.leaves(init_cache(model.config, 1).terms["attention"].k)
    assert keys.shape[2] == 2 * solvers.evaluations(solver, 2)[0]


BY_DEFAULT = ("lie_trotter", "euler", "rk4")  # the test above has all of them


@pytest.mark.parametrize(
    "solver",
    [
        *BY_DEFAULT,
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in solvers.NAMES
            if name not in BY_DEFAULT
        ),
    ],
)
def test_groups_of_a_layer(solver):
    compare(*make(SINGLE | {"solver": solver}), *ONES)


@pytest.mark.parametrize(
    ("solver", "changes"),
    [
        ("strang", dict(time="additive", positions="learned")),
        ("midpoint", dict(time="additive", tied=False, layer_scale=0.5)),
        ("euler", dict(fused=True, positions="learned")),
        ("heun", SHARED_KEYS),
    ],
)
def test_time_positions_and_head(solver, changes):
    compare(*make(SHARED | {"solver": solver}, **changes), *ONES)


def test_a_cache_holds_the_heads_of_keys_alone():
    config = dataclasses.replace(SMALL, depth=DepthConfig(**SINGLE), **SHARED_KEYS)
    keys = jax.eval_shape(lambda: init_cache(config, 3, places=9)).terms["attention"]
    assert keys.k.shape == keys.v.shape == (2, 1, 1, 3, 9, 1, 6)
    assert keys.sums.shape == (2, 1, 1, 3, 1, 6)


def test_bfloat16():
    model, variables = make(SINGLE | {"solver": "heun"}, dtype="bfloat16")
    assert init_cache(model.config, 1).terms["attention"].k.dtype == jnp.bfloat16
    compare(model, variables, *ONES, atol=0.01)  # 0.004 was seen, of logits up to 1.3


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_prompts_of_different_lengths_read_as_each_alone(positions):
    """The second chunk's filling reaches behind the block's end, too."""
    model, variables = make(SINGLE, positions=positions)
    step = jax.jit(functools.partial(decode, model))
    tokens = jnp.tile(TOKENS, (2, 1))[:3].at[2].set(5)
    full = full_pass(model, variables, tokens)
    cache, begin = init_cache(model.config, 3), np.zeros(3, int)
    for lengths in (np.array([60, 7, 1]), np.array([1, 51, 2])):
        end = begin + lengths
        chunk = np.full((3, 60), 6)
        for row, text, i, j in zip(chunk, tokens, begin, end, strict=True):
            row[: j - i] = text[i:j]
        logits, cache = step(variables, chunk, cache, lengths)
        assert cache.filled.tolist() == end.tolist()
        np.testing.assert_allclose(logits, full[np.arange(3), end - 1], atol=1e-4)
        begin = end


def test_places():
    model, variables = make(SINGLE)
    cache = init_cache(model.config, 2, places=9)
    keys = cache.terms["attention"]
    assert keys.k.shape == keys.v.shape == (2, 1, 1, 2, 9, 2, 8)
    logits, _ = jax.jit(functools.partial(decode, model))(variables, TOKENS[:, :9], cache)
    np.testing.assert_allclose(logits, full_pass(model, variables)[:, 8], atol=1e-4)


@pytest.mark.parametrize("name", solvers.NAMES)
def test_a_staged_step_is_one_of_integrate(name, smooth):
    field, y0, params = smooth
    seen = []

    def evaluate(term, n, t, y):
        seen.append((term, n))
        return (field if term is None else field.terms[term])(t, y, params)

    y1 = staged_step(name, 2, evaluate, jnp.float32(0.2), jnp.float32(0.9), y0)
    expected = integrate(field, y0, params, 0.2, 0.9, name, steps=1).y1
    np.testing.assert_allclose(y1, expected, atol=1e-5)
    for term, count in enumerate(solvers.evaluations(name, 2)):
        assert [n for j, n in seen if j in (None, term)] == list(range(count))
