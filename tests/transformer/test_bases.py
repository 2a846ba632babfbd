"""Weights as a function of depth: bases, theta at each stage's own time, gradients, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import handwritten
from odeformer import (
    DepthConfig,
    ODEStack,
    TransformerField,
    VectorField,
    ViTConfig,
    flops,
    make_model,
    solvers,
)
from odeformer.ode.integrate import solve
from odeformer.ode.problem import SolveSettings
from odeformer.transformer.bases import BASES, functions, weights_over_depth
from tests.helpers.trees import noisy
from tests.ode.test_solvers import TRUE_ORDER

FIELD = TransformerField(width=16, heads=2, mlp=32)
TIMES = np.linspace(0.0, 6.0, 25)
# Each on 6 layers, with theta of all its coefficients.
DEPTHS = {
    "hat": dict(layers=6, basis="hat", coefficients=4),
    "legendre": dict(layers=6, basis="legendre", coefficients=3),
    "fourier": dict(layers=6, basis="fourier", coefficients=3),
}


@functools.cache
def state():
    return jax.random.normal(jax.random.key(0), (2, 5, 16))


@functools.cache
def make_params(basis):
    """Coefficients that are zero nowhere, small where theta(t) adds many of them up."""
    stack = ODEStack(DepthConfig(**DEPTHS[basis]), FIELD)
    return noisy(jax.jit(stack.init)(jax.random.key(1), state()), 0.02)["params"]["groups"]


def apply(params, y, **depth):
    return ODEStack(DepthConfig(**depth), FIELD).apply({"params": {"groups": params}}, y)


def theta(basis, params, t):
    """theta(t) by NumPy's own polynomials, interpolation and waves."""
    if basis == "legendre":
        phi = np.polynomial.legendre.legvander(np.array([t / 3 - 1]), 2)[0]
    elif basis == "hat":
        phi = [np.interp(t, [0, 2, 4, 6], np.eye(4)[k]) for k in range(4)]
    else:
        phi = [1.0, np.cos(np.pi * t / 3), np.sin(np.pi * t / 3)]
    return jax.tree.map(lambda w: np.einsum("k,k...->...", phi, w), params)


def test_functions_by_their_definitions():
    legendre = np.polynomial.legendre.legvander(TIMES / 3 - 1, 5)
    np.testing.assert_allclose(functions("legendre", 6, 6, TIMES), legendre, atol=1e-13)
    assert functions("legendre", 1, 6, TIMES).tolist() == [[1.0]] * 25

    nodes = np.linspace(0, 6, 5)
    hat = np.stack([np.interp(TIMES, nodes, row) for row in np.eye(5)], axis=-1)
    np.testing.assert_allclose(functions("hat", 5, 6, TIMES), hat, atol=1e-14)

    waves = [f(2 * np.pi * k * TIMES / 6) for k in (1, 2) for f in (np.cos, np.sin)]
    fourier = np.stack([np.ones(25), *waves], axis=-1)
    np.testing.assert_allclose(functions("fourier", 5, 6, TIMES), fourier, atol=1e-14)

    steps = functions("constant", 3, 6, np.array([0.0, 1.99, 2.0, 5.9, 6.0]))
    assert steps.argmax(axis=-1).tolist() == [0, 0, 1, 2, 2] and steps.sum() == 5


@pytest.mark.parametrize("basis", BASES)
def test_functions_are_held_beyond_the_ends_and_follow_the_dtype(basis):
    beyond, ends = (functions(basis, 3, 6, np.array(t)) for t in ([-1.0, 7.5], [0.0, 6.0]))
    np.testing.assert_array_equal(beyond, ends)
    found = functions(basis, 3, 6, jnp.asarray(TIMES, jnp.float32))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, functions(basis, 3, 6, TIMES), atol=2e-6)


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("basis", DEPTHS)
def test_each_group_reads_theta_at_its_own_time(basis, start):
    """On its local time, and of a stack that begins later as of one that begins at 0."""
    depth, rng = DepthConfig(**DEPTHS[basis]), np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(depth.sets, 2)), jnp.float32)}
    weights = weights_over_depth(depth, params, start)
    for group in range(depth.groups):
        offset = group * depth.length
        scanned = jax.tree.map(lambda w, n=group: w[n], weights.scanned)
        own = weights.of_group(scanned, weights.common)
        for s in depth.length * np.array([0, 0.3, 1]):
            found = weights.at(own, jnp.float32(s), jnp.float32(start + offset))
            expected = theta(basis, params, offset + s)
            np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "basis",
    ["legendre", *(pytest.param(name, marks=pytest.mark.slow) for name in ("hat", "fourier"))],
)
def test_each_stage_has_the_weights_of_its_own_time(basis):
    """Strang and midpoint by hand: f_2 at t and t + h / 2, f_1 at t; the sum at t and t + h / 2."""
    y, params = state(), make_params(basis)
    at = functools.partial(theta, basis, params)
    attention, mlp = handwritten.attention, handwritten.mlp

    total = lambda t, y: attention(at(t), y) + mlp(at(t), y)
    expected = {"midpoint": y, "strang": y}
    for t in range(6):
        z = expected["midpoint"]
        expected["midpoint"] = z + total(t + 0.5, z + total(t, z) / 2)

        z = expected["strang"]
        z = z + mlp(at(t), z) / 2
        z = z + attention(at(t), z)
        expected["strang"] = z + mlp(at(t + 0.5), z) / 2

    # Of hat's elements each is two layers long, and has as many steps by default.
    for solver, by_hand in expected.items():
        found = jax.jit(functools.partial(apply, solver=solver, **DEPTHS[basis]))(params, y)
        np.testing.assert_allclose(found.y1, by_hand, rtol=1e-4, atol=1e-4)
        assert int(found.accepted.sum()) == 6


def test_a_later_stack_has_its_own_time():
    """theta of a stack that begins at layer 3 is that of one that begins at layer 0."""
    y, params = state(), make_params("legendre")
    first, later = (
        jax.jit(ODEStack(DepthConfig(**DEPTHS["legendre"]), FIELD, start=start).apply)(
            {"params": {"groups": params}}, y
        )
        for start in (0, 3)
    )
    np.testing.assert_allclose(later.y1, first.y1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "basis",
    ["hat", *(pytest.param(name, marks=pytest.mark.slow) for name in ("legendre", "fourier"))],
)
def test_adaptive_steps_approach_fine_ones(basis):
    y, params = state(), make_params(basis)
    solve = lambda **how: jax.jit(functools.partial(apply, **how, **DEPTHS[basis]))(params, y)
    adaptive, fine = solve(solver="tsit5", rtol=1e-5), solve(solver="rk4", steps=16)
    np.testing.assert_allclose(adaptive.y1, fine.y1, rtol=1e-3, atol=1e-3)
    assert adaptive.accepted.shape == ((3,) if basis == "hat" else (6,))


def test_initial_weights_are_the_same_at_every_depth():
    """w_0 is a layer's, all else 0; the nodes of hat are drawn each for itself."""
    inits = {
        basis: jax.jit(ODEStack(DepthConfig(**DEPTHS[basis]), FIELD).init)(
            jax.random.key(1), state()
        )["params"]["groups"]["mlp_layer"]["up"]["kernel"]
        for basis in ("legendre", "fourier", "hat")
    }
    for basis in ("legendre", "fourier"):
        assert inits[basis].shape == (3, 16, 32)
        assert float(jnp.abs(inits[basis][0]).min()) > 0 and not inits[basis][1:].any()
    assert inits["hat"].shape == (4, 16, 32)
    assert len(np.unique(np.asarray(inits["hat"])[:, 0, 0])) == 4


# A field of two terms whose weights are a smooth function of the depth, as legendre.
SMOOTH = DepthConfig(layers=2, basis="legendre", coefficients=3)


def small_problem(dtype):
    """A field of two terms whose weights are legendre's at the time of each evaluation."""
    rng = np.random.default_rng(0)
    w = {"a": rng.normal(size=(3, 4, 4)), "b": rng.normal(size=(3, 4))}
    y = jnp.asarray(rng.normal(size=(2, 4)), dtype)
    weights = weights_over_depth(SMOOTH, jax.tree.map(lambda x: jnp.asarray(x / 2, dtype), w))
    at = lambda t, w: weights.at(w, t, jnp.zeros((), dtype))
    field = VectorField(
        (
            lambda t, y, w: jnp.tanh(y @ at(t, w)["a"]),
            lambda t, y, w: jnp.sin(y * at(t, w)["b"]),
        )
    )
    return field, y, weights.of_group(None, weights.common)


@pytest.mark.parametrize("name", solvers.NAMES)
def test_order_of_convergence_with_smooth_weights(float64, name):
    field, y, w = small_problem(jnp.float64)

    def end(solver, steps):
        return solve(field, y, w, SolveSettings(solver=solver, steps=steps), t1=2.0).y1

    counts = [2, 4, 8] if name == "dopri8" else [4, 8, 16]
    exact = end("dopri8", 64)
    errors = [jnp.linalg.norm(end(name, n) - exact) for n in counts]
    slope = -np.polyfit(np.log(counts), np.log(np.array(errors)), 1)[0]
    assert slope >= TRUE_ORDER[name] - 0.35


@pytest.mark.parametrize(
    "settings",
    [
        dict(solver="rk4", steps=2, adjoint="checkpoint"),
        dict(solver="strang", steps=2, adjoint="store"),
        pytest.param(dict(solver="rk4", steps=2, adjoint="recursive"), marks=pytest.mark.slow),
        pytest.param(dict(solver="midpoint", steps=2, adjoint="direct"), marks=pytest.mark.slow),
        dict(solver="rk4", steps=64, adjoint="backsolve"),
        dict(solver="bosh3", rtol=1e-7, atol=1e-7, max_steps=256, adjoint="checkpoint"),
        pytest.param(
            dict(solver="tsit5", rtol=1e-9, atol=1e-9, max_steps=256, adjoint="direct"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda settings: f"{settings['solver']}-{settings['adjoint']}",
)
def test_gradients_are_those_of_finite_differences(float64, settings):
    """Along one direction of all coefficients; step sizes of tolerances carry no gradient."""
    field, y, w = small_problem(jnp.float64)
    settings = SolveSettings(**settings)
    loss = jax.jit(lambda w: jnp.sum(jnp.sin(solve(field, y, w, settings, t1=2.0).y1)))

    rng = np.random.default_rng(1)
    along = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), w)
    moved = lambda s: jax.tree.map(lambda x, d: x + s * d, w, along)
    h = 1e-4
    expected = (
        8 * (loss(moved(h)) - loss(moved(-h))) - loss(moved(2 * h)) + loss(moved(-2 * h))
    ) / (12 * h)
    slopes = jax.tree.map(jnp.vdot, jax.jit(jax.grad(loss))(w), along)
    assert sum(jax.tree.leaves(slopes)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("basis", ["legendre", "hat"])
def test_checkpoint_recomputes_theta(basis):
    """3 more steps in each of 4 groups: their states are stored, and not their weights.

    3 states more are those of the group whose gradient is being computed.
    """
    field = TransformerField(width=64, heads=4, mlp=256)
    y = jax.ShapeDtypeStruct((8, 33, 64), jnp.float32)

    def size(steps):
        depth = DepthConfig(layers=4, basis=basis, coefficients=5, solver="midpoint", steps=steps)
        stack = ODEStack(depth, field)
        params = jax.eval_shape(stack.init, jax.random.key(0), y)
        gradient = jax.jit(jax.grad(lambda p, y: stack.apply(p, y).y1.sum()))
        return gradient.lower(params, y).compile().memory_analysis().temp_size_in_bytes

    assert size(5) - size(2) <= 1.02 * 15 * 8 * 33 * 64 * 4


@pytest.mark.parametrize(
    ("basis", "solver"),
    [
        ("legendre", "lie_trotter"),
        pytest.param("hat", "rk4", marks=pytest.mark.slow),
        pytest.param("fourier", "strang", marks=pytest.mark.slow),
    ],
)
def test_counted_flops_equal_calculated(basis, solver):
    """Sums of coefficients are no matrix products."""
    depth = DepthConfig(solver=solver, adjoint="store", **DEPTHS[basis])
    config = ViTConfig(image_size=8, patch_size=2, width=16, heads=2, mlp=24, depth=depth)
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    model = make_model(config)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert flops.count(model.apply, variables, images) == flops.forward(config)
    gradient = jax.grad(lambda v, x: model.apply(v, x).sum())
    assert flops.count(gradient, variables, images) == flops.training(config)


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (dict(coefficients=4), "coefficients=4 have no effect under basis 'constant'"),
        (dict(basis="hat"), "basis 'hat' needs coefficients"),
        (dict(basis="legendre", coefficients=0), "coefficients is a whole number, 1 or more; 0"),
        (dict(basis="legendre", coefficients=3, share=2), "share=2 belongs to basis 'constant'"),
        (dict(basis="fourier", coefficients=4), "coefficients=4 was given: take 3 or 5"),
        (dict(basis="hat", coefficients=1), "coefficients=1 was given: take one of 2, 3, 4, 5, 7"),
        (dict(basis="hat", coefficients=9), "a divisor of layers=12 or a multiple of it"),
        (dict(basis="hats"), "Did you mean 'hat'"),
    ],
)
def test_refusals(depth, message):
    with pytest.raises(ValueError, match=message):
        DepthConfig(layers=12, **depth)
