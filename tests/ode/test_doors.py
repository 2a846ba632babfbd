"""Solvers and fields of one's own: registered, given as objects, or refused by name."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import DepthConfig, VectorField, flops, integrate, presets, solvers
from odeformer.ode.problem import SolveSettings


class Halves(solvers.Splitting):
    """Both halves of the last term around the others."""

    def substeps(self, terms):
        last = solvers.Substep(terms - 1, 0.0, 0.5)
        others = (solvers.Substep(j, 0.0, 1.0) for j in range(terms - 1))
        return (last, *others, solvers.Substep(terms - 1, 0.5, 0.5))


class Kutta3(diffrax.AbstractERK):
    """Kutta's method of third order."""

    tableau = diffrax.ButcherTableau(
        c=np.array([1 / 2, 1.0]),
        a_lower=(np.array([1 / 2]), np.array([-1.0, 2.0])),
        b_sol=np.array([1 / 6, 2 / 3, 1 / 6]),
        b_error=np.zeros(3),
    )
    interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms):
        return 3


def test_a_registered_solver_is_one_like_any_other(tables, smooth):
    """By its class or an object: in integrate, in a depth, in the counts; NAMES sees it."""
    field, y0, params = smooth
    assert solvers.register("kutta3")(Kutta3) is Kutta3
    solvers.register("halves", Halves())
    assert solvers.NAMES[-2:] == ("kutta3", "halves") and "kutta3" in solvers.NAMES
    assert len(solvers.NAMES) == len(list(solvers.NAMES)) == 14

    solution = integrate(field, y0, params, solver="kutta3", steps=3)
    by_object = integrate(field, y0, params, solver=Kutta3(), steps=3)
    np.testing.assert_array_equal(solution.y1, by_object.y1)
    assert solution.nfe.tolist() == [9, 9] and solvers.order("kutta3") == 3

    y = y0
    for n in range(2):
        t, h = n / 2, 0.5
        y = y + h / 2 * field.terms[1](t, y, params)
        y = y + h * field.terms[0](t, y, params)
        y = y + h / 2 * field.terms[1](t + h / 2, y, params)
    found = integrate(field, y0, params, solver="halves", steps=2)
    np.testing.assert_allclose(found.y1, y, rtol=1e-5, atol=1e-6)

    config = presets.vit("digits", depth={"solver": "kutta3"})
    assert flops.evaluations(config).tolist() == [12, 12]
    with pytest.raises(ValueError, match="unknown solver 'kutta'.*Did you mean 'kutta3'"):
        DepthConfig(solver="kutta")


@pytest.mark.parametrize(
    ("solver", "name", "kwargs"),
    [
        (diffrax.Euler(), "euler", dict(steps=2)),
        (diffrax.Tsit5(), "tsit5", dict(rtol=1e-4)),
        (diffrax.Heun(), "heun", dict(steps=2, adjoint="recursive")),
        (solvers.Strang(), "strang", dict(steps=2, adjoint="store")),
    ],
)
def test_an_object_is_what_its_name_is(smooth, solver, name, kwargs):
    field, y0, params = smooth
    found, expected = (
        jax.jit(lambda y, s=s: integrate(field, y, params, solver=s, **kwargs))(y0)
        for s in (solver, name)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert hash(SolveSettings(solver=solver)) is not None


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (diffrax.Kvaerno3(), "solver Kvaerno3 is implicit: each of its stages"),
        (diffrax.ImplicitEuler(), "solver ImplicitEuler is implicit"),
        (diffrax.KenCarp3(), "solver KenCarp3 is implicit"),
        (diffrax.LeapfrogMidpoint(), "solver LeapfrogMidpoint keeps a state from step to step"),
        (diffrax.ReversibleHeun(), "solver ReversibleHeun keeps a state"),
        (diffrax.SemiImplicitEuler(), "SemiImplicitEuler is neither an explicit Runge-Kutta"),
        (diffrax.HalfSolver(diffrax.Heun()), "HalfSolver is neither an explicit .* splitting"),
    ],
)
def test_solvers_that_are_not_explicit_are_refused_by_name(smooth, solver, message):
    field, y0, params = smooth
    for use in (
        lambda: integrate(field, y0, params, solver=solver),
        lambda: DepthConfig(solver=solver),
        lambda: solvers.register("mine", solver),
        lambda: solvers.evaluations(solver, 2),
    ):
        with pytest.raises(ValueError, match=message):
            use()
    assert "mine" not in solvers.NAMES


def test_names_that_cannot_be_registered(tables):
    for name, message in (
        ("rk4", "the solver 'rk4' is there already: register yours under another name than"),
        ("", "a solver is registered under a name"),
        (Kutta3, r"write register\('name', ...\), or @register\('name'\) before it"),
    ):
        with pytest.raises(ValueError, match=message):
            solvers.register(name, Kutta3())
    with pytest.raises(ValueError, match="solver str is neither"):
        solvers.register("mine", "rk4")
    with pytest.raises(TypeError):
        solvers.NAMES[0] = "mine"


def test_a_function_is_a_field_of_one_term():
    decay = lambda t, y, a: -a * y
    for solver, adjoint in (
        ("euler", "checkpoint"),
        ("lie_trotter", "checkpoint"),
        ("strang", "store"),
        ("strang", "recursive"),
    ):
        settings = dict(solver=solver, steps=3, t1=3.0, adjoint=adjoint)
        found, same = jax.jit(
            lambda y, k=settings: [
                integrate(f, y, 0.5, **k) for f in (decay, VectorField((decay,)))
            ]
        )(jnp.ones(2))
        np.testing.assert_allclose(found.y1, 0.125, rtol=1e-6)
        np.testing.assert_array_equal(found.y1, same.y1)
        assert found.nfe.tolist() == [3]
