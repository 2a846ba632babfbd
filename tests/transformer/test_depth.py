"""Weights over depth: architectures written by hand, shared weights, program size, counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import handwritten
from odeformer import DepthConfig, ODEStack, TransformerField, solvers
from tests.helpers.trees import noisy

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


@pytest.mark.parametrize(("share", "steps"), [(1, 1), (2, 4)])
def test_the_field_is_told_the_time_in_layers(share, steps):
    """Layers written by hand, which add an embedding of their time to both normed states.

    Step s of group g stands at t = g share + s share / steps; the embedding is W [sin(t / w_i),
    cos(t / w_i)] + b, the w_i growing geometrically from 1 to 100.
    """
    timed = TransformerField(width=16, heads=2, mlp=32, time="additive")
    y = jax.random.normal(jax.random.key(0), (2, 3, 16))
    stack = ODEStack(DepthConfig(layers=4, share=share, steps=steps), timed)
    params = noisy(jax.jit(stack.init)(jax.random.key(1), y)["params"]["groups"])
    h = share / steps

    def slope(p, t, y):
        angles = t / 100 ** (np.arange(32) / 31)
        embedding = p["time_embedding"]["projection"]
        shift = np.concatenate([np.sin(angles), np.cos(angles)]) @ embedding["kernel"]
        shift += embedding["bias"]
        # A norm's bias is added where the embedding is.
        shifted = {
            name: {**p[name], "bias": p[name]["bias"] + shift}
            for name in ("attention_norm", "mlp_norm")
        }
        return handwritten.attention({**p, **shifted}, y) + handwritten.mlp({**p, **shifted}, y)

    expected = y
    for group in range(4 // share):
        p = jax.tree.map(lambda leaf, group=group: leaf[group], params)
        for step in range(steps):
            expected = expected + h * slope(p, group * share + step * h, expected)
    found = jax.jit(stack.apply)({"params": {"groups": params}}, y).y1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("share", [1, 2, 4])
def test_drop_path_grows_over_the_layers_of_the_stack(share):
    """Layer l of L is dropped with probability r l / (L - 1), whatever the field was made with.

    The field's slope is 1 wherever it is not dropped, so that a sample's state tells which of its
    layers were kept: it is the sum of their 1 / (1 - rate).
    """
    rates = 0.6 * np.arange(4) / 3
    y = jnp.zeros((4000, 1, 16))
    stack = ODEStack(DepthConfig(layers=4, share=share), FIELD.clone(drop_path=0.6, layers=1000))
    shapes = jax.eval_shape(stack.init, jax.random.key(0), y)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    bias = params["params"]["groups"]["mlp_layer"]["down"]["bias"]
    params["params"]["groups"]["mlp_layer"]["down"]["bias"] = jnp.ones_like(bias)
    rngs = {"dropout": jax.random.key(0)}
    y1 = np.asarray(jax.jit(lambda: stack.apply(params, y, train=True, rngs=rngs).y1)())
    np.testing.assert_array_equal(y1, np.broadcast_to(y1[..., :1], y1.shape))

    kept = np.array([(1, a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    sums = kept @ (1 / (1 - rates))
    law = np.where(kept, 1 - rates, rates).prod(axis=1)
    distance = np.abs(y1[:, 0, :1] - sums)
    assert distance.min(axis=1).max() < 1e-5  # no other sum occurs
    shares = np.bincount(distance.argmin(axis=1), minlength=8) / len(y1)
    np.testing.assert_allclose(shares, law, atol=0.04)  # 5 standard deviations


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
        depth = DepthConfig(layers=steps, share=steps, solver="rk4", adjoint=adjoint)
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
