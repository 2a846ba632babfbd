"""Low-rank adapters: what they are at the start, merged or not, under every solver and term."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import (
    LM,
    ODEStack,
    TransformerField,
    ViT,
    example_inputs,
    generate,
    lora,
    make_model,
    presets,
    project,
    refine,
    sharding,
)
from odeformer.analysis import trajectory
from odeformer.interop import save_pretrained
from tests.helpers.trees import noisy, relative_error

SMALL = dict(width=16, heads=2, mlp=32)
KERNELS = {
    "depth/groups/attention_layer/qkv": (16, 48),
    "depth/groups/attention_layer/out": (16, 16),
    "depth/groups/mlp_layer/up": (16, 32),
    "depth/groups/mlp_layer/down": (32, 16),
}


def vit(**depth):
    return dataclasses.replace(presets.vit("digits", depth=dict(layers=4) | depth), **SMALL)


def params_of(model, inputs):
    return noisy(jax.jit(model.init)(jax.random.key(0), inputs)["params"])


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(4), (3, 8, 8, 1))


@pytest.fixture(scope="module")
def params(images):
    return params_of(ViT(vit(share=2)), images)


def test_what_can_be_adapted_and_what_is_made(params):
    assert lora.kernels(params) == KERNELS
    adapters = lora.init(jax.random.key(1), params, rank=4)
    layers = adapters["depth"]["groups"]
    shapes = jax.tree.map(jnp.shape, layers)
    assert shapes == {
        "attention_layer": {
            "qkv": {"lora_a": (2, 16, 4), "lora_b": (2, 4, 3, 2, 8)},
            "out": {"lora_a": (2, 2, 8, 4), "lora_b": (2, 4, 16)},
        },
        "mlp_layer": {
            "up": {"lora_a": (2, 16, 4), "lora_b": (2, 4, 32)},
            "down": {"lora_a": (2, 32, 4), "lora_b": (2, 4, 16)},
        },
    }
    sizes = sum(4 * 2 * (rows + columns) for rows, columns in KERNELS.values())
    assert sum(leaf.size for leaf in jax.tree.leaves(adapters)) == sizes

    # Of one group unlike that of the other, and by the kernel's name alone.
    a, b = layers["mlp_layer"]["down"]["lora_a"], layers["mlp_layer"]["down"]["lora_b"]
    assert not np.any(b) and np.all(a[0] != a[1])
    assert abs(float(jnp.std(a)) * math.sqrt(32) - 1) < 0.1
    alone = lora.init(jax.random.key(1), params, rank=4, targets=("mlp_layer/down",))
    assert set(alone["depth"]["groups"]) == {"mlp_layer"}
    np.testing.assert_array_equal(alone["depth"]["groups"]["mlp_layer"]["down"]["lora_a"], a)
    pair = lora.init(jax.random.key(1), params, rank=4, targets=("qkv", "up"))
    assert [list(layer) for layer in pair["depth"]["groups"].values()] == [["qkv"], ["up"]]

    jax.tree.map(np.testing.assert_array_equal, lora.merge(params, adapters), params)


def loss(logits):
    return jnp.sum(jnp.sin(3 * logits))


@pytest.mark.parametrize("adjoint", ["checkpoint", pytest.param("store", marks=pytest.mark.slow)])
def test_gradients_at_the_start(params, images, adjoint):
    """dL/dA = 0, dL/dB = scale A^T dL/dW; with A the identity and scale 1, dL/dB = dL/dW."""
    model, scale = ViT(vit(share=2, adjoint=adjoint)), 2.5
    whole = jax.jit(jax.grad(lambda params: loss(model.apply({"params": params}, images))))(params)

    @jax.jit
    def gradient(adapters, factor):
        def of_adapters(adapters):
            variables = {"params": params, "lora": lora.scale(adapters, factor)}
            return loss(model.apply(variables, images))

        return jax.grad(of_adapters)(adapters)

    adapters = lora.init(jax.random.key(1), params, rank=16)
    found = gradient(adapters, scale)["depth"]["groups"]
    for path in KERNELS:
        layer, name = path.split("/")[-2:]
        assert not np.any(found[layer][name]["lora_a"])
        kernel = whole["depth"]["groups"][layer][name]["kernel"]
        a = adapters["depth"]["groups"][layer][name]["lora_a"].reshape(2, -1, 16)
        expected = scale * jnp.einsum("gir,gio->gro", a, kernel.reshape(*a.shape[:2], -1))
        got = found[layer][name]["lora_b"].reshape(expected.shape)
        assert relative_error(got, expected) < 1e-6, path

    square = lora.init(jax.random.key(1), params, rank=16, targets=("qkv", "out", "up"))
    same = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jnp.broadcast_to(jnp.eye(16), (2, 16, 16)).reshape(leaf.shape)
            if path[-1].key == "lora_a"
            else leaf
        ),
        square,
    )
    found = gradient(same, 1.0)["depth"]["groups"]
    for layer, name in (
        ("attention_layer", "qkv"),
        ("attention_layer", "out"),
        ("mlp_layer", "up"),
    ):
        kernel = whole["depth"]["groups"][layer][name]["kernel"]
        got = found[layer][name]["lora_b"].reshape(kernel.shape)
        assert relative_error(got, kernel) < 1e-6, name


GROUPED = dict(kv_heads=1, gated=True, mlp_bias=False, qkv_bias=False, out_bias=False, norm="rms")
FIELDS = [
    (dict(solver="lie_trotter"), dict()),
    (dict(solver="euler", share=2), GROUPED),
    (dict(solver="rk4", share=4, steps=3), dict(fused=True, time="additive")),
    (dict(solver="strang", share=2), dict()),
    (dict(solver="midpoint", share=2, adjoint="recursive"), dict()),
    (dict(solver="tsit5", share=2, rtol=1e-3), dict()),
    (dict(solver="euler"), dict(terms=("conv", "attention", "damping"), dtype="bfloat16")),
]


# That of a run of Euler's steps is compared in tests/train/test_adapters.py.
@pytest.mark.slow
@pytest.mark.parametrize(("depth", "model"), FIELDS)
def test_merged_equals_unmerged(images, depth, model):
    model = ViT(dataclasses.replace(vit(**depth), **model))
    params = params_of(model, images)
    adapters = lora.scale(noisy(lora.init(jax.random.key(1), params, rank=2)), 2.0)

    apply = jax.jit(model.apply)
    merged = apply({"params": lora.merge(params, adapters)}, images)
    unmerged = apply({"params": params, "lora": adapters}, images)
    np.testing.assert_allclose(unmerged, merged, rtol=1e-6, atol=1e-6)
    assert np.max(np.abs(unmerged - apply({"params": params}, images))) > 0.1


def test_no_merged_kernels_are_kept():
    """Of 12 groups the backward pass stores no merged kernel, nor the gradient of one."""
    field = TransformerField(width=64, heads=2, mlp=256)
    stack = ODEStack(dict(layers=12), field)
    y = jnp.zeros((1, 4, 64))
    params = stack.init(jax.random.key(0), y)["params"]
    adapters = lora.init(jax.random.key(1), params, rank=2)

    def gradient(adapters, params):
        return jax.grad(
            lambda adapters: jnp.sum(stack.apply({"params": params, "lora": adapters}, y).y1)
        )(adapters)

    compiled = jax.jit(gradient).lower(adapters, params).compile()
    one_group = sum(4 * math.prod(sides) for sides in lora.kernels(params).values())
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * one_group


@pytest.mark.parametrize("bias", [True, False])
def test_both_layouts_of_attention(bias):
    """Queries, keys and values as one kernel or several, with a bias or without."""
    shapes = {
        "qkv": ((16, 3, 2, 8), (3, 2, 8), (16, 48)),
        "q": ((16, 2, 8), (2, 8), (16, 16)),
        "kv": ((16, 2, 1, 8), (2, 1, 8), (16, 16)),
        "out": ((2, 8, 16), (16,), (16, 16)),
    }
    attention = {
        name: {"kernel": np.ones((5, *kernel), "f4")} | ({"bias": np.ones((5, *b))} if bias else {})
        for name, (kernel, b, _) in shapes.items()
    }
    params = {"depth": {"groups": {"attention_layer": attention}}}
    expected = {
        f"depth/groups/attention_layer/{name}": sides for name, (*_, sides) in shapes.items()
    }
    assert lora.kernels(params) == expected

    adapters = noisy(lora.init(jax.random.key(0), params, rank=3))
    merged = jax.jit(lora.merge)(params, adapters)["depth"]["groups"]["attention_layer"]
    for name, parts in adapters["depth"]["groups"]["attention_layer"].items():
        a, b = parts["lora_a"].reshape(5, -1, 3), parts["lora_b"].reshape(5, 3, -1)
        product = (merged[name]["kernel"] - 1).reshape(5, a.shape[1], b.shape[2])
        np.testing.assert_allclose(product, a @ b, rtol=1e-5, atol=1e-6)


def test_adapters_lie_as_their_kernels(params):
    both = lora.attach(params, lora.init(jax.random.key(0), params, rank=4))
    axes = sharding.parameter_axes(both)["depth"]["groups"]
    found = {
        name: [tuple(axes[layer][name][part]) for part in ("lora_a", "lora_b")]
        for layer, name in (path.split("/")[-2:] for path in KERNELS)
    }
    assert found == {
        "qkv": [(None, "width", None), (None, None, None, "heads", None)],
        "out": [(None, "heads", None, None), (None, None, "width")],
        "up": [(None, "width", None), (None, None, "mlp")],
        "down": [(None, "mlp", None), (None, None, "width")],
    }


def test_refusals(params, images, tmp_path):
    key = jax.random.key(0)
    for rank in (0, -1, 2.5):
        with pytest.raises(ValueError, match=f"rank is a whole number, 1 or more; {rank}"):
            lora.init(key, params, rank=rank)
    with pytest.raises(
        ValueError, match=r"rank=17 .*attention_layer/out can have, .* 16 x 16: take 16"
    ):
        lora.init(key, params, rank=17)
    with pytest.raises(ValueError, match=r"'qvk'; accepted: .*out, qkv, .*Did you mean 'qkv'"):
        lora.init(key, params, rank=2, targets=("up", "qvk"))

    bare = dataclasses.replace(vit(), terms=("damping",))
    shapes = jax.eval_shape(make_model(bare).init, key, *example_inputs(bare))["params"]
    with pytest.raises(ValueError, match="no kernels that could be adapted"):
        lora.init(key, shapes, rank=2)

    adapters = lora.init(key, params, rank=2)
    with pytest.raises(ValueError, match="belongs to no kernel"):
        lora.merge({"head": params["head"]}, adapters)
    halved = jax.tree.map(lambda leaf: leaf[:1], adapters)
    with pytest.raises(ValueError, match="do not make up its kernel"):
        lora.merge(params, halved)

    variables = {"params": params, "lora": adapters}
    config = dataclasses.replace(presets.lm("gpt_nano"), vocabulary=8, **SMALL)
    for use in (
        lambda: generate(LM(config), variables, [[1]], max_new_tokens=1),
        lambda: save_pretrained(ViT(vit()), variables, tmp_path),
        lambda: trajectory(ViT(vit(share=2)), variables, images, layers=True),
        lambda: refine(variables, vit(share=2)),
        lambda: project(variables, vit(share=2), dict(share=1)),
    ):
        with pytest.raises(ValueError, match="merge them first, by odeformer.lora.merge"):
            use()


@pytest.mark.parametrize(
    "depth",
    [
        dict(basis="legendre", coefficients=2, reversible=0.99, solver="midpoint"),
        pytest.param(
            dict(basis="hat", coefficients=3, reversible=0.99, adjoint="reversible", solver="rk4"),
            marks=pytest.mark.slow,
        ),
        pytest.param(dict(basis="hat", coefficients=3), marks=pytest.mark.slow),
        pytest.param(
            dict(reversible=0.99, adjoint="reversible", solver="midpoint", share=2),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_adapters_go_with_every_depth(depth, images):
    """Merged inside the solve, or before it: the same logits and gradients, to rounding."""
    model, key = ViT(vit(**depth)), jax.random.key(0)
    params = jax.jit(model.init)(key, images)["params"]
    adapters = noisy(lora.init(key, params, rank=2))

    def loss(params, adapters=None):
        variables = {"params": params} | ({} if adapters is None else {"lora": adapters})
        return jnp.sum(jnp.square(model.apply(variables, images)))

    found = jax.jit(jax.value_and_grad(loss, argnums=1))(params, adapters)
    merged = lambda adapters: loss(lora.merge(params, adapters))
    assert relative_error(found, jax.jit(jax.value_and_grad(merged))(adapters)) < 1e-5
