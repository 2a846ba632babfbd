"""Weights over depth: architectures written by hand, shared weights, program size, counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import noisy

from benchmarks import handwritten
from odeformer import DepthConfig, ODEStack, TransformerField, solvers

FIELD = TransformerField(width=16, heads=2, mlp=32)


def make_stack(**depth):
    """A stack as a pure function (params, y) -> Solution."""
    stack = ODEStack(DepthConfig(**depth), FIELD)
    return stack, lambda params, y: stack.apply({"params": {"groups": params}}, y)


@pytest.fixture(scope="module")
def state():
    y = jax.random.normal(jax.random.key(0), (2, 5, 16))
    stack, _ = make_stack(layers=6)
    params = jax.jit(stack.init)(jax.random.key(1), y)["params"]["groups"]
    return y, noisy(params)


@pytest.mark.parametrize("solver", handwritten.LAYERS)
def test_a_step_is_the_layer_written_by_hand(state, solver):
    y, params = state
    expected = handwritten.stack(handwritten.LAYERS[solver], params, y)
    np.testing.assert_allclose(
        make_stack(layers=6, solver=solver)[1](params, y).y1, expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("share", [2, 3, 6])
def test_shared_weights_repeat_the_layer(state, share):
    y, params = state
    few = jax.tree.map(lambda leaf: leaf[: 6 // share], params)
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, share, axis=0), few)
    expected = handwritten.stack(handwritten.parallel_layer, repeated, y)
    shared = make_stack(layers=6, share=share)[1]
    np.testing.assert_allclose(shared(few, y).y1, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", solvers.NAMES)
def test_one_parameter_tree_serves_every_solver(state, solver):
    y, params = state
    stack, apply = make_stack(layers=6, share=1, solver=solver)
    shapes = jax.eval_shape(stack.init, jax.random.key(0), y)["params"]["groups"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
    solution = jax.eval_shape(apply, params, y)
    assert solution.y1.shape == y.shape
    assert solution.nfe.shape == (6, 2) and solution.result.shape == (6,)


def test_finer_steps_approach_the_flow(state):
    y, params = state
    few = jax.tree.map(lambda leaf: leaf[:2], params)
    solve = lambda **depth: make_stack(layers=6, share=3, **depth)[1](few, y)
    fine = solve(solver="rk4", steps=48)
    adaptive = solve(solver="tsit5", rtol=1e-5)
    assert adaptive.accepted.shape == (2,) and int(adaptive.accepted.min()) > 1
    np.testing.assert_allclose(adaptive.y1, fine.y1, rtol=1e-3, atol=1e-3)
    assert fine.nfe.tolist() == [[192, 192]] * 2


def test_the_field_is_told_the_time_in_layers():
    timed = TransformerField(width=16, heads=2, mlp=32, time="additive")
    y = jnp.ones((1, 3, 16))
    stack = ODEStack(DepthConfig(layers=4, share=2), timed)
    params = jax.jit(stack.init)(jax.random.key(0), y)["params"]["groups"]
    kernel = params["time_embedding"]["projection"]["kernel"]
    params["time_embedding"]["projection"]["kernel"] = jnp.ones_like(kernel)
    by_group = jax.tree.map(lambda leaf: leaf.at[1].set(leaf[0]), params)
    second = ODEStack(DepthConfig(layers=2, share=2), timed)
    first = jax.tree.map(lambda leaf: leaf[:1], by_group)
    half = second.apply({"params": {"groups": first}}, y).y1
    again = second.apply({"params": {"groups": first}}, half).y1
    whole = stack.apply({"params": {"groups": by_group}}, y).y1
    assert float(jnp.abs(whole - again).max()) > 1e-4  # group 1 sees t = 2, 3, not 0, 1


def test_groups_draw_masks_of_their_own():
    """The field's slope is 1 wherever it is not dropped, in both groups."""
    field = FIELD.clone(dropout=0.5)
    y = jnp.zeros((4, 8, 16))
    stack = ODEStack(DepthConfig(layers=2), field)
    shapes = jax.eval_shape(stack.init, jax.random.key(0), y)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    bias = params["params"]["groups"]["mlp_layer"]["down"]["bias"]
    params["params"]["groups"]["mlp_layer"]["down"]["bias"] = jnp.full_like(bias, 0.5)
    run = jax.jit(lambda key: stack.apply(params, y, train=True, rngs={"dropout": key}).y1)
    kept = np.bincount(np.asarray(run(jax.random.key(0))).astype(int).ravel(), minlength=3)
    np.testing.assert_allclose(kept / y.size, [0.25, 0.5, 0.25], atol=0.08)


def test_drop_path_grows_over_the_depth_of_the_stack():
    """Whatever layers the field was made with."""
    y = jax.random.normal(jax.random.key(0), (64, 3, 16))
    few, many = (
        ODEStack(DepthConfig(layers=2), FIELD.clone(drop_path=0.5, layers=layers))
        for layers in (2, 1000)
    )
    variables = jax.jit(few.init)(jax.random.key(1), y)
    rngs = {"dropout": jax.random.key(2)}
    run = lambda stack: jax.jit(lambda: stack.apply(variables, y, train=True, rngs=rngs).y1)()
    np.testing.assert_array_equal(run(few), run(many))


def test_program_hardly_grows_with_depth():
    y = jax.ShapeDtypeStruct((2, 5, 16), jnp.float32)

    def program(layers):
        stack, apply = make_stack(layers=layers, solver="heun")
        params = jax.eval_shape(stack.init, jax.random.key(0), y)["params"]["groups"]
        loss = lambda params, y: apply(params, y).y1.sum()
        text = jax.jit(jax.grad(loss)).lower(params, y).compile().as_text()
        return len(text.splitlines())

    assert program(96) <= 1.02 * program(12)


@pytest.mark.parametrize(
    "solver",
    [
        "euler",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("lie_trotter", "strang", "rk4")),
    ],
)
def test_memory_of_the_hand_written_scan(solver):
    """XLA's temporary memory of a gradient: within 3 % of scans over layers written by hand."""
    field = TransformerField(width=64, heads=4, mlp=256)
    y = jax.ShapeDtypeStruct((8, 33, 64), jnp.float32)
    stack = ODEStack(DepthConfig(layers=12, solver=solver), field)
    params = jax.eval_shape(stack.init, jax.random.key(0), y)["params"]["groups"]
    ours = lambda p, y: stack.apply({"params": {"groups": p}}, y).y1.sum()
    theirs = lambda p, y: handwritten.stack(handwritten.LAYERS[solver], p, y).sum()
    sizes = [
        jax.jit(jax.grad(loss)).lower(params, y).compile().memory_analysis().temp_size_in_bytes
        for loss in (ours, theirs)
    ]
    assert sizes[0] <= 1.03 * sizes[1]


@pytest.mark.parametrize("solver", ["rk4", pytest.param("tsit5", marks=pytest.mark.slow)])
def test_checkpoint_stores_one_state_a_step(solver):
    field = TransformerField(width=64, heads=4, mlp=256)
    y = jax.ShapeDtypeStruct((8, 33, 64), jnp.float32)

    def size(steps):
        stack = ODEStack(DepthConfig(layers=steps, share=steps, solver=solver), field)
        params = jax.eval_shape(stack.init, jax.random.key(0), y)["params"]["groups"]
        loss = lambda p, y: stack.apply({"params": {"groups": p}}, y).y1.sum()
        compiled = jax.jit(jax.grad(loss)).lower(params, y).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    state_bytes = 8 * 33 * 64 * 4
    assert size(64) - size(4) <= 1.05 * 60 * state_bytes


@pytest.mark.slow
def test_memory_of_rk4_steps_by_hand():
    """One group of 4 and of 64 steps: as by hand, and 'recursive' hardly grows at all."""
    y = jax.ShapeDtypeStruct((8, 33, 64), jnp.float32)
    field = TransformerField(width=64, heads=4, mlp=256)

    def size(apply):
        gradient = jax.jit(jax.grad(lambda p, y: apply(p, y).sum()))
        return gradient.lower(params, y).compile().memory_analysis().temp_size_in_bytes

    def ours(steps, adjoint):
        depth = DepthConfig(steps, share=steps, solver="rk4", adjoint=adjoint)
        return size(lambda p, y: ODEStack(depth, field).apply({"params": {"groups": p}}, y).y1)

    def by_hand(steps):
        return size(lambda p, y: handwritten.shared_stack(handwritten.rk4_layer, p, y, steps))

    stack = ODEStack(DepthConfig(layers=1), field)
    params = jax.eval_shape(stack.init, jax.random.key(0), y)["params"]["groups"]
    for steps in (4, 64):
        assert ours(steps, "checkpoint") <= 1.05 * by_hand(steps)
    assert ours(64, "recursive") <= 1.3 * ours(4, "recursive")


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (dict(layers=12, share=5), "share=5 does not divide layers=12: take share from 1, 2, 3, 4"),
        (dict(layers=0), "layers is a whole number, 1 or more; 0"),
        (dict(solver="rk44"), "Did you mean 'rk4'"),
        (dict(adjoint="backprop"), "unknown adjoint 'backprop'"),
        (dict(solver="rk4", rtol=1e-3), "no error estimate"),
        (dict(solver="tsit5", steps=3, rtol=1e-3), "both given"),
        (dict(adjoint="recursive", policy="dots_saveable"), "adjoint 'recursive' was given"),
    ],
)
def test_refusals(depth, message):
    with pytest.raises(ValueError, match=message):
        DepthConfig(**depth)
