"""Solvers: order of convergence, equality with diffrax's own steps, the table's figures."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import VectorField, integrate, solvers
from odeformer.ode.steps import staged_step, unrolled_step

RUNGE_KUTTA = [n for n in solvers.NAMES if isinstance(solvers.get(n), diffrax.AbstractERK)]
TRUE_ORDER = dict.fromkeys(("lie_trotter", "strang", "euler"), 1) | {
    "midpoint": 2,
    "heun": 2,
    "ralston": 2,
    "bosh3": 3,
    "rk4": 4,
    "rk38": 4,
    "tsit5": 5,
    "dopri5": 5,
    "dopri8": 7.25,  # at least 7 is asked of it
}


def test_every_solver_has_a_true_order():
    assert set(TRUE_ORDER) == set(solvers.NAMES)


@pytest.mark.parametrize("name", solvers.NAMES)
def test_order_of_convergence(float64, smooth, name):
    field, y0, params = smooth
    y0, params = jax.tree.map(lambda x: x.astype(jnp.float64), (y0, params))
    exact = integrate(field, y0, params, solver="dopri8", steps=200).y1
    counts = [1, 2, 4] if name == "dopri8" else [4, 8, 16, 32]
    errors = [
        jnp.linalg.norm(integrate(field, y0, params, solver=name, steps=n).y1 - exact)
        for n in counts
    ]
    slope = -np.polyfit(np.log(counts), np.log(np.array(errors)), 1)[0]
    assert slope >= TRUE_ORDER[name] - 0.25
    if TRUE_ORDER[name] == 1:
        assert slope < 1.5  # no higher than declared: both splittings with Euler sub-steps
    assert solvers.order(name) == int(TRUE_ORDER[name] + 0.8)


@pytest.mark.parametrize("name", RUNGE_KUTTA)
def test_unrolled_step_equals_diffrax_step(float64, smooth, name):
    field, y0, params = smooth
    y0 = y0.astype(jnp.float64)
    method = solvers.get(name)
    term = diffrax.ODETerm(lambda t, y, args: field(t, y, args))
    t0, t1 = jnp.asarray(0.3), jnp.asarray(0.8)
    state = method.init(term, t0, t1, y0, params)
    expected = method.step(term, t0, t1, y0, params, state, made_jump=False)[0]
    unrolled = unrolled_step(method.tableau, lambda stage, t, y: field(t, y, params), t0, t1, y0)
    np.testing.assert_allclose(unrolled, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", RUNGE_KUTTA)
def test_unrolled_step_knows_its_stages(name):
    tableau, seen = solvers.get(name).tableau, []

    def evaluate(stage, t, y):
        seen.append((stage, float(t)))
        return y

    unrolled_step(tableau, evaluate, jnp.asarray(0.0), jnp.asarray(1.0), jnp.ones(2))
    count = solvers.stages(tableau)
    assert [stage for stage, _ in seen] == list(range(count))
    np.testing.assert_allclose([t for _, t in seen], [0, *tableau.c[: count - 1]], atol=1e-6)
    assert solvers.evaluations(name, 2).tolist() == [count, count]


def test_stages_leave_out_what_only_the_error_estimate_reads():
    counts = {name: solvers.stages(solvers.get(name).tableau) for name in RUNGE_KUTTA}
    expected = dict(midpoint=2, heun=2, ralston=2, rk4=4, rk38=4, bosh3=3, tsit5=6, dopri5=6)
    assert counts == expected | {"dopri8": 13}


def test_strang_is_a_palindrome_over_any_number_of_terms():
    for terms in (2, 3, 4):
        substeps = solvers.Strang().substeps(terms)
        order = [substep.term for substep in substeps]
        assert order == order[::-1]
        lengths = np.zeros(terms)
        for substep in substeps:
            # Each term's parts follow one another in time.
            assert substep.begin == lengths[substep.term]
            lengths[substep.term] += substep.length
        np.testing.assert_array_equal(lengths, 1.0)
    assert solvers.evaluations("strang", 3).tolist() == [1, 2, 2]


def test_splittings_take_three_terms(smooth):
    field, y0, params = smooth
    three = VectorField((*field.terms, lambda t, y, p: -0.1 * y))
    solution = integrate(three, y0, params, solver="lie_trotter", steps=1)
    y = y0
    for term in three.terms:
        y = y + term(0.0, y, params)
    np.testing.assert_allclose(solution.y1, y, rtol=1e-6)
    assert solution.nfe.tolist() == [1, 1, 1]


def test_the_times_of_strangs_sub_steps(smooth):
    """Two steps by hand: half of the second term, all of the first, the other half from h / 2."""
    field, y, params = smooth
    solution = integrate(field, y, params, t0=0.2, t1=1.0, solver="strang", steps=2)
    first, second = field.terms
    h = 0.4
    for t in (0.2, 0.6):
        y = y + h / 2 * second(t, y, params)
        y = y + h * first(t, y, params)
        y = y + h / 2 * second(t + h / 2, y, params)
    np.testing.assert_allclose(solution.y1, y, rtol=1e-5)


def test_adaptive_solvers():
    able = [name for name in solvers.NAMES if solvers.is_adaptive(name)]
    assert able == ["midpoint", "heun", "ralston", "bosh3", "tsit5", "dopri5", "dopri8"]


def test_unknown_solver_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown solver 'rk5'.*Did you mean 'rk4'"):
        solvers.get("rk5")


def test_a_solver_without_a_tableau_is_not_taken_for_euler():
    """Neither its step nor its evaluations are known: a leapfrog evaluates once, as Euler does."""
    leapfrog, zero, one = diffrax.LeapfrogMidpoint(), jnp.float32(0), jnp.float32(1)

    for use in (
        lambda: solvers.evaluations(leapfrog, 2),
        lambda: staged_step(leapfrog, 2, lambda term, n, t, y: y, zero, one, y0=one),
        lambda: integrate(VectorField((lambda t, y, p: y,)), one, None, solver=leapfrog),
    ):
        with pytest.raises(ValueError, match="LeapfrogMidpoint keeps a state .*Splitting"):
            use()
