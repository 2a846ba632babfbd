"""The reversible pair: by hand, its gradient against the stored one, what it refuses."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import DepthConfig, LMConfig, VectorField, integrate, solvers
from odeformer.ode.reversible import begin, step, undo
from tests.helpers.trees import relative_error

PAIR = dict(reversible=0.9, adjoint="reversible")


def test_steps_by_hand():
    """Three steps of Heun's method on dy/dt = t y, in NumPy."""

    def increment(t, h, y):
        first = t * y
        return h / 2 * (first + (t + h) * (y + h * first))

    y = z = 1.0
    h, coupling = 0.5, 0.9
    for t in (0.0, 0.5, 1.0):
        y = coupling * y + (1 - coupling) * z + increment(t, h, z)
        z = z - increment(t + h, -h, y)

    field = VectorField((lambda t, y, _: t * y,))
    found = integrate(field, jnp.ones(1), None, t1=1.5, solver="heun", steps=3, reversible=0.9)
    np.testing.assert_allclose(found.y1, [y], rtol=1e-6)
    np.testing.assert_allclose(found.gap, abs(y - z) / y, rtol=1e-4)
    assert found.nfe.tolist() == [12] and int(found.accepted) == 3 and int(found.result) == 0


@pytest.mark.parametrize(("name", "order"), [("midpoint", 2), ("rk4", 4)])
def test_the_order_is_the_solver_s(float64, name, order):
    def error(steps):
        field = VectorField((lambda t, y, _: jnp.cos(t) * y,))
        found = integrate(field, jnp.ones(()), None, solver=name, steps=steps, reversible=0.99)
        return abs(float(found.y1) - np.exp(np.sin(1)))

    assert np.log2(error(8) / error(16)) > order - 0.35


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        *(("midpoint", 3), ("euler", 1)),
        *(pytest.param(name, 4, marks=pytest.mark.slow) for name in solvers.NAMES),
    ],
)
def test_gradients_of_all_that_is_traced(float64, smooth, name, steps):
    """Of the state, the parameters and the ends, through y1 and the states between."""
    field, y0, params = smooth
    y0, params = jax.tree.map(lambda x: x.astype(jnp.float64), (y0, params))

    def gradients(adjoint):
        def loss(y0, params, t0, t1):
            kwargs = dict(solver=name, steps=steps, adjoint=adjoint, reversible=0.9)
            whole = integrate(field, y0, params, t0=t0, t1=t1, **kwargs)
            between = integrate(field, y0, params, ts=[0.0, 1.0, 1.0], **kwargs)
            weights = jnp.arange(3.0)[:, None, None]
            return jnp.sum(whole.y1**2) + jnp.sum(weights * between.ys**2)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(y0, params, 0.1, 1.3)

    stored, recovered = gradients("store"), gradients("reversible")
    for found, expected in zip(recovered, stored, strict=True):
        assert relative_error(found, expected) < 1e-12


def test_checkpoint_differentiates_the_same_pair(float64, smooth):
    field, y0, params = smooth

    def gradient(adjoint):
        loss = lambda p: jnp.sum(
            integrate(field, y0, p, steps=4, adjoint=adjoint, reversible=0.9).y1
        )
        return jax.jit(jax.grad(loss))(params)

    assert relative_error(gradient("checkpoint"), gradient("store")) < 1e-6


def test_a_step_is_undone_to_the_last_digit_and_beyond():
    """What is rounded off a state is carried along: a plain sum would lose it."""
    increment = lambda half, t0, t1, y: (t1 - t0) * jnp.sin(y)
    pair = begin(jnp.linspace(-2, 2, 1000))
    for _ in range(50):
        pair = step(0.999, increment, pair, 0.0, 0.02)
    for _ in range(50):
        pair = undo(0.999, increment, pair, 0.0, 0.02)
    assert float(jnp.abs(pair.y - jnp.linspace(-2, 2, 1000)).max()) < 3e-7


def test_one_key_a_step_for_both_halves():
    keys = []

    def term(t, y, params, key):
        jax.debug.callback(lambda k: keys.append(k.tobytes()), jax.random.key_data(key))
        return -y

    key = jax.random.key(3)
    integrate(term, jnp.ones(1), None, solver="midpoint", steps=2, key=key, reversible=0.9)
    jax.effects_barrier()
    assert len(keys) == 8 and len(set(keys)) == 2


def test_a_pair_per_sample_lists_its_counts(smooth):
    field, y0, params = smooth
    found = integrate(field, y0, params, steps=2, per_sample=True, reversible=0.99)
    assert found.nfe.shape == (3, 2) and found.gap.shape == found.result.shape == (3,)
    alone = integrate(field, y0[1:2], params, steps=2, reversible=0.99)
    np.testing.assert_allclose(found.gap[1], alone.gap, rtol=1e-3)
    assert integrate(field, y0, params, steps=2).gap is None


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        (dict(adjoint="reversible"), "reversible=None was given: give a lambda, such as"),
        (dict(reversible=1.5), r"reversible is a lambda in \(0, 1\], such as 0.999; 1.5 was given"),
        (dict(reversible=True), r"in \(0, 1\], such as 0.999; True was given"),
        (dict(reversible=0.0), r"in \(0, 1\], such as 0.999; 0.0 was given"),
        (dict(reversible=0.9, rtol=1e-3, solver="tsit5"), "a pair takes fixed steps"),
        (dict(adjoint="reversible", reversible=0.9, policy="dots_saveable"), "leave the policy"),
        (dict(reversible=0.5, steps=20), r"above 0.001: the state .* give reversible=0.6366 or m"),
        (dict(**PAIR, steps=8, ts=[0.3]), r"here 0 \+ n \* 0.125 up to 1; \[0.3\] was given"),
        *(
            (dict(reversible=0.9, adjoint=name), f"adjoint '{name}' is diffrax's, which solves")
            for name in ("recursive", "direct", "backsolve")
        ),
    ],
)
def test_refusals(smooth, kwargs, text):
    with pytest.raises(ValueError, match=text):
        integrate(*smooth, **kwargs)


def test_the_smallest_lambda_named_is_accepted(smooth):
    field, y0, params = smooth
    jax.eval_shape(lambda y: integrate(field, y, params, steps=20, reversible=0.6366), y0)
    LMConfig(depth=dict(layers=48, solver="rk4", reversible=0.9))
    with pytest.raises(ValueError, match="over 96 steps in float32 divides rounding errors"):
        LMConfig(depth=dict(layers=48, share=2, steps=4, solver="rk4", reversible=0.9))


@pytest.mark.parametrize("derivative", [jax.jacfwd, jax.hessian])
def test_other_derivatives_are_refused_in_words(smooth, derivative):
    field, y0, params = smooth
    loss = lambda p: jnp.sum(integrate(field, y0, p, steps=2, **PAIR).y1)
    with pytest.raises(ValueError, match="'reversible' has first derivatives in reverse mode alo"):
        jax.jit(derivative(loss))(params)


def test_first_order_is_warned_of():
    with pytest.warns(UserWarning, match="over solver 'strang', which is of first order"):
        DepthConfig(solver="strang", reversible=0.999)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DepthConfig(solver="rk4", reversible=0.999)
        DepthConfig(solver="euler")
