"""What a function computes in, and that a narrow one is evaluated apart from its pullback."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer.ode.precision import computes_below, evaluated_alone


def narrow(t, y, params):
    """In bfloat16, inside a function of its own, of which only the result is wide."""
    inner = jax.jit(lambda y: jnp.sin(y.astype(jnp.bfloat16)).astype(y.dtype))
    return params * inner(y)


def wide(t, y, params):
    return params * jnp.sin(t * y)


@pytest.mark.parametrize(
    ("dtype", "function", "expected"),
    [
        (jnp.float32, wide, False),
        (jnp.float32, narrow, True),
        (jnp.float32, jax.checkpoint(narrow), True),
        (jnp.float32, lambda t, y, p: jax.lax.cond(t > 0, narrow, wide, t, y, p), True),
        (jnp.float32, lambda t, y, p: y * jax.random.randint(jax.random.key(0), (), 0, 9), False),
        (jnp.float64, lambda t, y, p: jnp.sin(y.astype(jnp.float32)), True),
        (jnp.float64, wide, False),
    ],
)
def test_what_is_below_a_dtype(float64, dtype, function, expected):
    t, y, params = jnp.ones((), dtype), jnp.ones(3, dtype), jnp.asarray(2, dtype)
    assert computes_below(dtype, function, t, y, params) == expected


@pytest.mark.parametrize(("function", "times"), [(wide, 1), (narrow, 2)])
def test_a_narrow_term_is_evaluated_twice(function, times):
    """For its value, and for its pullback; and its gradient is the term's own."""
    args = jnp.float32(0.5), jnp.linspace(-1, 1, 5), jnp.float32(2)
    loss = lambda term: lambda t, y, params: jnp.sum(term(t, y, params) ** 2)
    gradient = jax.grad(loss(evaluated_alone(function)), argnums=(1, 2))
    assert str(jax.make_jaxpr(gradient)(*args)).count(" sin ") == times
    expected = jax.grad(loss(function), argnums=(1, 2))(*args)
    for found, known in zip(gradient(*args), expected, strict=True):
        np.testing.assert_allclose(found, known, rtol=1e-2)
