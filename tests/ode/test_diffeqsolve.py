"""Solves through diffrax: adaptive steps, their counts and times, and the continuous adjoint."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from odeformer import VectorField, integrate
from tests.helpers.trees import relative_error


def widen(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)


@pytest.mark.slow
def test_backsolve_is_wrong_at_coarse_steps(float64, smooth):
    field, y0, params = smooth
    y0, params = widen((y0, params))

    def gradient(adjoint, steps):
        loss = lambda p: jnp.sum(
            integrate(field, y0, p, t1=3.0, solver="euler", steps=steps, adjoint=adjoint).y1 ** 2
        )
        return jax.jit(jax.grad(loss))(params)

    errors = [
        relative_error(gradient("backsolve", steps), gradient("store", steps)) for steps in (4, 128)
    ]
    assert errors[0] > 0.1 and errors[1] < 0.05


@pytest.mark.parametrize("name", ["heun", "bosh3", "tsit5", "dopri8"])
def test_counts_of_adaptive_steps_are_exact(smooth, name):
    field, y0, params = smooth
    calls = []

    def counting(t, y, p):
        jax.debug.callback(lambda: calls.append(1))
        return field.terms[0](t, y, p)

    counted = VectorField((counting, field.terms[1]))
    solution = jax.jit(
        lambda y: integrate(counted, y, params, t1=6.0, solver=name, rtol=1e-3, max_steps=500)
    )(y0)
    jax.effects_barrier()
    assert int(solution.result) == 0
    assert solution.nfe.tolist() == [len(calls)] * 2
    if name == "tsit5":
        assert int(solution.rejected) > 0  # the rejected are counted, and there were some


def test_adaptive_solves_agree_with_a_fine_fixed_one(float64, smooth):
    field, y0, params = smooth
    y0, params = widen((y0, params))
    exact = jax.jit(lambda: integrate(field, y0, params, t1=4.0, solver="dopri8", steps=200).y1)()
    solve = jax.jit(
        lambda rtol: integrate(
            field, y0, params, t1=4.0, solver="tsit5", rtol=rtol, atol=rtol, max_steps=1000
        ),
        static_argnums=0,
    )
    loose, middle, tight = solve(1e-3), solve(1e-6), solve(1e-9)
    assert int(loose.accepted) > 1
    assert int(loose.nfe[0]) < int(middle.nfe[0]) < int(tight.nfe[0])
    for solution, tolerance in ((loose, 1e-3), (middle, 1e-6), (tight, 1e-9)):
        error = jnp.max(jnp.abs(solution.y1 - exact) / (1 + jnp.abs(exact)))
        assert error < 20 * tolerance  # 20: the tolerance bounds a step's error, these have many


def test_per_sample_answers_do_not_depend_on_the_batch(float64, smooth):
    field, y0, params = smooth
    y0, params = widen((y0, params))
    stiff = y0 * jnp.array([1.0, 5.0, 25.0])[:, None]
    solve = jax.jit(
        lambda y: integrate(field, y, params, t1=3.0, solver="tsit5", rtol=1e-5, per_sample=True)
    )
    together = solve(stiff)
    for i in range(3):
        alone = solve(stiff[i : i + 1])
        np.testing.assert_allclose(together.y1[i], alone.y1[0], rtol=1e-12, atol=1e-12)
        assert together.nfe[i].tolist() == alone.nfe[0].tolist()
    assert together.nfe.shape == (3, 2) and together.result.shape == (3,)
    assert len(set(together.nfe[:, 0].tolist())) > 1
    shared = jax.jit(lambda y: integrate(field, y, params, t1=3.0, solver="tsit5", rtol=1e-5))(
        stiff
    )
    assert float(jnp.abs(shared.y1 - together.y1).max()) > 0


@pytest.mark.parametrize("adjoint", ["checkpoint", "backsolve"])
def test_running_out_of_steps_is_told(float64, smooth, adjoint):
    field, y0, params = smooth
    y0, params = widen((y0, params))
    solve = jax.jit(
        lambda ts: integrate(
            field, y0, params, 0.0, 50.0, "tsit5", None, adjoint, ts, rtol=1e-7, max_steps=8
        ),
        static_argnums=0,
    )
    plain, timed = solve(None), solve((0.1, 0.2, 20.0, 50.0))
    for solution in (plain, timed):
        assert int(solution.result) == 1
        assert int(solution.accepted + solution.rejected) == 8
    exact = jax.jit(lambda t: integrate(field, y0, params, t1=t, solver="dopri8", steps=4).y1)
    np.testing.assert_allclose(timed.ys[:2], jnp.stack([exact(0.1), exact(0.2)]), atol=1e-4)
    assert bool(jnp.isinf(timed.ys[2:]).all())
    assert bool(jnp.isfinite(plain.y1).all())
    if adjoint == "backsolve":
        assert bool(jnp.isinf(timed.y1).all())
    else:
        np.testing.assert_allclose(timed.y1, plain.y1, rtol=1e-12)


TOLERANCES = dict(solver="tsit5", rtol=1e-9, atol=1e-9, max_steps=256)


@pytest.mark.parametrize(
    ("ends", "kwargs"),
    [
        ((0.0, 2.0), dict(adjoint="recursive", **TOLERANCES)),
        pytest.param((2.0, 0.0), dict(adjoint="backsolve", **TOLERANCES), marks=pytest.mark.slow),
        ((0.0, 2.0), dict(adjoint="backsolve", solver="rk4", steps=80)),
        pytest.param(
            (2.0, 0.0),
            dict(adjoint="backsolve", solver="rk4", steps=80),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["recursive", "backsolve", "fixed", "fixed-backwards"],
)
def test_gradients_through_the_states_at_given_times(float64, smooth, ends, kwargs):
    """Times that hold t0, or t1 once or twice, are the ones that diffrax's adjoint stumbles on."""
    field, y0, params = smooth
    y0, params = widen((y0, params))
    inner = (0.5, 1.25)[:: 1 if ends[0] == 0 else -1]
    ts = (ends[0], *inner, ends[1], ends[1])

    def gradient(**kwargs):
        def loss(params):
            solution = integrate(field, y0, params, *ends, ts=ts, **kwargs)
            weights = jnp.arange(1.0, 6.0)[:, None, None]
            return jnp.sum(weights * jnp.sin(solution.ys)) + jnp.sum(solution.y1**2)

        return jax.jit(jax.grad(loss))(params)

    exact = gradient(solver="rk4", adjoint="store", steps=80)
    assert relative_error(gradient(**kwargs), exact) < 1e-6


def test_states_at_given_times_of_adaptive_steps(smooth):
    field, y0, params = smooth
    solve = lambda **kwargs: jax.jit(
        lambda y: integrate(field, y, params, solver="tsit5", rtol=1e-6, **kwargs)
    )(y0)
    solution = solve(ts=[0.0, 0.37, 1.0])
    np.testing.assert_allclose(solution.ys[0], y0)
    np.testing.assert_allclose(solution.ys[1], solve(t1=0.37).y1, rtol=1e-4)
    np.testing.assert_allclose(solution.ys[2], solution.y1, rtol=1e-6)
    assert solve(ts=[0.5], per_sample=True).ys.shape == (1, *y0.shape)


def test_adaptive_checkpoint_is_direct_inside_shard_map(float64, smooth):
    field, y0, params = smooth
    y0, params = widen((y0, params))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = PartitionSpec("data"), PartitionSpec()

    def gradient(y0, params):
        loss = lambda p: jnp.sum(integrate(field, y0, p, solver="tsit5", rtol=1e-3).y1 ** 2)
        return jax.grad(loss)(params)

    sharded = jax.jit(
        jax.shard_map(
            gradient, mesh=mesh, in_specs=(split, whole), out_specs=whole, check_vma=False
        )
    )
    assert relative_error(sharded(y0, params), jax.jit(gradient)(y0, params)) < 1e-9


@pytest.mark.parametrize("length", [1.0, 3.0, 0.1, 7.3, np.pi, 1e-3, 1e3])
def test_constant_steps_of_diffrax_are_exact(length):
    """What fixed steps through diffeqsolve rest on; lengths of one bit and of many."""
    steps = jnp.arange(1, 97)

    def controller(t0, t1, dt0):
        init = diffrax.ConstantStepSize().init
        first, (_, count, _, _) = init(None, t0, t1, None, dt0, None, None, None)
        return first, count

    for t0 in (0.0, 90.0):
        start, end = jnp.float32(t0), jnp.float32(t0 + length)
        dt0 = (end - start) / steps
        first, count = jax.vmap(controller, (None, None, 0))(start, end, dt0)
        np.testing.assert_array_equal(count, steps)
        np.testing.assert_array_equal(first, start + dt0)


def test_backsolve_with_times_is_known_before_tracing(smooth):
    field, y0, params = smooth
    solve = jax.jit(
        lambda t1: integrate(
            field, y0, params, t1=t1, ts=[0.5], solver="tsit5", rtol=1e-3, adjoint="backsolve"
        )
    )
    with pytest.raises(ValueError, match="'backsolve' ts, t0 and t1 are known before tracing"):
        solve(1.0)


DECAY = VectorField(terms=(lambda t, y, p: -p["rate"] * y * p["mask"],))


def test_weights_leave_entries_out_of_the_error_norm():
    """A stiff entry of weight 0 costs no step, and one of weight 1 does."""
    y0, rates = jnp.array([1.0, 1.0]), jnp.array([1.0, 40.0])
    params = {"rate": rates, "mask": jnp.ones(2)}
    controls = dict(solver="tsit5", rtol=1e-4, max_steps=500)
    solve = jax.jit(lambda weights: integrate(DECAY, y0, params, weights=weights, **controls))
    first = {"rate": rates[:1], "mask": 1.0}
    alone = jax.jit(lambda y: integrate(DECAY, y, first, **controls))(y0[:1])
    left_out, counted = solve(jnp.array([1.0, 0.0])), solve(jnp.ones(2))
    assert int(left_out.accepted) == int(alone.accepted) < int(counted.accepted)
    assert left_out.nfe.tolist() == alone.nfe.tolist()
    assert solve(None).nfe.tolist() == counted.nfe.tolist()


def test_params_with_an_axis_of_samples():
    """Under per_sample each sample meets its own part of params, with a leading axis of 1."""
    y0 = jnp.ones((3, 2))
    masks = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    seen = []

    def term(t, y, params):
        seen.append((y.shape, params["mask"].shape))
        return DECAY.terms[0](t, y, params)

    solve = functools.partial(integrate, VectorField((term,)), solver="tsit5", rtol=1e-4)
    params = {"rate": jnp.array([1.0, 9.0]), "mask": masks}
    spread = functools.partial(solve, per_sample=True, params_axes={"rate": None, "mask": 0})
    together = jax.jit(spread)(y0, params)
    assert set(seen) == {((1, 2), (1, 2))}
    solve_one = jax.jit(solve)
    for n in (1, 2):
        alone = solve_one(y0[n : n + 1], {**params, "mask": masks[n : n + 1]})
        np.testing.assert_allclose(together.y1[n], alone.y1[0], rtol=1e-6)
        assert together.nfe[n].tolist() == alone.nfe.tolist()
    gradient = jax.jit(jax.grad(lambda p: spread(y0, p).y1.sum()))(params)
    np.testing.assert_allclose(gradient["rate"][0], -2 * np.exp(-1), rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(weights={"a": jnp.ones(2)}), "weights are of the state's structure"),
        (dict(weights=jnp.ones(3)), r"shapes \[\[3\]\] do not broadcast to the state's \[\[2\]\]"),
        (dict(params_axes={"rate": 1, "mask": None}), "a tree of 0 .* and None"),
    ],
)
def test_weights_and_axes_that_do_not_fit(changes, message):
    params = {"rate": jnp.ones(2), "mask": jnp.ones(2)}
    with pytest.raises(ValueError, match=message):
        integrate(DECAY, jnp.ones(2), params, solver="tsit5", rtol=1e-3, **changes)


def test_weights_of_one_for_all_samples():
    """They are broadcast to the state under per_sample too."""
    params = {"rate": jnp.array([1.0, 40.0]), "mask": 1.0}
    controls = dict(solver="tsit5", rtol=1e-4, per_sample=True)
    solve = jax.jit(
        lambda weights: integrate(DECAY, jnp.ones((3, 2)), params, weights=weights, **controls)
    )
    light, heavy = solve(jnp.array([1.0, 0.0])), solve(jnp.array([1.0, 1.0]))
    assert light.accepted.shape == (3,) and int(light.accepted[0]) < int(heavy.accepted[0])


def test_the_first_step_is_the_books():
    """Of y' = -y the first step is (0.01 rtol)^(1 / 5): Hairer, Norsett, Wanner 1993, II.4."""
    solve = jax.jit(
        lambda t1: integrate(
            lambda t, y, p: -y, jnp.ones(1), None, t1=t1, solver="tsit5", rtol=1e-4, atol=1e-30
        )
    )
    first = (0.01 * 1e-4) ** (1 / 5)
    taken = [int(solve(length * first).accepted) for length in (0.97, 1.03, 1.5)]
    assert taken == [1, 2, 2]


def test_samples_draw_on_their_own():
    """One key each under per_sample, and the same answers for the same key."""
    term = lambda t, y, p, key: jax.random.normal(key, y.shape)
    solve = jax.jit(
        lambda key: (
            integrate(
                term, jnp.zeros((3, 2)), None, solver="bosh3", rtol=1e-2, per_sample=True, key=key
            ).y1
        )
    )
    drawn = solve(jax.random.key(0))
    assert len(np.unique(np.asarray(drawn))) == 6
    np.testing.assert_array_equal(drawn, solve(jax.random.key(0)))
