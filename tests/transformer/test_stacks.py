"""Several stacks in sequence: the same as by hand, one after the other; their counts joined."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import DepthConfig, ODEStack, TransformerField, sow_counts
from tests.helpers.trees import noisy

SIZES = dict(width=8, heads=2, mlp=12)
Y = jax.random.normal(jax.random.key(0), (2, 4, 8))
FIRST = dict(layers=4, share=2, solver="lie_trotter")
SECOND = dict(layers=2, solver="rk4")


class Two(nn.Module):
    """The tokens without one another at first, then with attention; the mean in between."""

    second: DepthConfig = DepthConfig(**SECOND)
    changes: tuple[tuple[str, object], ...] = ()

    @nn.compact
    def __call__(self, y_BND, train=False):
        changes = dict(self.changes)
        local = TransformerField(**SIZES, terms=("mlp", "damping"), parent=None, **changes)
        mixing = TransformerField(**SIZES, terms=("conv", "mlp"), parent=None, **changes)
        first = ODEStack(DepthConfig(**FIRST), local, total=6, name="first")(y_BND, train)
        between = first.y1 - first.y1.mean(axis=1, keepdims=True)
        second = ODEStack(self.second, mixing, start=4, total=6, name="second")(between, train)
        sow_counts(self, first, second, terms=(local.terms, mixing.terms))
        return second.y1


def setup(model):
    variables = noisy(jax.jit(model.init)(jax.random.key(1), Y))
    return {"params": variables["params"]}


def test_two_stacks_are_two_solves_by_hand():
    """With a term and a solver of each's own; the second begins at t = 4."""
    model = Two(changes=(("time", "additive"),))
    variables = setup(model)
    found, aux = jax.jit(lambda v: model.apply(v, Y, mutable=["ode"]))(variables)

    def field(names):
        return TransformerField(**SIZES, terms=names, time="additive")

    y = Y
    for group in range(2):
        theta = jax.tree.map(lambda x, g=group: x[g], variables["params"]["first"]["groups"])
        apply = lambda name, t, y, p=theta: field(("mlp", "damping")).apply(
            {"params": p}, name, jnp.float32(t), y, method="term"
        )
        for t in (2 * group, 2 * group + 1):
            y = y + apply("mlp", t, y)
            y = y + apply("damping", t, y)
    y = y - y.mean(axis=1, keepdims=True)
    for layer in range(2):
        theta = jax.tree.map(lambda x, g=layer: x[g], variables["params"]["second"]["groups"])
        f = lambda t, y, p=theta: field(("conv", "mlp")).apply(
            {"params": p}, jnp.float32(t), y, method="total"
        )
        t = 4 + layer
        k1 = f(t, y)
        k2 = f(t + 0.5, y + k1 / 2)
        k3 = f(t + 0.5, y + k2 / 2)
        y = y + (k1 + 2 * k2 + 2 * k3 + f(t + 1, y + k3)) / 6
    np.testing.assert_allclose(found, y, rtol=1e-4, atol=1e-4)

    ode = aux["ode"]
    assert ode["nfe"].tolist() == [[2, 2, 0], [2, 2, 0], [4, 0, 4], [4, 0, 4]]
    assert ode["accepted"].tolist() == [2, 2, 1, 1]
    assert ode["rejected"].tolist() == ode["result"].tolist() == [0] * 4


def test_counts_per_sample_and_shared_ones():
    """What a batch shares is that of each of its samples."""
    model = Two(DepthConfig(layers=2, solver="tsit5", rtol=1e-2, per_sample=True))
    variables = jax.eval_shape(model.init, jax.random.key(0), Y)
    ode = jax.eval_shape(lambda v: model.apply(v, Y, mutable=["ode"])[1]["ode"], variables)
    assert ode["nfe"].shape == (4, 2, 3) and ode["result"].shape == (4, 2)


def test_drop_path_grows_over_all_stacks():
    """From 0 at the first layer of the first to its rate at the last layer of the last."""
    field = TransformerField(**SIZES, terms=("mlp",), drop_path=0.6)
    y = jnp.zeros((2000, 1, 8))
    rates = []
    for start, layers in ((0, 2), (2, 3)):
        for at in range(layers):
            stack = ODEStack(DepthConfig(layers=layers), field, start=start, total=5)
            shapes = jax.eval_shape(stack.init, jax.random.key(0), y)
            params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
            bias = params["params"]["groups"]["mlp_layer"]["down"]["bias"]
            params["params"]["groups"]["mlp_layer"]["down"]["bias"] = bias.at[at].set(1.0)
            rngs = {"dropout": jax.random.key(start)}
            y1 = stack.apply(params, y, train=True, rngs=rngs).y1
            rates.append(float((y1[:, 0, 0] == 0).mean()))
    np.testing.assert_allclose(rates, 0.6 * np.arange(5) / 4, atol=0.05)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (dict(start=-1), "start is a whole number of layers, 0 or more; -1 was given"),
        (dict(start=1.5), "start is a whole number of layers"),
        (dict(start=9, total=12), "layers=4 that begins at start=9 ends after total=12"),
        (dict(total=0), "total is a whole number, 1 or more"),
    ],
)
def test_stacks_that_do_not_fit(place, message):
    with pytest.raises(ValueError, match=message):
        ODEStack(DepthConfig(layers=4), TransformerField(**SIZES), **place)


def test_counts_need_the_names_of_the_terms():
    class Nameless(nn.Module):
        @nn.compact
        def __call__(self, y):
            solution = ODEStack(DepthConfig(layers=1), TransformerField(**SIZES), name="a")(y)
            sow_counts(self, solution, solution)
            return solution.y1

    model = Nameless()
    variables = jax.eval_shape(model.init, jax.random.key(0), Y)
    with pytest.raises(ValueError, match="counts of 2 stacks are recorded with as many tuples"):
        jax.eval_shape(lambda v: model.apply(v, Y, mutable=["ode"]), variables)
