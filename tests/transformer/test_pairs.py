"""A reversible pair through all groups: gradients against stored ones, memory, what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import DepthConfig, ODEStack, TransformerField, VectorField, terms
from odeformer.ode.reversible import begin, relative_gap, step, undo
from odeformer.transformer.bases import weights_over_depth
from odeformer.transformer.depth import RECOVERED, STATES
from odeformer.transformer.groups import Groups, Place
from odeformer.transformer.pairs import through_pairs
from tests.helpers.terms import gates
from tests.helpers.trees import noisy, relative_error

FIELD = TransformerField(width=16, heads=2, mlp=32, dropout=0.1, drop_path=0.1, time="additive")
WIDE = TransformerField(width=64, heads=4, mlp=128, dropout=0.1, drop_path=0.1)


def make(field, y, dtype=jnp.float32, **depth):
    """A stack of a pair by adjoint, as a function (adjoint) -> stack, and its parameters."""
    stack = lambda adjoint="store": ODEStack(
        DepthConfig(**{"reversible": 0.999, "adjoint": adjoint} | depth), field
    )
    params = jax.jit(stack().init)(jax.random.key(1), y)
    return stack, jax.tree.map(lambda x: x.astype(dtype), params)


def gradient(stack, params, y, mutable=()):
    """The gradient of a loss with respect to parameters and state, with dropout; and the gap."""

    def loss(params, y):
        rngs = {"dropout": jax.random.key(3)}
        solution, aux = stack.apply(params, y, train=True, rngs=rngs, mutable=list(mutable))
        kept = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(aux.get(STATES, {})))
        return jnp.mean(solution.y1**2) + kept, (solution.gap, aux)

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, y)


@pytest.mark.parametrize(
    "depth",
    [
        pytest.param(dict(layers=4, share=2, solver="lie_trotter"), marks=pytest.mark.slow),
        dict(layers=2, solver="midpoint", basis="legendre", coefficients=3),
        pytest.param(
            dict(layers=2, solver="rk4", basis="hat", coefficients=3, streams=True),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            dict(layers=3, solver="strang", basis="fourier", coefficients=3, steps=2),
            marks=pytest.mark.slow,
        ),
        pytest.param(dict(layers=3, solver="midpoint", streams=True), marks=pytest.mark.slow),
        pytest.param(dict(layers=4, share=4, solver="rk4", streams=True), marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:reversible")
def test_gradients_equal_the_stored_ones(float64, tables, depth):
    """With dropout, the time, a loss on the states on the way, and a term of two streams."""
    terms.register("gates", gates())
    streams = ("gates",) if depth.pop("streams", False) else ()
    field = FIELD.clone(terms=("attention", "mlp", *streams), dtype=jnp.float64)
    y = jax.random.normal(jax.random.key(0), (2, 5, 16), jnp.float64)
    stack, params = make(field, y, jnp.float64, **depth)
    params = noisy(params)
    stored, (gap, _) = gradient(stack("store"), params, y, [STATES])
    found, (same_gap, aux) = gradient(stack("reversible"), params, y, [STATES, RECOVERED])
    assert relative_error(found, stored) < 1e-10
    np.testing.assert_allclose(gap, same_gap, rtol=1e-8)
    assert gap.shape == (2,) and float(gap.min()) > 1e-8
    assert float(aux[RECOVERED]["error"]) < 1e-12
    assert aux[STATES]["y"].shape == (depth["layers"] // depth.get("share", 1) + 1, 2, 5, 16)


def test_the_pair_spans_the_groups():
    """Two groups of the same weights are one of twice the length: z runs from group to group."""
    field, y = FIELD.clone(time="none"), jax.random.normal(jax.random.key(0), (2, 5, 16))
    depth = dict(layers=4, solver="midpoint")
    one, params = make(field, y, share=4, **depth)
    two, _ = make(field, y, share=2, **depth)
    twice = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), params)
    whole, parts = one().apply(params, y), two().apply(twice, y)
    np.testing.assert_allclose(parts.y1, whole.y1, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parts.gap, whole.gap, rtol=1e-2)
    assert parts.nfe.tolist() == [[8, 8]] * 2 and parts.accepted.tolist() == [2, 2]


@pytest.mark.filterwarnings("ignore:reversible")
def test_the_error_is_that_of_the_solution_by_hand():
    """Over two groups, bit for bit: by powers of two every product is exact, and sums are not.

    The other state comes back with an error of its own.
    """
    y0 = jax.random.normal(jax.random.key(0), (2, 3, 4))
    grow = lambda half, t0, t1, y: (t1 - t0) * 2.0**3 * y
    ends = [(0.0, 0.5), (0.5, 1.0)]
    pair = begin(y0)
    for t0, t1 in 2 * ends:
        pair = step(0.5, grow, pair, t0, t1)
    for t0, t1 in reversed(2 * ends):
        pair = undo(0.5, grow, pair, t0, t1)
    expected, other = relative_gap(y0, pair.y), relative_gap(y0, pair.z)
    assert 0 < float(expected) != float(other) > 0

    depth = DepthConfig(layers=2, solver="euler", steps=2, reversible=0.5)
    field = VectorField((lambda t, y, params: 2.0**3 * y,))
    theta = weights_over_depth(depth, jnp.zeros(2))
    groups = Groups(field, theta, Place(jnp.arange(2.0)), None)
    found = jax.jit(lambda y0: through_pairs(groups, depth, y0, None)[1].error())(y0)
    assert float(found) == float(expected)


def temporary(field, y, adjoint, **depth):
    stack, params = make(field, y, adjoint=adjoint, **depth)
    loss = lambda params, y: jnp.mean(stack(adjoint).apply(params, y).y1 ** 2)
    compiled = jax.jit(jax.grad(loss)).lower(params, y).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_depth():
    field = FIELD.clone(dropout=0.0, drop_path=0.0, time="none")
    y = jnp.zeros((16, 32, 16))
    few, many = (
        temporary(field, y, "reversible", layers=layers, solver="midpoint") for layers in (4, 32)
    )
    assert many < 1.1 * few


@pytest.mark.slow
@pytest.mark.parametrize("basis", ["hat", "legendre"])
def test_memory_of_weights_in_a_basis_does_not_grow_with_depth(basis):
    field = FIELD.clone(dropout=0.0, drop_path=0.0, time="none")
    y, depth = jnp.zeros((16, 32, 16)), dict(solver="midpoint", basis=basis, coefficients=5)
    few, many = (temporary(field, y, "reversible", layers=n, **depth) for n in (4, 32))
    assert many < 1.1 * few


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["midpoint", "rk4"])
def test_memory_of_deep_stacks(solver):
    field, y = WIDE.clone(dropout=0.0, drop_path=0.0), jnp.zeros((8, 32, 64))
    size = lambda adjoint="reversible", **depth: temporary(
        field, y, adjoint, solver=solver, **depth
    )
    deep = size(layers=96)
    assert deep < 1.1 * size(layers=12)
    assert size(layers=64, share=64) < 1.1 * size(layers=4, share=4)
    assert deep < 0.5 * size("checkpoint", layers=96)


def check_deep_gradients(solver, share, dtype, bound, noise=0.0):
    """Of 48 layers, dropout and drop-path acting, whose field computes in that dtype."""
    is_exact = dtype == jnp.float64
    shape, state_dtype = ((2, 8, 64), jnp.float64) if is_exact else ((8, 32, 64), jnp.float32)
    y = jax.random.normal(jax.random.key(0), shape, state_dtype)
    depth = dict(layers=48, share=share, solver=solver)
    stack, params = make(WIDE.clone(dtype=dtype), y, state_dtype, **depth)
    params = noisy(params, noise)
    stored, _ = gradient(stack("store"), params, y)
    found, _ = gradient(stack("reversible"), params, y)
    assert relative_error(found, stored) < bound


SHARES = pytest.mark.parametrize("share", [1, 48])
SOLVERS = pytest.mark.parametrize("solver", ["midpoint", "rk4"])


@pytest.mark.slow
@SOLVERS
@SHARES
def test_gradients_of_48_layers_in_float32(solver, share):
    """At initial weights, whose kernels have the deviation 1 / sqrt(fan-in)."""
    check_deep_gradients(solver, share, jnp.float32, 1e-5)


@pytest.mark.slow
@SOLVERS
@SHARES
def test_gradients_of_48_layers_of_a_bfloat16_field(solver, share):
    """A state that comes back in another last digit is rounded to other numbers, and spreads."""
    is_spread = (solver, share) == ("midpoint", 48)
    check_deep_gradients(solver, share, jnp.bfloat16, 2e-2 if is_spread else 1e-2)


def test_a_bfloat16_field_steps_back_in_the_numbers_of_its_steps_forth():
    """0.02 where the pullback's own value of attention, which is rounded elsewhere, is taken."""
    field = WIDE.clone(terms=("attention",), width=32, dropout=0.0, drop_path=0.0, dtype="bfloat16")
    y = jax.random.normal(jax.random.key(0), (4, 16, 32))
    stack, params = make(field, y, layers=16, share=16, solver="midpoint")
    stored, _ = gradient(stack("store"), params, y)
    found, _ = gradient(stack("reversible"), params, y)
    assert relative_error(found, stored) < 5e-3


@pytest.mark.slow
@SOLVERS
@SHARES
def test_gradients_of_48_layers_in_float64(float64, solver, share):
    check_deep_gradients(solver, share, jnp.float64, 1e-10)


@pytest.mark.slow
@SHARES
def test_gradients_of_48_layers_with_larger_weights(share):
    """Kernels of 1.3 times that deviation, no bias and no scale that is zero."""
    check_deep_gradients("midpoint", share, jnp.float32, 5e-4, noise=0.1)
