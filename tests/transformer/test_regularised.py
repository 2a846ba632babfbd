"""A regularised depth: sums along the flow of a stack and of the models, and its random end."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import (
    DepthConfig,
    LMConfig,
    ODEStack,
    RegularisedDepth,
    Solution,
    TextConfig,
    TransformerField,
    VectorField,
    ViTConfig,
    example_inputs,
    flops,
    integrate,
    make_model,
    make_vector_field,
    sow_counts,
)
from odeformer.transformer.field import FieldParams
from odeformer.transformer.groups import random_lengths
from tests.helpers.trees import noisy

SIZES = dict(width=8, heads=2, mlp=12)
FIELD = TransformerField(**SIZES, time="additive")
BOTH = ("kinetic", "error")
Y = jax.random.normal(jax.random.key(0), (3, 4, 8))


@pytest.fixture(scope="module")
def theta():
    stack = ODEStack(DepthConfig(layers=4, share=2), FIELD)
    return noisy(jax.jit(stack.init)(jax.random.key(1), Y)["params"])


def solve(theta, y=Y, train=False, key=2, field=FIELD, weights=None, **depth):
    """A stack's solution and its states, in one jitted program."""
    stack = ODEStack(RegularisedDepth(layers=4, share=2, **depth), field)
    rngs = {"dropout": jax.random.key(key)}

    @jax.jit
    def run(theta, y):
        return stack.apply(
            {"params": theta}, y, train, None, weights, rngs=rngs, mutable=["states"]
        )

    solution, aux = run(theta, y)
    return solution, np.asarray(aux["states"]["y"])


def test_kinetic_energy_from_the_states(theta):
    """One step per group, so that the states between the groups are all that there are."""
    weights = jnp.ones((3, 4, 1)).at[1, 2:].set(0.0)
    solution, states = solve(theta, weights=weights, solver="lie_trotter", steps=1, sums=BOTH[:1])
    speeds = ((states[1:] - states[:-1]) / 2) ** 2
    seen = np.broadcast_to(weights, speeds.shape)
    expected = 2 * (seen * speeds).sum((2, 3)) / seen.sum((2, 3))
    np.testing.assert_allclose(solution.sums["kinetic"], expected, rtol=1e-5)
    assert solution.sums.keys() == {"kinetic"}


def test_sums_of_groups_are_those_of_their_solves(theta):
    solution, states = solve(theta, solver="heun", sums=BOTH, steps=1)
    field: VectorField = make_vector_field(FIELD)
    for group in range(2):
        params = FieldParams(jax.tree.map(lambda x, g=group: x[g], theta["groups"]), 2.0 * group)
        alone = jax.jit(
            lambda y, params=params: integrate(
                field, y, params, t1=2.0, solver="heun", steps=1, sums=BOTH
            )
        )(states[group])
        for name in BOTH:
            np.testing.assert_allclose(solution.sums[name][group], alone.sums[name], rtol=1e-4)


@pytest.mark.parametrize(
    ("solver", "name", "most"), [("rk4", "kinetic", 1.0), ("tsit5", "error", 1.18)]
)
def test_what_the_gradient_of_a_sum_computes_again(theta, solver, name, most):
    """No stage for the kinetic energy; for the error the stage that it alone reads, 1 / 6."""

    def products(sums):
        stack = ODEStack(RegularisedDepth(layers=4, share=2, solver=solver, sums=sums), FIELD)

        def loss(theta):
            solution = stack.apply({"params": theta}, Y)
            return solution.y1.sum() + sum(x.sum() for x in (solution.sums or {}).values())

        return flops.count(jax.grad(loss), theta)

    assert products((name,)) <= most * products(())


def test_the_last_group_ends_at_random_in_training(theta):
    """In as many steps, for the whole batch at the same time, which follows from the key."""
    depth = dict(solver="euler", steps=1, end_time=1.5)
    _, states = solve(theta, **depth)
    found = [solve(theta, train=True, key=key, **depth) for key in (2, 3, 4)]

    # One Euler step of the length T: its share of the step that is taken in evaluation is T / 2.
    ends = []
    for solution, moved in found:
        np.testing.assert_array_equal(solution.nfe, [[1, 1], [1, 1]])
        np.testing.assert_array_equal(moved[:2], states[:2])
        step, whole = moved[2] - moved[1], states[2] - states[1]
        ends.append(2 * np.vdot(step, whole) / np.vdot(whole, whole))
        np.testing.assert_allclose(step, ends[-1] / 2 * whole, atol=1e-4)
    assert all(0.5 < end < 3.5 for end in ends) and np.ptp(ends) > 0.1


def test_a_random_end_lies_evenly_around_the_end_in_time():
    """U(T - b, T + b), of the last group alone."""
    depth = RegularisedDepth(layers=4, share=2, end_time=1.5)
    keys = jax.random.split(jax.random.key(0), 1000)
    lengths = jax.vmap(lambda key: random_lengths(depth, lambda _: key, jnp.float32))(keys)
    first, last = np.asarray(lengths).T
    assert (first == 2).all()
    np.testing.assert_allclose(np.quantile(last, [0, 0.5, 1]), [0.5, 2, 3.5], atol=0.15)


@pytest.mark.slow
def test_masks_of_dropout_are_those_of_a_flow_that_ends_in_time(theta):
    dropping = TransformerField(**SIZES, time="additive", dropout=0.5)
    same = [solve(theta, train=True, field=dropping, end_time=b)[1] for b in (0.0, 1e-6)]
    np.testing.assert_allclose(*same, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        ViTConfig(8, 4, 1, 3, **SIZES, depth=RegularisedDepth(layers=2, solver="tsit5", sums=BOTH)),
        LMConfig(
            vocabulary=9, block_size=6, **SIZES,
            depth=RegularisedDepth(layers=2, solver="heun", sums=BOTH, end_time=0.5),
        ),
        TextConfig(
            vocabulary=9, block_size=6, **SIZES,
            depth=RegularisedDepth(layers=2, solver="heun", sums=BOTH, per_sample=True),
        ),
    ],
    ids=lambda config: type(config).__name__,
)  # fmt: skip
def test_models_return_the_sums(config):
    """In evaluation as in training, an entry per group and example."""
    model, inputs = make_model(config), example_inputs(config)
    inputs = [jax.ShapeDtypeStruct((5, *x.shape[1:]), x.dtype) for x in inputs]
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    for train in (False, True):
        rngs = {"dropout": jax.random.key(0)}
        apply = lambda v, *x, t=train, r=rngs: model.apply(v, *x, train=t, rngs=r, mutable=["ode"])
        _, aux = jax.eval_shape(apply, variables, *inputs)
        assert {aux["ode"][name].shape for name in BOTH} == {(2, 5)}
    assert variables.keys() == {"params"}


def test_stacks_with_and_without_sums_are_joined():
    def solution(groups, sums):
        counts = jnp.ones(groups, jnp.int32)
        ones = jnp.ones((groups, 2), jnp.int32)
        return Solution(Y, None, ones, counts, counts, counts, sums=sums)

    class Two(nn.Module):
        def __call__(self):
            solutions = solution(1, None), solution(2, {"kinetic": jnp.ones((2, 3))})
            sow_counts(self, *solutions, terms=(FIELD.terms, FIELD.terms))

    _, aux = Two().apply({}, mutable=["ode"])
    np.testing.assert_array_equal(aux["ode"]["kinetic"], [[0] * 3, [1] * 3, [1] * 3])
    assert "error" not in aux["ode"] and aux["ode"]["nfe"].shape == (3, 2)


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (
            dict(end_time=1.0),
            "end_time is less than the length of the last group, 1 layers.*; 1.0 was",
        ),
        (dict(layers=4, share=2, end_time=-0.5), "end_time is 0 or more; -0.5 was given"),
        (dict(end_time=float("nan")), "end_time is a finite number"),
        (dict(sums=("error",)), "solver 'euler' has no error estimate, so there is no sum 'error'"),
        (dict(sums=("kinetics",)), "unknown sum 'kinetics'.*Did you mean 'kinetic'"),
        (dict(sums="kinetic"), "sums is a tuple of names"),
    ],
)
def test_refusals(depth, message):
    with pytest.raises(ValueError, match=message):
        RegularisedDepth(**depth)
