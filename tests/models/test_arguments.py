"""Values of nearly the right kind: taken where their meaning is plain, else refused in words."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import (
    LM,
    DepthConfig,
    LMConfig,
    ODEStack,
    TextClassifier,
    TextConfig,
    TransformerField,
    ViT,
    ViTConfig,
    example_inputs,
    generate,
    make_model,
    presets,
)
from odeformer.models.generate import stream

SIZES = dict(width=16, heads=2, mlp=32)
DEPTH = DepthConfig(layers=2, solver="heun")
CONFIGS = {
    "vit": ViTConfig(image_size=8, patch_size=4, channels=1, depth=DEPTH, **SIZES),
    "lm": LMConfig(7, 8, depth=DEPTH, **SIZES),
    "lm, learned": LMConfig(
        7, 8, positions="learned", tied=False, time="additive", fused=True, depth=DEPTH, **SIZES
    ),
    "text": TextConfig(7, 8, depth=DEPTH, **SIZES),
}
ADAPTIVE = DepthConfig(layers=2, share=2, solver="bosh3", rtol=1e-2, per_sample=True)


def make(name, batch=2, **changes):
    """A model, an input of it, and its parameters."""
    model = make_model(dataclasses.replace(CONFIGS[name], **changes))
    (shape,) = example_inputs(model.config)
    x = jnp.ones((batch, *shape.shape[1:]), shape.dtype)
    return model, x, jax.jit(model.init)(jax.random.key(0), x)


@pytest.mark.parametrize("name", ["vit", "lm", "text"])
def test_initialised_with_the_output_of_apply(name):
    model, x, variables = make(name)
    logits, same = jax.jit(model.init_with_output)(jax.random.key(0), x)
    assert set(same) == {"params"}  # a solve's counts are no variables
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), same, variables)
    np.testing.assert_allclose(logits, jax.jit(model.apply)(variables, x), atol=1e-6)


def test_a_stack_initialised_with_the_output_of_apply():
    stack = ODEStack(DEPTH, TransformerField(**SIZES))
    y = jax.random.normal(jax.random.key(1), (2, 4, 16))
    solution, variables = jax.jit(stack.init_with_output)(jax.random.key(0), y)
    expected = jax.jit(stack.apply)(variables, y)
    np.testing.assert_allclose(solution.y1, expected.y1, atol=1e-6)
    assert float(jnp.abs(solution.y1 - y).max()) > 0.1
    assert solution.nfe.tolist() == expected.nfe.tolist() == [[2, 2], [2, 2]]


def test_a_model_inside_another_module():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return ViT(CONFIGS["vit"], name="inner")(x)

    _, x, _ = make("vit")
    logits, variables = jax.jit(Outer().init_with_output)(jax.random.key(0), x)
    np.testing.assert_allclose(logits, jax.jit(Outer().apply)(variables, x), atol=1e-6)


def test_init_traces_no_solve():
    """Whose output it drops; an adaptive one would take half a second each time."""
    model, x, _ = make("vit", depth=DepthConfig(layers=2, solver="dopri8"))
    products = lambda f: str(jax.make_jaxpr(f)(jax.random.key(0), x)).count("dot_general")
    assert products(model.init) < products(model.init_with_output)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_mapping_is_a_depth(name):
    config = dataclasses.replace(CONFIGS[name], depth={"layers": 4, "solver": "rk4"})
    assert config.depth == DepthConfig(layers=4, solver="rk4")
    assert hash(config) == hash(dataclasses.replace(config, depth=config.depth))
    with pytest.raises(ValueError, match="field of DepthConfig 'layer'.*Did you mean 'layers'"):
        dataclasses.replace(config, depth={"layer": 4})
    for wrong in ("rk4", 4, None, [4]):
        with pytest.raises(ValueError, match="a DepthConfig, or a mapping of its fields .* given"):
            dataclasses.replace(config, depth=wrong)


def test_presets_take_a_whole_depth():
    assert presets.vit("digits", depth=DEPTH).depth == DEPTH
    assert ODEStack({"layers": 3}, TransformerField(**SIZES)).config == DepthConfig(layers=3)
    with pytest.raises(ValueError, match="depth is a DepthConfig.*'rk4' was given"):
        presets.lm("gpt_nano", depth="rk4")


def test_a_list_of_sides_is_a_pair():
    config = dataclasses.replace(CONFIGS["vit"], image_size=[8, 16])
    assert config == dataclasses.replace(CONFIGS["vit"], image_size=(8, 16))
    assert hash(config) and config.grid == (2, 4)


@pytest.mark.parametrize("name", CONFIGS)
def test_numbers_are_no_texts(name):
    for field, value in (("width", "16"), ("heads", "2"), ("mlp", "32"), ("classes", "2")):
        if hasattr(CONFIGS[name], field):
            with pytest.raises(ValueError, match=f"{field} is a whole number.*'{value}' was given"):
                dataclasses.replace(CONFIGS[name], **{field: value})
    with pytest.raises(ValueError, match=r"dropout is in \[0, 1\); '0.1' was given"):
        dataclasses.replace(CONFIGS[name], dropout="0.1")
    with pytest.raises(ValueError, match="layers is a whole number, 1 or more; '4' was given"):
        DepthConfig(layers="4")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda: dataclasses.replace(CONFIGS["vit"], fused="no"), "fused"),
        (lambda: dataclasses.replace(CONFIGS["lm"], tied="no"), "tied"),
        (lambda: TransformerField(**SIZES, causal="no"), "causal"),
        (lambda: dataclasses.replace(ADAPTIVE, per_sample="no"), "per_sample"),
    ],
)
def test_a_text_is_neither_true_nor_false(change, name):
    with pytest.raises(ValueError, match=f"{name} is True or False; 'no' was given"):
        change()


def test_a_model_takes_a_config_of_its_own():
    own = (
        (ViT, "ViTConfig", "lm"),
        (LM, "LMConfig", "text"),
        (TextClassifier, "TextConfig", "vit"),
    )
    for kind, name, other in own:
        with pytest.raises(ValueError, match=f"{kind.__name__} takes a {name}; "):
            kind(CONFIGS[other])
    for function in (make_model, example_inputs):
        with pytest.raises(ValueError, match="takes a ViTConfig or LMConfig or TextConfig; 'deit"):
            function("deit_ti")


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_in_bfloat16(name):
    model, x, variables = make(name)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    apply = jax.jit(lambda variables: model.apply(variables, x, mutable=["ode"])[0])
    logits = apply(half)
    assert logits.dtype == jnp.float32
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    np.testing.assert_allclose(logits, apply(wide), atol=1e-2)
    if name == "lm":
        assert len(generate(model, half, [[1, 2]], max_new_tokens=3)[0]) == 3


@pytest.mark.parametrize(
    ("name", "changes"),
    [*((name, {}) for name in CONFIGS), ("vit", dict(depth=ADAPTIVE))],
)
def test_an_empty_batch_has_no_logits(name, changes):
    model, x, variables = make(name, **changes)
    logits, aux = jax.jit(lambda v, x: model.apply(v, x, mutable=["ode"]))(variables, x[:0])
    expected = jax.eval_shape(model.apply, variables, x)
    assert logits.shape == (0, *expected.shape[1:]) and logits.dtype == expected.dtype
    if changes:
        assert aux["ode"]["result"].shape == (1, 0)
    empty = jax.eval_shape(model.init, jax.random.key(0), x[:0])
    assert jax.tree.map(jnp.shape, empty) == jax.tree.map(jnp.shape, variables)


def test_weights_that_are_not_finite():
    """The tokens before the first that cannot be drawn are handed over."""
    model, _, variables = make("lm")
    broken = jax.tree.map(jnp.array, variables)
    broken["params"]["norm"]["scale"] = broken["params"]["norm"]["scale"].at[0].set(jnp.nan)
    message = (
        r"prompts\[0\] are NaN or infinite at its new token 1, .*"
        "1 of .* parameters hold such values, params/norm/scale: take weights from before"
    )
    for temperature in (0.0, 1.0):
        with pytest.raises(FloatingPointError, match=message):
            generate(model, broken, [[1, 2]], temperature=temperature)
    tokens = stream(model, broken, [[1, 2]])
    with pytest.raises(FloatingPointError, match=message):
        next(tokens)


def test_one_token_whose_embedding_is_not_finite():
    """Each prompt's logits are its own: the second is named, and at its own token."""
    model, _, variables = make("lm, learned")
    broken = jax.tree.map(jnp.array, variables)
    table = broken["params"]["position_embedding"]["embedding"]
    broken["params"]["position_embedding"]["embedding"] = table.at[5].set(jnp.inf)
    tokens = stream(model, broken, [[1], [1, 2, 3]])
    drawn = [next(tokens) for _ in range(3)]
    assert min(row.min() for row in drawn) >= 0
    with pytest.raises(FloatingPointError, match=r"prompts\[1\] .* at its new token 4"):
        next(tokens)


def test_finite_weights_that_overflow():
    model, _, variables = make("lm")
    large = jax.tree.map(lambda leaf: leaf * 1e30, variables)
    with pytest.raises(FloatingPointError, match="every parameter is finite, so it is the comp"):
        generate(model, large, [[1, 2]])


@pytest.mark.parametrize("prompts", ["abc", b"abc", ["abc"], [[1], "abc"], [b"abc"]])
def test_texts_are_no_prompts(prompts):
    model, _, variables = make("lm")
    with pytest.raises(ValueError, match="prompts are sequences of tokens.* text.*'abc': encode"):
        generate(model, variables, prompts)


def test_generate_takes_a_language_model_and_its_variables():
    model, _, variables = make("lm")
    with pytest.raises(ValueError, match="generate takes a LM; ViT"):
        generate(make("vit")[0], variables, [[1]])
    with pytest.raises(ValueError, match=r"under 'params'.*give \{'params': parameters\}"):
        generate(model, variables["params"], [[1]])
