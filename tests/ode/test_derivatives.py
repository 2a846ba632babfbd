"""Derivatives that an adjoint lacks, and programs that are exported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from odeformer import integrate

REVERSE_ONLY = [
    dict(adjoint="recursive", solver="euler", steps=2),
    dict(adjoint="backsolve", solver="euler", steps=2),
    dict(adjoint="checkpoint", solver="heun", rtol=1e-2),
]
ASKED = {
    "jvp": lambda f, p: jax.jvp(f, (p,), (p,)),
    "hessian-vector product": lambda f, p: jax.jvp(jax.grad(f), (p,), (p,)),
    "reverse over reverse": lambda f, p: jax.grad(lambda p: jnp.vdot(jax.grad(f)(p), p))(p),
    "reverse over forward": lambda f, p: jax.grad(lambda p: jax.jvp(f, (p,), (p,))[1])(p),
}


def make_loss(smooth, **kwargs):
    field, y0, params = smooth
    loss = lambda a: integrate(field, y0[0], {**params, "a": a}, **kwargs).y1.sum()
    return loss, params["a"]


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("kwargs", REVERSE_ONLY, ids=lambda kwargs: kwargs["adjoint"])
def test_derivatives_that_an_adjoint_lacks(smooth, kwargs, asked):
    loss, a = make_loss(smooth, **kwargs)
    message = f"adjoint '{kwargs['adjoint']}'.* take adjoint 'direct', or fixed steps under 'chec"
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda a: ASKED[asked](loss, a)).lower(a)


def test_forward_mode_outside_of_jit_too(smooth):
    loss, a = make_loss(smooth, **REVERSE_ONLY[0])
    with pytest.raises(ValueError, match="first derivatives in reverse mode alone"):
        jax.jvp(loss, (a,), (a,))


def test_a_gradient_that_is_not_differentiated_is_no_second_derivative(smooth):
    loss, a = make_loss(smooth, **REVERSE_ONLY[0])
    plain, _ = make_loss(smooth, solver="euler", steps=2)

    def weighed(loss):
        return lambda a: jnp.vdot(jax.lax.stop_gradient(jax.grad(loss)(a)), a)

    np.testing.assert_allclose(
        *(jax.jit(jax.grad(weighed(f)))(a) for f in (loss, plain)), rtol=1e-5
    )


@pytest.mark.parametrize(
    "kwargs",
    [dict(solver="heun", rtol=1e-2), dict(solver="euler", steps=2, adjoint="recursive")],
    ids=["adaptive", "recursive"],
)
def test_programs_are_exported(smooth, kwargs):
    """Between traced ends, where diffrax would check the first step's sign by a callback."""
    field, y0, params = smooth
    solve = jax.jit(lambda y0, t1: integrate(field, y0, params, 0.0, t1, **kwargs).y1)
    program = export.export(solve)(y0, jnp.float32(1))  # refuses callbacks
    assert "callback" not in program.mlir_module()
    np.testing.assert_allclose(program.call(y0, jnp.float32(0.7)), solve(y0, 0.7), rtol=1e-6)
