"""Integration: gradients of every adjoint, counts, adaptive steps, transformations, refusals."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

from odeformer import VectorField, integrate, solvers
from odeformer.ode.problem import ADJOINTS
from tests.helpers.trees import relative_error

ADAPTIVE = dict(rtol=1e-9, atol=1e-9, max_steps=256)
GRADIENTS = [
    *(dict(solver="rk4", steps=12, adjoint=adjoint) for adjoint in ADJOINTS[:4]),
    *(dict(solver="strang", steps=6, adjoint=adjoint) for adjoint in ADJOINTS[:4]),
    dict(solver="rk4", steps=24, adjoint="backsolve"),
    *(
        dict(solver="tsit5", adjoint=adjoint, **ADAPTIVE)
        for adjoint in ("checkpoint", "direct", "backsolve")
    ),
]
MORE_GRADIENTS = [
    dict(solver="lie_trotter", steps=6),
    dict(solver="euler", steps=6),
    dict(solver="dopri8", steps=2),
    dict(solver="tsit5", steps=3, adjoint="recursive"),
]
QUICK = ("lie_trotter", "euler", "heun", "tsit5")  # of each kind: split, one stage, more, adaptive


def widen(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)


@pytest.mark.parametrize(
    "kwargs",
    [*GRADIENTS, *(pytest.param(kwargs, marks=pytest.mark.slow) for kwargs in MORE_GRADIENTS)],
    ids=lambda kwargs: "-".join(map(str, kwargs.values())),
)
def test_gradients_against_finite_differences(float64, smooth, kwargs):
    field, y0, params = smooth
    flat, unravel = ravel_pytree(widen((y0, params)))

    @jax.jit
    @jax.value_and_grad
    def loss(flat):
        y0, params = unravel(flat)
        return jnp.sum(integrate(field, y0, params, **kwargs).y1 ** 2)

    flat = np.asarray(flat)
    slopes = [
        (loss(flat + step)[0] - loss(flat - step)[0]) / 2e-5 for step in 1e-5 * np.eye(flat.size)
    ]
    assert relative_error(loss(flat)[1], jnp.stack(slopes)) < 1e-5


def test_what_checkpoint_stores(smooth):
    """The numbers of 'store', from a program that keeps less."""
    field, _, params = smooth
    y0 = jnp.ones((512, 4))
    size = lambda compiled: compiled.memory_analysis().temp_size_in_bytes

    def program(adjoint):
        loss = lambda p: jnp.sum(integrate(field, y0, p, steps=32, adjoint=adjoint).y1 ** 2)
        return jax.jit(jax.value_and_grad(loss)).lower(params).compile()

    kept, recomputed = program("store"), program("checkpoint")
    np.testing.assert_allclose(kept(params)[0], recomputed(params)[0], rtol=1e-6)
    assert size(recomputed) < size(kept) / 2
    assert size(recomputed) < (32 + 30) * y0.nbytes


def test_single_steps_outside_a_scan_are_recomputed_too():
    """XLA would merge the recomputation with the first computation, and keep everything."""
    deep = lambda t, y, p: jnp.sin(jnp.tanh(jnp.exp(jnp.tanh(y @ p))))
    y0 = jnp.ones((2048, 4))

    def bytes_of(**kwargs):
        def loss(p):
            y = y0
            for _ in range(8):
                y = integrate(VectorField((deep,)), y, p, solver="euler", steps=1, **kwargs).y1
            return jnp.sum(y**2)

        compiled = jax.jit(jax.grad(loss)).lower(jnp.eye(4)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert bytes_of() < 0.7 * bytes_of(adjoint="store")


@pytest.mark.parametrize(
    ("dtype", "adjoint"),
    [
        (jnp.float32, "checkpoint"),
        pytest.param(jnp.bfloat16, "checkpoint", marks=pytest.mark.slow),
        (jnp.bfloat16, "recursive"),
    ],
)
def test_counts_of_fixed_steps_are_exact(dtype, adjoint):
    """Executed evaluations, counted by the field itself, for T from 1 to 96."""
    depths = (1, 2, 3, 7, 12, 13, 24, 31, 48, 63, 90, 96)
    cases = list(zip(solvers.NAMES, depths, strict=True))
    for name, layers in cases[:: 1 if adjoint == "checkpoint" else 3]:
        calls = [0, 0]

        def count(term, calls=calls):
            calls[term] += 1

        def make_term(term, count=count):
            def slope(t, y, params):
                jax.debug.callback(functools.partial(count, term))
                return (0.01 * y.astype(dtype)).astype(dtype)

            return slope

        field = VectorField((make_term(0), make_term(1)))
        run = jax.jit(
            lambda y, field=field, name=name, layers=layers: integrate(
                field, y, None, t1=layers, solver=name, steps=layers, adjoint=adjoint
            )
        )
        solution = run(jnp.ones(3))
        jax.effects_barrier()
        assert solution.nfe.tolist() == calls, name
        assert int(solution.accepted) == layers and int(solution.rejected) == 0
        assert int(solution.result) == 0
        assert solution.y1.dtype == jnp.float32
        if adjoint == "checkpoint":
            assert calls == (layers * solvers.evaluations(name, 2)).tolist()


@pytest.mark.parametrize("adjoint", ["checkpoint", "recursive", "backsolve"])
def test_states_at_given_times_of_fixed_steps(smooth, adjoint):
    field, y0, params = smooth
    ts = [0.0, 0.5, 0.75, 2.0]
    solve = lambda t, **kwargs: jax.jit(
        lambda y: integrate(field, y, params, t1=t, steps=int(4 * t), **kwargs)
    )(y0)
    whole = solve(2.0, ts=ts, adjoint=adjoint)
    for t, y in zip(ts, whole.ys, strict=True):
        np.testing.assert_allclose(y, solve(t).y1 if t else y0, rtol=1e-5)
    np.testing.assert_allclose(whole.ys[-1], whole.y1, rtol=1e-6)
    with pytest.raises(ValueError, match=r"0 \+ n \* 0.25 up to 2; \[0.3\] was given"):
        integrate(field, y0, params, t1=2.0, steps=8, ts=[0.3], adjoint=adjoint)


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in solvers.NAMES
    ],
)
def test_forward_mode_and_vmap(smooth, name):
    field, y0, params = smooth
    solve = lambda p: integrate(field, y0, p, solver=name, steps=2).y1

    @jax.jit
    def transformed(params):
        _, tangent = jax.jvp(solve, (params,), (params,))
        y1, pullback = jax.vjp(solve, params)
        many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
        return tangent, pullback(tangent)[0], jax.vmap(solve)(many)[0], y1

    tangent, cotangent, one_of_many, alone = transformed(params)
    inner = jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, cotangent, params))
    np.testing.assert_allclose(inner, jnp.vdot(tangent, tangent), rtol=1e-4)
    np.testing.assert_allclose(one_of_many, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "kwargs",
    [
        *(dict(steps=3), dict(steps=3, solver="strang"), dict(steps=1)),
        dict(steps=3, reversible=0.9, adjoint="reversible"),
    ],
)
def test_strict_shard_map(smooth, kwargs):
    """On all devices there are: one, two in the test below."""
    field, y0, params = smooth
    y0 = jnp.concatenate([y0, 2 * y0])
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = PartitionSpec("data"), PartitionSpec()

    def gradient(y0, params):
        loss = lambda p: jnp.sum(integrate(field, y0, p, **kwargs).y1 ** 2)
        return jax.grad(loss)(params)

    sharded = jax.jit(
        jax.shard_map(gradient, mesh=mesh, in_specs=(split, whole), out_specs=whole, check_vma=True)
    )
    assert relative_error(sharded(y0, params), jax.jit(gradient)(y0, params)) < 1e-6


@pytest.mark.slow
def test_strict_sharding_on_two_devices():
    code = (
        "import jax, pytest; assert jax.device_count() == 2; "
        f"raise SystemExit(pytest.main([{__file__!r}, '-k', 'test_strict_shard_map']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_key_a_step_shared_by_its_stages():
    key = jax.random.key(3)
    seen = []

    def term(t, y, params, key):
        jax.debug.callback(
            lambda t, k: seen.append((float(t), k.tobytes())), t, jax.random.key_data(key)
        )
        return -y

    solve = lambda **kwargs: jax.jit(
        lambda y: integrate(VectorField((term,)), y, None, key=key, **kwargs).y1
    )(jnp.ones(2))
    solve(t1=2.0, steps=2, solver="heun")
    jax.effects_barrier()
    keys = [k for _, k in sorted(seen, key=lambda pair: pair[0])]
    assert len(keys) == 4 and len(set(keys)) == 2
    expected = [jax.random.key_data(jax.random.fold_in(key, n)).tobytes() for n in range(2)]
    assert set(keys) == set(expected)
    seen.clear()
    solve(solver="tsit5", rtol=1e-3)
    jax.effects_barrier()
    assert len(seen) > 6 and {k for _, k in seen} == {jax.random.key_data(key).tobytes()}


def test_policy_decides_what_checkpoint_keeps(smooth):
    field, y0, params = smooth

    def products(policy):
        loss = lambda p: integrate(field, y0, p, steps=4, solver="euler", policy=policy).y1.sum()
        return str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general")

    assert products("dots_saveable") < products(None)


def test_float64_throughout(float64, smooth):
    field, y0, params = smooth
    seen = []

    def term(t, y, p):
        seen.append(t.dtype)
        return field.terms[0](t, y, p)

    solution = integrate(VectorField((term,)), y0.astype(jnp.float64), params, steps=2)
    assert solution.y1.dtype == jnp.float64 and set(seen) == {jnp.dtype("float64")}


def test_total_is_used_by_all_but_the_splittings(smooth):
    field, y0, params = smooth
    doubled = VectorField(field.terms, total=lambda t, y, p: 2 * field(t, y, p))
    plain = integrate(field, y0, params, steps=4)
    assert float(jnp.abs(integrate(doubled, y0, params, steps=4).y1 - plain.y1).max()) > 0.1
    split = [integrate(f, y0, params, steps=4, solver="strang").y1 for f in (field, doubled)]
    np.testing.assert_array_equal(*split)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(solver="rk5"), "unknown solver 'rk5'"),
        (dict(adjoint="chekpoint"), "Did you mean 'checkpoint'"),
        (dict(policy="dots"), "unknown checkpoint policy"),
        (dict(solver="euler", rtol=1e-3), "no error estimate.*leave rtol out.*tsit5"),
        (dict(solver="tsit5", rtol=1e-3, steps=4), "both given"),
        (dict(solver="tsit5", rtol=1e-3, adjoint="store"), "'store' is for fixed steps"),
        (dict(solver="tsit5", rtol=-1.0), "rtol is greater than 0; -1.0"),
        (dict(atol=1e-3), "without rtol"),
        (dict(steps=0), "steps is a whole number, 1 or more; 0"),
        (dict(solver="strang", adjoint="backsolve"), "splits"),
        (dict(adjoint="store", policy="dots_saveable"), "adjoint 'store' was given: leave the pol"),
        (dict(solver="tsit5", rtol=1e-3, policy="dots_saveable"), "is for fixed steps"),
        *(
            (dict(ts=ts, **steps), message)
            for steps in (dict(steps=4), dict(solver="tsit5", rtol=1e-3))
            for ts, message in (
                (0.5, r"a sequence of times; an array of shape \[\] was given"),
                ([0.5, 0.25], r"in order from t0 to t1; \[0.5, 0.25\] was given"),
                ([0.5, 1.25], r"\[0.5, 1.25\] was given"),
                ([float("nan")], r"\[nan\] was given"),
            )
        ),
    ],
)
def test_refusals(smooth, kwargs, message):
    field, y0, params = smooth
    with pytest.raises(ValueError, match=message):
        integrate(field, y0, params, **kwargs)


def test_refuses_states_and_fields_it_cannot_take(smooth):
    field, y0, params = smooth
    with pytest.raises(ValueError, match="bfloat16 was given: cast y0"):
        integrate(field, y0.astype(jnp.bfloat16), params)
    with pytest.raises(ValueError, match="one term or more"):
        VectorField(())
    with pytest.raises(ValueError, match="a tree without arrays was given"):
        integrate(field, (), params)
    with pytest.raises(ValueError, match=r"share a leading axis, the batch; \[3, 4\], \[\] was"):
        integrate(field, (y0, jnp.float32(1)), params, per_sample=True)


@pytest.mark.parametrize(
    ("slope", "given"),
    [
        (lambda t, y, p: y[0], r"float32\[4\]"),
        (lambda t, y, p: {"dy": y}, r"\{'dy': 'float32\[3,4\]'\}"),
        (lambda t, y, p: y.astype(jnp.int32), r"int32\[3,4\]"),
        (lambda t, y, p: None, "None"),
    ],
    ids=["shape", "structure", "dtype", "none"],
)
@pytest.mark.parametrize("kwargs", [dict(steps=2), dict(solver="tsit5", rtol=1e-3)])
def test_refuses_slopes_unlike_the_state(smooth, slope, given, kwargs):
    field, y0, params = smooth
    terms, total = VectorField((field.terms[0], slope)), VectorField(field.terms, total=slope)
    for wrong, name in ((terms, r"terms\[1\]"), (total, "total")):
        message = rf"{name} of the vector field returned {given} for the state float32\[3,4\]"
        with pytest.raises(ValueError, match=message):
            integrate(wrong, y0, params, **kwargs)


def test_whole_numbers_of_numpy_are_whole(smooth):
    field, y0, params = smooth
    assert int(integrate(field, y0, params, steps=np.int64(2)).accepted) == 2
    for steps in (np.float32(2), np.bool_(True), True, 2.0):
        with pytest.raises(ValueError, match="steps is a whole number"):
            integrate(field, y0, params, steps=steps)
