"""A state of several streams, against solves by hand in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import (
    LM,
    DepthConfig,
    LMConfig,
    ODEStack,
    TransformerField,
    make_vector_field,
    terms,
)
from odeformer.models.decoding import advance, init_cache, predict
from tests.helpers.terms import gates, gates_by_hand

WIDTH, GROUPS, SHARE, STEPS = 4, 2, 2, 3


@pytest.fixture
def stack(tables, float64):
    """Makes a stack of the two-stream term, and its parameters and state, by its depth."""
    terms.register("gates", gates())
    rng = np.random.default_rng(0)
    field = TransformerField(
        width=WIDTH, heads=2, mlp=4, dtype=jnp.float64, terms=("gates", "damping")
    )
    params = {
        "gates_layer": {
            "up": {
                "kernel": rng.normal(size=(GROUPS, 2 * WIDTH, 4 * WIDTH)) * 0.5,
                "bias": rng.normal(size=(GROUPS, 4 * WIDTH)),
            }
        },
        "damping_layer": {"raw": rng.normal(size=(GROUPS, WIDTH))},
    }

    def make(**depth):
        return ODEStack(DepthConfig(layers=GROUPS * SHARE, share=SHARE, **depth), field)

    return make, params, rng.normal(size=(3, 2, WIDTH))


def slopes(theta, y, cell):
    dy, dcell = gates_by_hand(theta["gates_layer"], y, cell)
    rate = np.log1p(np.exp(theta["damping_layer"]["raw"]))
    return dy - rate * y, dcell


def rk4_by_hand(params, y, steps):
    """Classical Runge-Kutta steps of both streams, group by group."""
    state, h = (y, y), SHARE / steps
    for group in range(GROUPS):
        theta = jax.tree.map(lambda x, group=group: x[group], params)
        move = lambda s, k, h: tuple(x + h * dx for x, dx in zip(s, k, strict=True))
        for _ in range(steps):
            k1 = slopes(theta, *state)
            k2 = slopes(theta, *move(state, k1, h / 2))
            k3 = slopes(theta, *move(state, k2, h / 2))
            k4 = slopes(theta, *move(state, k3, h))
            for weight, k in ((1, k1), (2, k2), (2, k3), (1, k4)):
                state = move(state, k, h * weight / 6)
    return state


def derivative_by_hand(params, y, steps):
    """Of the sum of y1 squared along a direction, and the direction; exact, by a complex step."""
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
    moved = jax.tree.map(lambda p, d: p + 1e-30j * d, params, direction)
    return np.sum(rk4_by_hand(moved, y, steps)[0] ** 2).imag / 1e-30, direction


def solve_and_derive(stack, params, y, direction):
    """All streams at the end, and the derivative along the direction of y1's squares' sum."""

    def loss(params):
        y1 = stack.apply({"params": {"groups": params}}, {"y": y, "cell": y}).y1
        return jnp.sum(y1["y"] ** 2), y1

    gradient, y1 = jax.jit(jax.grad(loss, has_aux=True))(params)
    along = jax.tree.map(lambda g, d: np.sum(np.asarray(g) * d), gradient, direction)
    return y1, sum(jax.tree.leaves(along))


@pytest.mark.parametrize(
    "adjoint",
    [
        *("checkpoint", "store"),
        # Those of adaptive steps, below.
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("recursive", "direct", "backsolve")
        ),
    ],
)
def test_fixed_steps_under_every_adjoint(stack, adjoint):
    make, params, y = stack
    expected = rk4_by_hand(params, y, STEPS)
    slope, direction = derivative_by_hand(params, y, STEPS)
    solver = make(solver="rk4", steps=STEPS, adjoint=adjoint)
    found, along = solve_and_derive(solver, params, y, direction)
    np.testing.assert_allclose(found["y"], expected[0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(found["cell"], expected[1], rtol=0, atol=1e-10)

    # That of 'backsolve' is the exact flow's, solved backwards in the same coarse steps.
    assert along == pytest.approx(slope, rel=1e-10 if adjoint != "backsolve" else 0.05)


@pytest.mark.parametrize(
    "adjoint", ["checkpoint", pytest.param("direct", marks=pytest.mark.slow), "backsolve"]
)
def test_adaptive_steps_and_their_gradients(stack, adjoint):
    """As fine fixed steps by hand."""
    make, params, y = stack
    expected = rk4_by_hand(params, y, 400)
    slope, direction = derivative_by_hand(params, y, 400)
    solver = make(solver="dopri8", rtol=1e-13, atol=1e-13, max_steps=256, adjoint=adjoint)
    found, along = solve_and_derive(solver, params, y, direction)
    np.testing.assert_allclose(found["y"], expected[0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(found["cell"], expected[1], rtol=0, atol=1e-10)
    assert along == pytest.approx(slope, rel=1e-9)


def test_per_sample_and_weights_of_streams(stack):
    """A token without weight, in whatever stream, has no say in the steps."""
    make, params, y = stack
    solver = make(solver="tsit5", rtol=1e-6, per_sample=True)
    weights = np.ones((3, 2, 1))
    weights[:, 1] = 0
    apply = jax.jit(
        lambda y, weights: solver.apply({"params": {"groups": params}}, y, False, None, weights)
    )
    found, wild = apply(y, weights), apply(y * [[[1.0], [30.0]]], weights)
    assert found.nfe.shape == (GROUPS, 3, 2)
    np.testing.assert_array_equal(found.nfe, wild.nfe)
    np.testing.assert_allclose(found.y1[:, 0], wild.y1[:, 0], rtol=1e-12)
    by_stream = apply(y, {"y": weights, "cell": weights})
    np.testing.assert_array_equal(by_stream.y1, found.y1)
    assert (apply(y * [[[1.0], [30.0]]], weights * 0 + 1).nfe > found.nfe).any()


def test_a_sample_is_dropped_with_all_its_streams(stack):
    make, params, y = stack
    field = make().field.clone(drop_path=0.5, layers=2)
    term = make_vector_field(field, train=True).terms[0]
    theta = jax.tree.map(lambda x: x[0], params)
    state = {"y": np.tile(y, (100, 1, 1)), "cell": np.tile(y, (100, 1, 1))}
    slope = term(jnp.float64(1), state, (theta, 0.0), jax.random.key(0))
    dropped = [np.all(np.asarray(slope[s]) == 0, axis=(1, 2)) for s in ("y", "cell")]
    np.testing.assert_array_equal(*dropped)
    assert 0.4 < dropped[0].mean() < 0.6
    plain = make_vector_field(field).terms[0](jnp.float64(1), state, (theta, 0.0))
    np.testing.assert_allclose(slope["cell"][~dropped[0]], 2 * plain["cell"][~dropped[0]])
    damping = make_vector_field(field).terms[1](jnp.float64(1), state, (theta, 0.0))
    assert np.all(damping["cell"] == 0)  # which it does not move


def test_a_model_keeps_y_and_decodes_every_stream(tables):
    """The logits of a whole pass, for a term that needs nothing of earlier tokens."""
    terms.register("gates", gates())
    depth = DepthConfig(layers=2, share=2, solver="heun")
    config = LMConfig(7, 8, width=8, heads=2, mlp=8, terms=("attention", "gates"), depth=depth)
    model, words = LM(config), jnp.array([[1, 2, 3, 4, 5, 6]])
    variables = jax.jit(model.init)(jax.random.key(0), words)
    y, cache = advance(model, variables, words[:, :4], init_cache(config, 1), jnp.array([4]))
    last, _ = advance(model, variables, words[:, 4:], cache, jnp.array([2]))
    decoded = predict(model, variables, jnp.concatenate([y, last], axis=1))
    np.testing.assert_allclose(decoded, model.apply(variables, words), rtol=1e-4, atol=1e-5)


def test_states_that_lack_a_stream(stack):
    make, _, y = stack
    plain = ODEStack(DepthConfig(), TransformerField(width=4, heads=2, mlp=4))
    for solver, state, message in (
        (make(), {"y": y}, "this field's terms is a dict of arrays y, cell; a dict of y was given"),
        (plain, {"y": y}, "this field's terms is one array; a dict of y was given"),
    ):
        with pytest.raises(ValueError, match=message):
            solver.init(jax.random.key(0), state)
