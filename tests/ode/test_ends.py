"""Ends of the interval: their gradients, no length, times that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import integrate
from odeformer.ode.times import step_times
from tests.helpers.trees import relative_error

FINE = dict(solver="tsit5", rtol=1e-9, atol=1e-9)
CASES = [
    dict(adjoint="checkpoint", solver="heun", steps=2),
    dict(adjoint="recursive", solver="heun", steps=2),
    pytest.param(dict(adjoint="store", solver="heun", steps=2), marks=pytest.mark.slow),
    pytest.param(dict(adjoint="direct", solver="heun", steps=2), marks=pytest.mark.slow),
    dict(adjoint="checkpoint", **FINE),
    pytest.param(dict(adjoint="direct", **FINE), marks=pytest.mark.slow),
]
SPANS = [(0.0, 1.0), (1.0, 0.2), (0.5, 0.5)]  # forwards, backwards, of no length


def name(kwargs):
    return "-".join(map(str, kwargs.values()))


def test_traced_ends_give_the_steps_of_known_ones():
    """From one end to the other, which no comparison of a traced solve with another one shows."""
    traced = jax.jit(lambda t0, t1: step_times(t0, t1, 3, jnp.float32))
    for t0, t1 in SPANS:
        np.testing.assert_allclose(traced(t0, t1), np.linspace(t0, t1, 4), rtol=1e-6)
        np.testing.assert_allclose(step_times(t0, t1, 3, "f4"), np.linspace(t0, t1, 4), rtol=1e-6)


@pytest.mark.parametrize("kwargs", CASES, ids=name)
def test_gradients_of_the_ends(float64, smooth, kwargs):
    """Together under vmap, so that one interval of no length could spoil the others."""
    field, y0, params = smooth
    y0, params = jax.tree.map(lambda x: x.astype(jnp.float64), (y0[0], params))
    t0, t1 = jnp.array(SPANS).T

    def loss(t0, t1, params):
        return jnp.sum(jnp.arange(1.0, 5.0) * integrate(field, y0, params, t0, t1, **kwargs).y1)

    value = jax.jit(jax.vmap(loss, (0, 0, None)))
    ends = jax.jit(jax.vmap(jax.grad(loss, (0, 1, 2)), (0, 0, None)))(t0, t1, params)
    shift = 1e-4
    slopes = (
        (value(t0 + shift, t1, params) - value(t0 - shift, t1, params)) / (2 * shift),
        (value(t0, t1 + shift, params) - value(t0, t1 - shift, params)) / (2 * shift),
    )
    np.testing.assert_allclose(ends[:2], slopes, rtol=1e-5)
    first = jnp.sum(jnp.arange(1.0, 5.0) * field(0.5, y0, params))
    np.testing.assert_allclose([ends[0][2], ends[1][2]], [-first, first], rtol=1e-12)
    for leaf in jax.tree.leaves(ends[2]):
        np.testing.assert_array_equal(leaf[2], 0)
        assert bool(jnp.isfinite(leaf).all())


def test_gradient_of_traced_times_in_an_empty_interval(float64, smooth):
    field, y0, params = smooth
    y0, params = jax.tree.map(lambda x: x.astype(jnp.float64), (y0[0], params))

    @jax.jit
    @jax.jacobian
    def states(t):
        solution = integrate(field, y0, params, 0.5, 0.5, ts=t[None], adjoint="direct", **FINE)
        return solution.ys[0]

    np.testing.assert_allclose(states(0.5), field(0.5, y0, params), rtol=1e-12)


@pytest.mark.parametrize("steps", [dict(steps=2), dict(solver="heun", rtol=0.1)])
def test_backsolve_refuses_gradients_of_the_ends(smooth, steps):
    field, y0, params = smooth
    solve = lambda p, t1: integrate(field, y0, p, 0, t1, adjoint="backsolve", **steps).y1.sum()
    with pytest.raises(ValueError, match="no gradient with respect to t0 and t1.*take adjoint 'ch"):
        jax.eval_shape(jax.grad(solve, 1), params, 1.0)
    gradient = jax.jit(jax.grad(solve))(params, 0.0)  # not of a traced end that is not asked about
    assert relative_error(gradient, jax.tree.map(jnp.ones_like, params)) == 1.0


@pytest.mark.parametrize("given", ["known", "traced"])
@pytest.mark.parametrize(
    "kwargs",
    [
        dict(steps=2),
        dict(steps=2, adjoint="recursive", solver="euler"),
        dict(solver="heun", rtol=0.1),
        dict(solver="heun", rtol=0.1, per_sample=True),
    ],
    ids=name,
)
def test_times_that_are_not_finite(smooth, kwargs, given):
    field, y0, params = smooth
    solve = lambda t0, t1: integrate(field, y0, params, t0, t1, **kwargs)
    run = jax.jit(solve, static_argnums=() if given == "traced" else (0, 1))
    wrong = [(0.0, np.nan), (0.0, -np.inf), (np.inf, np.inf), (np.nan, 1.0)]
    for ends in wrong if given == "traced" else wrong[:1] + wrong[2:3]:
        solution = run(*ends)
        assert set(np.ravel(solution.result)) == {2}
        assert bool(jnp.isnan(solution.y1).all())
    if given == "traced":
        solution = run(0.0, 1.0)
        assert set(np.ravel(solution.result)) == {0}
        assert bool(jnp.isfinite(solution.y1).all())


def test_too_far_for_the_dtype_is_not_finite(smooth):
    field, y0, params = smooth
    solution = integrate(field, y0, params, 0.0, 1e39, steps=1, solver="euler")
    assert int(solution.result) == 2 and bool(jnp.isnan(solution.y1).all())


def test_states_at_given_times_that_are_not_finite(smooth):
    field, y0, params = smooth
    fixed = integrate(field, y0, params, 0.0, np.nan, steps=2, ts=[0.0, 0.5], solver="euler")
    adaptive = jax.jit(lambda t: integrate(field, y0, params, ts=t, solver="heun", rtol=0.1))
    for solution in (
        fixed,
        adaptive(jnp.array([0.5, jnp.nan])),
        adaptive(jnp.array([0.5, jnp.inf])),
    ):
        assert int(solution.result) == 2
        assert solution.ys.shape == (2, *y0.shape)
        assert bool(jnp.isnan(solution.ys).all()) and bool(jnp.isnan(solution.y1).all())
    assert bool(jnp.isfinite(adaptive(jnp.array([0.5, 1.0])).ys).all())
