"""What is given to `integrate`: kinds that are taken, kinds that are refused, strict modes."""

import diffrax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from odeformer import VectorField, integrate
from odeformer.ode import checks
from odeformer.ode.problem import SolveSettings

HEUN = dict(solver="heun", rtol=0.1)
FIXED = dict(solver="euler", steps=2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(solver="heun", rtol="1e-3"), "rtol is one number greater than 0.*'1e-3' was given"),
        (dict(solver="heun", rtol=np.ones(2)), "rtol is one number"),
        (dict(solver="heun", rtol=True), "rtol is one number"),
        (dict(atol=[1e-3], **HEUN), r"atol is one number.*\[0.001\] was given"),
        (dict(max_steps=3.5, **HEUN), "max_steps is a whole number"),
        (dict(steps="8"), "steps is a whole number, 1 or more; '8' was given"),
        (dict(steps=np.array([8])), "steps is a whole number"),
        (dict(per_sample="no"), "per_sample is True or False; 'no' was given"),
        (dict(throw=1), "throw is True or False; 1 was given"),
        (dict(solver=diffrax.DirectAdjoint()), "solver is given by its name, a str"),
        (dict(solver=diffrax.Heun), "solver is given by its name.*Did you mean 'heun'"),
        (dict(adjoint=diffrax.DirectAdjoint()), "adjoint is given by its name.*mean 'direct'"),
        (
            dict(policy=jax.checkpoint_policies.dots_saveable),
            "checkpoint policy is given by its name.*Did you mean 'dots_saveable'",
        ),
        *(
            (dict(t1=t1, **steps), message)
            for steps in (FIXED, HEUN)
            for t1, message in (
                ("1", "t1 takes real numbers.*'1' was given"),
                (None, "t1 takes real numbers.*None was given"),
                (True, "t1 takes real numbers.*True was given"),
                (1j, "t1 takes real numbers.*1j was given"),
                ([1.0], r"t1 is one time; an array of shape \[1\] was given"),
            )
        ),
        (dict(ts=["0.5"], **HEUN), "ts takes real numbers"),
        (dict(ts=[[0.5], [0.5, 1.0]], **HEUN), "ts takes real numbers"),
    ],
)
def test_kinds_that_are_refused(smooth, kwargs, message):
    field, y0, params = smooth
    with pytest.raises(ValueError, match=message):
        integrate(field, y0, params, **kwargs)


def test_kinds_that_are_refused_while_tracing(smooth):
    field, y0, params = smooth
    for kwargs, message in (
        (lambda x: dict(solver="heun", rtol=x), "rtol is one number.*known before tracing"),
        (lambda x: dict(steps=x), "steps is a whole number"),
        (lambda x: dict(t1=x[None]), r"t1 is one time; an array of shape \[1\]"),
        (lambda x: dict(t1=x > 0), "t1 takes real numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda x, k=kwargs: integrate(field, y0, params, **k(x)).y1, 1.0)


def test_states_that_are_refused(smooth):
    field, _, params = smooth
    with pytest.raises(ValueError, match="a pytree of arrays; 'y' was given"):
        integrate(field, "y", params)


def test_fields_that_are_nearly_right(smooth):
    field, y0, params = smooth
    term = field.terms[0]
    for terms in (term, field, diffrax.ODETerm(term)):
        with pytest.raises(
            ValueError, match=r"a tuple of functions .*was given: put .*terms=\(f,\)"
        ):
            VectorField(terms=terms)
    with pytest.raises(ValueError, match=r"terms\[1\] of a VectorField is a function"):
        VectorField(terms=(term, diffrax.ODETerm(term)))
    with pytest.raises(ValueError, match="total of a VectorField is a function"):
        VectorField(terms=(term,), total=(term,))
    for given in ((term,), diffrax.ODETerm(term), type(term)):
        with pytest.raises(ValueError, match=r"the field is a VectorField, or a function .*\(f, g"):
            integrate(given, y0, params)
    assert VectorField(terms=[term]).terms == (term,)


def test_numbers_of_other_kinds(smooth):
    field, y0, params = smooth
    run = lambda *args, **kwargs: jax.jit(lambda y: integrate(field, y, params, *args, **kwargs))(
        y0
    )
    plain = run(0.0, 1.0, ts=[0.5], **HEUN)
    other = run(
        np.int32(0),
        ml_dtypes.bfloat16(1),
        "heun",
        rtol=np.array(0.1),
        atol=jnp.float32(1e-6),
        max_steps=np.array(64),
        per_sample=np.bool_(False),
        ts=(np.float16(0.5),),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), plain, other)
    assert int(run(jnp.zeros(()), 1, **FIXED | {"steps": jnp.array(2)}).accepted) == 2


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("steps", [FIXED, HEUN, FIXED | {"adjoint": "recursive"}])
def test_no_times(smooth, steps, per_sample):
    field, y0, params = smooth
    for none in ([], jnp.zeros(0)):
        solution = jax.eval_shape(
            lambda y, ts=none: integrate(field, y, params, ts=ts, per_sample=per_sample, **steps),
            y0,
        )
        assert solution.ys.shape == (0, *y0.shape) and solution.y1.shape == y0.shape


def test_throw(smooth):
    field, y0, params = smooth
    solve = lambda y=y0, **kwargs: integrate(field, y, params, throw=True, **kwargs)
    assert int(solve(**FIXED).result) == 0
    with pytest.raises(RuntimeError, match="the solve failed, as it does where t0, t1 or ts"):
        solve(t1=np.nan, **FIXED)
    short = dict(t1=9.0, solver="heun", rtol=1e-6, max_steps=2)
    with pytest.raises(RuntimeError, match="the solve ran out of steps before t1: max_steps=2"):
        solve(**short)
    apart = solve(**FIXED)._replace(result=jnp.array([0, 1, 1]))
    with pytest.raises(RuntimeError, match="2 of 3 samples ran out of steps"):
        checks.check_success(apart, SolveSettings())
    for transform in (jax.jit, jax.grad, jax.vmap):
        with pytest.raises(ValueError, match="being traced .* read `result`"):
            transform(lambda y: solve(y, **FIXED).y1.sum())(y0)


@pytest.mark.parametrize(
    "kwargs",
    [FIXED, dict(steps=2), dict(solver="strang", steps=2), FIXED | {"adjoint": "recursive"}, HEUN],
    ids=["euler", "rk4", "strang", "recursive", "adaptive"],
)
def test_strict_promotion(smooth, kwargs):
    """Between traced ends too, with slopes of bfloat16."""
    field, y0, params = smooth

    def half(term):
        low = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
        return lambda t, y, p: term(low(t), low(y), low(p))

    mixed = VectorField(tuple(map(half, field.terms)))

    def loss(params, t1):
        return sum(integrate(mixed, y0, params, 0.0, t, **kwargs).y1.sum() for t in (1.0, t1))

    run = jax.grad(loss, (0, 1))
    free = jax.eval_shape(run, params, 1.0)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        assert jax.eval_shape(run, params, 1.0) == free


@pytest.mark.parametrize("solver", ["rk4", "strang"])
def test_without_jit(smooth, solver):
    field, y0, params = smooth
    loss = lambda p: integrate(field, y0, p, solver=solver, steps=2).y1.sum()
    with jax.disable_jit():
        plain = jax.grad(loss)(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        plain,
        jax.jit(jax.grad(loss))(params),
    )
