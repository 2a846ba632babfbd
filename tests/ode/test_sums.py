"""Sums along a solution: kinetic energy and error estimate, their values, gradients and steps."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from odeformer import VectorField, integrate, solvers
from odeformer.ode.problem import ADJOINTS
from odeformer.ode.sums import mean_square
from tests.helpers.trees import relative_error

BOTH = ("kinetic", "error")


def widen(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)


def by_hand(f, y0, times, solver, weights=None):
    """Both sums by numpy, over the steps between these times: the kinetic energy, the error, y1."""
    table, y = solvers.tableau(solver), np.asarray(y0)
    weights = np.ones_like(y) if weights is None else np.broadcast_to(weights, y.shape)
    mean = lambda x: (weights * x**2).sum(1) / weights.sum(1)
    kinetic, error = np.zeros(len(y)), np.zeros(len(y))
    for t0, t1 in itertools.pairwise(times):
        h, before = t1 - t0, y
        slopes = [np.asarray(f(t0, y))]
        for c, row in zip(table.c, table.a_lower, strict=True):
            stage = before + h * sum(a * k for a, k in zip(row, slopes, strict=True))
            slopes.append(np.asarray(f(t0 + c * h, stage)))
        kinetic += abs(h) * sum(b * mean(k) for b, k in zip(table.b_sol, slopes, strict=True))
        both = sum(e * k for e, k in zip(table.b_error, slopes, strict=True))
        error += abs(h) * np.sqrt(mean(h * both))
        y = before + h * sum(b * k for b, k in zip(table.b_sol, slopes, strict=True))
    return kinetic, error, y


@pytest.mark.parametrize(
    ("name", "t1"),
    [("tsit5", 2.0), ("heun", -1.5), pytest.param("rk4", 1.0, marks=pytest.mark.slow)],
)
def test_sums_of_fixed_steps_by_hand(float64, smooth, name, t1):
    """Padded entries left out; backwards too; the stage that only the error reads is counted."""
    field, y0, params = smooth
    y0, weights = widen(y0), np.array([1.0, 1.0, 0.0, 1.0])
    sums = BOTH if solvers.is_adaptive(name) else BOTH[:1]
    kwargs = dict(t1=t1, solver=name, steps=3, weights=jnp.broadcast_to(weights, y0.shape))
    found = jax.jit(lambda y: integrate(field, y, params, sums=sums, **kwargs))(y0)

    times = np.linspace(0, t1, 4)
    kinetic, error, y1 = by_hand(lambda t, y: field(t, y, params), y0, times, name, weights)
    np.testing.assert_allclose(found.y1, y1, rtol=1e-9)
    np.testing.assert_allclose(found.sums["kinetic"], kinetic, rtol=1e-9)
    if "error" in sums:
        np.testing.assert_allclose(found.sums["error"], error, rtol=1e-9)
    else:
        assert "error" not in found.sums
    stages = {"tsit5": 7, "heun": 2, "rk4": 4}[name]
    assert found.nfe.tolist() == [3 * stages] * 2


@pytest.mark.parametrize(
    ("name", "adjoint"),
    [
        ("lie_trotter", "checkpoint"),
        pytest.param("lie_trotter", "recursive", marks=pytest.mark.slow),
        pytest.param("euler", "checkpoint", marks=pytest.mark.slow),
        pytest.param("euler", "recursive", marks=pytest.mark.slow),
    ],
)
def test_kinetic_energy_of_whole_steps(float64, smooth, name, adjoint):
    field, y0, params = smooth
    kwargs = dict(t1=-2.0, solver=name, steps=4, adjoint=adjoint, ts=[-0.5, -1.0, -1.5, -2.0])
    run = jax.jit(lambda y: integrate(field, y, params, sums=["kinetic"], **kwargs))
    found = run(widen(y0))
    states = np.concatenate([widen(y0)[None], found.ys])
    expected = sum(0.5 * (((b - a) / 0.5) ** 2).mean(1) for a, b in itertools.pairwise(states))
    np.testing.assert_allclose(found.sums["kinetic"], expected, rtol=1e-9)


def test_adaptive_steps_are_those_without_sums(smooth):
    """To the last bit, some of them being rejected."""
    field, y0, params = smooth
    kwargs = dict(t1=6.0, solver="tsit5", rtol=1e-3, max_steps=500)
    plain = jax.jit(lambda y: integrate(field, y, params, **kwargs))(y0)
    found = jax.jit(lambda y: integrate(field, y, params, sums=BOTH, **kwargs))(y0)
    assert int(plain.rejected) > 0
    for name in ("nfe", "accepted", "rejected", "result"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))
    np.testing.assert_array_equal(found.y1, plain.y1)
    assert plain.sums is None


def adaptive_times(field, y0, params, **kwargs):
    """The ends of the steps of an adaptive solve without rejections, by what its field is asked."""
    seen = []

    def spy(t, y, p):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return field(t, y, p)

    found = jax.jit(lambda y: integrate(VectorField((spy,)), y, params, **kwargs))(y0)
    jax.effects_barrier()
    assert int(found.rejected) == 0 and int(found.accepted) >= 3

    # Under Heun's method an end is asked for twice, as an end and as a start; the last one once.
    counts = collections.Counter(seen)
    times = sorted(t for t, n in counts.items() if n > 1 or t == max(seen))
    assert len(times) == int(found.accepted) + 1
    return np.array(times)


@pytest.mark.parametrize("adjoint", ["checkpoint", pytest.param("direct", marks=pytest.mark.slow)])
def test_sums_of_adaptive_steps_by_hand(float64, smooth, adjoint):
    """Values by numpy; gradients are those of the same steps at fixed sizes."""
    field, y0, params = smooth
    y0, params = widen((y0, params))
    kwargs = dict(t1=1.0, solver="heun", rtol=0.1, atol=0.1)
    times = adaptive_times(field, y0, params, **kwargs)
    kinetic, error, _ = by_hand(lambda t, y: field(t, y, params), y0, times, "heun")

    def solved(p):
        return integrate(field, y0, p, sums=BOTH, adjoint=adjoint, **kwargs).sums

    def stepwise(p):
        y, total = y0, dict.fromkeys(BOTH, 0.0)
        for t0, t1 in itertools.pairwise(times):
            s = integrate(field, y, p, t0=t0, t1=t1, solver="heun", steps=1, sums=BOTH)
            y, total = s.y1, {name: total[name] + s.sums[name] for name in BOTH}
        return total

    def loss(sums, p):
        # Errors weigh as much as energies.
        found = sums(p)
        return found["kinetic"].sum() + 10 * found["error"].sum(), found

    (_, found), gradient = jax.jit(jax.value_and_grad(lambda p: loss(solved, p), has_aux=True))(
        params
    )
    np.testing.assert_allclose(found["kinetic"], kinetic, rtol=1e-9)
    np.testing.assert_allclose(found["error"], error, rtol=1e-9)
    expected, _ = jax.jit(jax.grad(lambda p: loss(stepwise, p), has_aux=True))(params)
    assert relative_error(gradient, expected) < 1e-9


def test_adaptive_kinetic_energy_backwards_in_time():
    """The integral of f^2 over |dt|: of f = t between 1 and 0 it is 1 / 3, and not -1 / 3."""
    field = VectorField((lambda t, y, p: t * jnp.ones_like(y),))
    kwargs = dict(t0=1.0, t1=0.0, solver="bosh3", rtol=1e-3, sums=["kinetic"])
    found = jax.jit(lambda y: integrate(field, y, None, **kwargs))(jnp.ones((2, 3)))
    np.testing.assert_allclose(found.sums["kinetic"], [1 / 3] * 2, rtol=1e-5)


GRADIENTS = [
    ("kinetic", dict(solver="rk4", steps=6)),
    ("error", dict(solver="tsit5", steps=2)),
]
MORE = [
    *(("kinetic", dict(solver="rk4", steps=6, adjoint=a)) for a in ADJOINTS[1:4]),
    ("kinetic", dict(solver="strang", steps=6)),
    ("kinetic", dict(solver="rk4", steps=48, adjoint="backsolve")),
    *(("kinetic", dict(solver="strang", steps=6, adjoint=a)) for a in ("recursive", "direct")),
    *(("error", dict(solver="tsit5", steps=2, adjoint=a)) for a in ("store", "recursive")),
    *(
        ("kinetic", dict(solver="tsit5", rtol=1e-9, atol=1e-9, max_steps=256, adjoint=a))
        for a in ("checkpoint", "direct", "backsolve")
    ),
]


@pytest.mark.parametrize(
    ("name", "kwargs"), [*GRADIENTS, *(pytest.param(*c, marks=pytest.mark.slow) for c in MORE)]
)
def test_gradients_against_finite_differences(float64, smooth, name, kwargs):
    field, y0, params = smooth
    flat, unravel = ravel_pytree(widen((y0, params)))

    @jax.jit
    @jax.value_and_grad
    def loss(flat):
        y0, params = unravel(flat)
        return integrate(field, y0, params, sums=(name,), **kwargs).sums[name].sum()

    flat, places = np.asarray(flat), np.eye(len(flat))[::3]
    slopes = [(loss(flat + step)[0] - loss(flat - step)[0]) / 2e-5 for step in 1e-5 * places]
    assert relative_error(loss(flat)[1][::3], jnp.stack(slopes)) < 1e-5


@pytest.mark.slow
def test_sums_per_sample_are_each_samples_own(smooth):
    field, y0, params = smooth
    kwargs = dict(solver="bosh3", rtol=1e-3, sums=BOTH)
    each = jax.jit(lambda y: integrate(field, y, params, per_sample=True, **kwargs))(y0)
    alone = jax.jit(lambda y: integrate(field, y, params, **kwargs))
    assert each.sums["error"].shape == (3,)
    for n in range(3):
        for name in BOTH:
            np.testing.assert_allclose(each.sums[name][n], alone(y0[n : n + 1]).sums[name][0], 1e-4)


def test_weights_of_adaptive_sums(smooth):
    """Padding adds nothing, whatever it does, and weighs nothing in steps or sums."""
    _, y0, _ = smooth
    weights = jnp.ones_like(y0).at[:, 2:].set(0.0)
    moves = VectorField((lambda t, y, p: jnp.where(weights > 0, -y, 5.0),))
    solve = lambda f, y, **k: integrate(f, y, None, solver="heun", rtol=1e-2, sums=BOTH, **k)
    padded = jax.jit(functools.partial(solve, moves, weights=weights))(y0)
    plain = jax.jit(functools.partial(solve, VectorField((lambda t, y, p: -y,))))(y0[:, :2])
    for name in BOTH:
        np.testing.assert_allclose(padded.sums[name], plain.sums[name], rtol=1e-5)


def test_a_field_of_zeros_has_no_error_and_a_gradient(smooth):
    _, y0, _ = smooth
    still = VectorField((lambda t, y, p: p * y,))
    loss = lambda p: integrate(still, y0, p, solver="tsit5", steps=2, sums=BOTH).sums["error"].sum()
    value, slope = jax.jit(jax.value_and_grad(loss))(0.0)
    assert float(value) == 0 and float(slope) == 0


def test_means_are_over_all_arrays_of_a_state():
    state = {"a": jnp.array([[1.0, 2.0], [0.0, 0.0]]), "b": jnp.array([3.0, 1.0])}
    np.testing.assert_allclose(mean_square(state, None), [14 / 3, 1 / 3], rtol=1e-6)
    weights = {"a": jnp.array([[1.0, 0.0], [0.0, 0.0]]), "b": jnp.array([1.0, 0.0])}
    np.testing.assert_allclose(mean_square(state, weights), [5, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(sums=("kinetik",)), "unknown sum 'kinetik'; accepted: kinetic, error. Did you mean"),
        (dict(sums="kinetic"), r"sums is a tuple of names.*'kinetic' was given: put one name in"),
        (dict(sums=("error",)), "solver 'rk4' has no error estimate, so there is no sum 'error'"),
        (dict(sums=("error",), solver="strang"), "leave that out, or take one of midpoint, heun"),
        (
            dict(sums=BOTH, solver="tsit5", adjoint="backsolve"),
            "adjoint 'backsolve' has no sum 'error'.*take adjoint 'checkpoint'",
        ),
    ],
)
def test_refusals(smooth, kwargs, message):
    field, y0, params = smooth
    with pytest.raises(ValueError, match=message):
        integrate(field, y0, params, **kwargs)


def test_refuses_states_without_a_batch(smooth):
    field, _, params = smooth
    with pytest.raises(ValueError, match=r"sums take a state whose arrays share a leading axis"):
        integrate(field, (jnp.ones((2, 4)), jnp.float32(1)), params, sums=("kinetic",))
