"""FLOPs: counted in the program equal to calculated, gradients, recomputation. On shapes alone."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from odeformer import (
    DepthConfig,
    LMConfig,
    TextConfig,
    ViT,
    ViTConfig,
    example_inputs,
    flops,
    make_model,
    solvers,
)

BASE = ViTConfig(image_size=8, patch_size=2, classes=7, width=16, heads=2, mlp=24)
IMAGES = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
EMBEDDING = 2 * 16 * 12 * 16  # 16 patches of 2 * 2 * 3 pixels, width 16


def program(**changes):
    """A model's forward pass as (variables, images) -> logits, with the variables' shapes."""
    config = dataclasses.replace(BASE, **changes)
    model = ViT(config)
    return config, model.apply, jax.eval_shape(model.init, jax.random.key(0), IMAGES)


def gradient(apply):
    """The gradient of the summed outputs, as (variables, *inputs) -> the variables' slopes."""
    return jax.grad(lambda variables, *inputs: apply(variables, *inputs).sum())


@pytest.mark.parametrize("solver", solvers.NAMES)
@pytest.mark.parametrize("share", [1, 2])
def test_counted_equals_calculated(solver, share):
    pool, time = ("token", "none") if share == 1 else ("mean", "additive")
    depth = DepthConfig(layers=4, share=share, solver=solver)
    config, apply, variables = program(depth=depth, pool=pool, time=time)
    assert flops.count(apply, variables, IMAGES) == flops.forward(config)


@pytest.mark.parametrize("share", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_reversible_pair_is_counted(share):
    """Twice the evaluations; 'reversible' repeats each once, to recover the states.

    And once more, but for each term's last product, where it computes in bfloat16.
    """
    depth = DepthConfig(layers=4, share=share, solver="midpoint", reversible=0.99, adjoint="store")
    config, apply, variables = program(depth=depth)
    assert flops.evaluations(config).tolist() == [16, 16]
    assert flops.count(apply, variables, IMAGES) == flops.forward(config)
    assert flops.count(gradient(apply), variables, IMAGES) == flops.training(config)
    solved = sum(16 * cost for cost in flops.evaluation(config, 17))
    depth = dataclasses.replace(depth, adjoint="reversible")
    assert flops.recomputed(dataclasses.replace(config, depth=depth)) == solved
    narrow = dataclasses.replace(config, depth=depth, dtype="bfloat16")
    assert 1.5 * solved < flops.recomputed(narrow) < 2 * solved


@pytest.mark.parametrize("distillation", ["token", "mean"])
def test_a_token_of_distillation_is_counted(distillation):
    config, apply, variables = program(distillation=distillation, activation="gelu")
    assert flops.count(apply, variables, IMAGES) == flops.forward(config)


@pytest.mark.parametrize("pool", ["token", "mean", "token_mean"])
@pytest.mark.parametrize("classes", [0, 7])
def test_registers_and_what_the_head_reads_are_counted(pool, classes):
    depth = DepthConfig(layers=2, solver="lie_trotter", adjoint="store")
    config, apply, variables = program(
        pool=pool, classes=classes, registers=3, layer_scale=0.1, depth=depth
    )
    assert flops.count(apply, variables, IMAGES) == flops.forward(config)
    assert flops.count(gradient(apply), variables, IMAGES) == flops.training(config)


@pytest.mark.parametrize("solver", ["lie_trotter", "strang", "rk4"])
@pytest.mark.parametrize("kind", ["tied", "untied", "text", "shared keys"])
def test_text_counted_equals_calculated(kind, solver):
    sizes = dict(vocabulary=13, block_size=9, width=16, heads=2, mlp=24)
    depth = DepthConfig(layers=4, share=2, solver=solver, adjoint="store")
    if kind == "text":
        config = TextConfig(**sizes, classes=3, time="additive", depth=depth)
    elif kind == "shared keys":
        options = dict(kv_heads=1, head_size=6, qk_norm=True, gated=True, norm="rms", centre=1.0)
        config = LMConfig(**sizes, **options, rotary_fraction=0.4, depth=depth)
        attention = 4 * 9 * 16 * (2 + 1) * 6 + 4 * 9**2 * 2 * 6
        assert flops.evaluation(config, 9) == (attention, 6 * 9 * 16 * 24)
    else:
        config = LMConfig(**sizes, tied=kind == "tied", depth=depth)
    model, inputs = make_model(config), example_inputs(config)
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    assert flops.count(model.apply, variables, *inputs) == flops.forward(config)
    trained = flops.count(gradient(model.apply), variables, *inputs)
    assert trained == flops.training(config)


@pytest.mark.parametrize(
    ("solver", "time"),
    [("lie_trotter", "none"), ("strang", "additive"), ("euler", "none"), ("rk4", "additive")],
)
def test_a_gradient_is_two_forwards_less_what_is_given(solver, time):
    depth = DepthConfig(layers=4, share=2, solver=solver, adjoint="store")
    config, apply, variables = program(depth=depth, time=time)
    counted = flops.count(gradient(apply), variables, IMAGES)
    assert counted == flops.training(config)
    embedded = EMBEDDING + (flops.evaluations(config).sum() * 2 * 64 * 16 if time != "none" else 0)
    assert counted == 3 * flops.forward(config) - embedded
    assert flops.recomputed(config) == 0


def test_a_large_model():
    """6 N FLOPs a token for N weights, and 12 L D for each token that it attends to."""
    sizes = dict(vocabulary=32_768, block_size=1024, width=2048, heads=16, mlp=8192)
    layers, width, tokens = 24, 2048, 1024
    config = LMConfig(**sizes, depth=DepthConfig(layers=layers, solver="lie_trotter"))
    weights = layers * 12 * width**2 + width * 32_768
    assert flops.training(config) == tokens * (6 * weights + 12 * layers * width * tokens)


def test_a_parallel_layer_recomputes_all_but_its_output_products():
    depth = DepthConfig(layers=4, solver="euler", adjoint="checkpoint")
    config, _, _ = program(depth=depth)
    tokens, width, mlp = 17, 16, 24
    outputs = 2 * tokens * width * (width + mlp)  # attention's and the MLP's, linear and last
    layers = 4 * (sum(flops.evaluation(config, tokens)) - outputs)
    assert flops.recomputed(config) == layers
    # As many tokens of text cost the same layers.
    sizes = dict(vocabulary=13, block_size=tokens, width=width, heads=2, mlp=mlp)
    assert flops.recomputed(LMConfig(**sizes, depth=depth)) == layers


def test_loops_and_branches():
    product = lambda x: x @ x
    x = jnp.ones((3, 3))
    one = 2 * 3**3
    looped = lambda x: jax.lax.scan(lambda y, _: (product(y), None), x, None, length=5)[0]
    assert flops.count(looped, x) == 5 * one
    either = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, product, x)
    assert flops.count(either, x) == 2 * one
    batched = lambda x: jnp.einsum("bij,bjk->bik", x, x)
    assert flops.count(batched, jnp.ones((4, 3, 3))) == 4 * one
    images, kernel = jnp.ones((1, 8, 8, 2)), jnp.ones((2, 2, 2, 5))
    convolve = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert flops.count(convolve, images, kernel) == 2 * 16 * 8 * 5


def test_adaptive_steps():
    depth = DepthConfig(layers=4, solver="tsit5", rtol=1e-3)
    config, apply, variables = program(depth=depth)
    with pytest.raises(ValueError, match="multiply it by the solve's nfe"):
        flops.count(apply, variables, IMAGES)
    with pytest.raises(ValueError, match="take the nfe that the model reports"):
        flops.forward(config)
    fixed = dataclasses.replace(config, depth=DepthConfig(layers=4, solver="euler"))
    assert flops.forward(config, nfe=(4, 4)) == flops.forward(fixed)
    assert flops.training(config, nfe=(4.0, 4.0)) == flops.training(fixed)
    with pytest.raises(ValueError, match="take the nfe that the model reports"):
        flops.training(config)
    between = [flops.training(config, nfe=(n, n)) for n in (4, 4.5, 5)]  # a mean over samples
    assert between[1] - between[0] == between[2] - between[1]
