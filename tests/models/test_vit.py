"""The vision transformer: embeddings, heads, aux output, dropout, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import handwritten
from odeformer import DepthConfig, ViT, ViTConfig, presets
from odeformer.transformer.layers import PatchEmbedding, grid_positions
from tests.helpers.masks import check_embedded_tokens_are_dropped
from tests.helpers.trees import noisy, relative_error

SMALL = ViTConfig(
    image_size=(8, 12), patch_size=4, width=16, heads=2, mlp=32, depth=DepthConfig(layers=2)
)

IMAGES = jax.random.normal(jax.random.key(0), (3, 8, 12, 3))


def make(**changes):
    model = ViT(dataclasses.replace(SMALL, **changes))
    return model, jax.jit(model.init)(jax.random.key(1), IMAGES)


def apply(model, variables, images=IMAGES, **kwargs):
    return jax.jit(lambda variables, images: model.apply(variables, images, **kwargs))(
        variables, images
    )


@pytest.mark.parametrize("pool", ["token", "mean"])
@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_heads_and_positions(pool, positions):
    model, variables = make(pool=pool, positions=positions)
    assert set(variables) == {"params"}
    params = variables["params"]
    assert ("class_token" in params) == (pool == "token")
    assert ("positions" in params) == (positions == "learned")
    logits = apply(model, variables)
    assert logits.shape == (3, 10) and logits.dtype == jnp.float32
    turned = apply(model, variables, IMAGES[:, ::-1])
    assert float(jnp.abs(turned - logits).max()) > 1e-4  # positions matter


@pytest.mark.parametrize("distillation", ["token", "mean"])
def test_a_token_of_distillation_stands_second_and_has_a_head_under_mean(distillation):
    model, variables = make(distillation=distillation)
    variables = noisy(variables)
    params = variables["params"]
    assert params["positions"].shape == (1, 8, 16)
    assert ("distillation_head" in params) == (distillation == "mean")

    # The two tokens, their positions and heads exchanged, the mean is the same.
    turned = dict(params)
    turned["class_token"], turned["distillation_token"] = (
        params["distillation_token"],
        params["class_token"],
    )
    order = np.array([1, 0, *range(2, 8)])
    turned["positions"] = params["positions"][:, order]
    logits = apply(model, variables)
    if distillation == "mean":
        turned["head"], turned["distillation_head"] = params["distillation_head"], params["head"]
        exchanged = apply(model, {"params": turned})
        np.testing.assert_allclose(exchanged, logits, rtol=1e-5, atol=1e-5)

        # The mean of what each head alone gives.
        token = ViT(dataclasses.replace(SMALL, distillation="token"))
        single = {name: leaf for name, leaf in params.items() if name != "distillation_head"}
        second = {name: leaf for name, leaf in turned.items() if name != "distillation_head"}
        each = apply(token, {"params": single}) + apply(token, {"params": second})
        np.testing.assert_allclose(logits, each / 2, rtol=1e-5, atol=1e-5)
    else:
        # It is read by attention, though by no head.
        turned["class_token"] = params["class_token"]
        turned["positions"] = params["positions"]
        changed = float(jnp.abs(apply(model, {"params": turned}) - logits).max())
        assert changed > 1e-4


def test_every_norm_of_the_model_takes_epsilon():
    """Of a zero state the last norm returns its bias, and nothing else of a wide one."""
    model, variables = make(norm_epsilon=1e8)
    variables = noisy(variables)
    params = variables["params"]
    expected = params["norm"]["bias"] @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(apply(model, variables), np.tile(expected, (3, 1)), atol=0.01)
    assert float(jnp.abs(apply(ViT(SMALL), variables) - expected).max()) > 0.1


@pytest.mark.parametrize(
    ("pool", "positions"), [("token", "learned"), ("mean", "learned"), ("token", "sincos")]
)
def test_logits_written_by_hand(pool, positions):
    model, variables = make(pool=pool, positions=positions)
    variables = noisy(variables)

    @jax.jit
    def by_hand(p):
        cut = [IMAGES[:, i : i + 4, j : j + 4] for i in (0, 4) for j in (0, 4, 8)]
        y = jnp.stack([patch.reshape(3, -1) for patch in cut], axis=1)
        y = y @ p["patches"]["projection"]["kernel"] + p["patches"]["projection"]["bias"]
        if positions == "sincos":
            y = y + grid_positions(2, 3, 16)  # which test_layers.py compares
        if pool == "token":
            y = jnp.concatenate([jnp.tile(p["class_token"], (3, 1, 1)), y], axis=1)
        if positions == "learned":
            y = y + p["positions"]
        y = handwritten.stack(handwritten.parallel_layer, p["depth"]["groups"], y)
        y = handwritten.norm(p["norm"], y)
        y = y[:, 0] if pool == "token" else y.mean(axis=1)
        return y @ p["head"]["kernel"] + p["head"]["bias"]

    np.testing.assert_allclose(
        apply(model, variables), by_hand(variables["params"]), rtol=1e-5, atol=1e-5
    )


def test_patches_are_the_convolution_of_their_stride():
    layer = PatchEmbedding(4, 16)
    variables = layer.init(jax.random.key(0), IMAGES)
    kernel = variables["params"]["projection"]["kernel"].reshape(4, 4, 3, 16)
    expected = jax.lax.conv_general_dilated(
        IMAGES, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ).reshape(3, 6, 16)
    np.testing.assert_allclose(layer.apply(variables, IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_aux_of_fixed_and_adaptive_solves():
    model, variables = make()
    logits, aux = apply(model, variables, mutable=["ode"])
    np.testing.assert_array_equal(logits, apply(model, variables))
    assert set(aux["ode"]) == {"nfe", "accepted", "rejected", "result"}
    assert aux["ode"]["nfe"].tolist() == [[1, 1], [1, 1]]
    depth = DepthConfig(layers=2, solver="tsit5", rtol=1e-3, per_sample=True)
    _, aux = apply(ViT(dataclasses.replace(SMALL, depth=depth)), variables, mutable=["ode"])
    assert aux["ode"]["nfe"].shape == (2, 3, 2) and aux["ode"]["result"].shape == (2, 3)


@pytest.mark.parametrize(
    "depth",
    [
        DepthConfig(layers=2, solver="rk4"),
        pytest.param(
            DepthConfig(layers=2, solver="tsit5", rtol=1e-2, per_sample=True),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_dropout_acts_in_training_alone(depth):
    model, variables = make(dropout=0.3, drop_path=0.3, depth=depth)
    train = jax.jit(lambda key: model.apply(variables, IMAGES, train=True, rngs={"dropout": key}))
    run = lambda seed: train(jax.random.key(seed))
    np.testing.assert_array_equal(run(0), run(0))
    assert float(jnp.abs(run(0) - run(1)).max()) > 1e-4
    assert float(jnp.abs(run(0) - apply(model, variables)).max()) > 1e-4


@pytest.mark.parametrize("rates", [dict(dropout=0.5), dict(drop_path=0.5)])
def test_the_embedded_patches_are_dropped_by_dropout_alone(rates):
    check_embedded_tokens_are_dropped(*make(**rates), IMAGES, rates)


def test_bfloat16_logits_are_float32_and_near():
    model, variables = make()
    half = ViT(dataclasses.replace(SMALL, dtype="bfloat16"))
    logits = apply(half, variables)
    assert logits.dtype == jnp.float32
    error = relative_error(logits, apply(model, variables))
    assert 1e-4 < error < 0.015  # 0.007 was seen; a rounding is 0.004


def test_float64(float64):
    model = ViT(dataclasses.replace(SMALL, dtype="float64"))
    variables = jax.jit(model.init)(jax.random.key(1), IMAGES)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float64")}
    assert apply(model, variables).dtype == jnp.float64
    program = str(jax.make_jaxpr(model.apply)(variables, IMAGES.astype(jnp.float64)))
    assert "f32[" not in program  # no product, no softmax in less


EXACT = {
    "deit_ti": 5_717_416,
    "deit_s": 22_050_664,
    "vit_b": 86_567_656,
    "vit_l": 304_326_632,
    "digits": 136_010,
}


def test_every_preset_has_an_exact_count():
    assert set(EXACT) == set(presets.VIT_NAMES)


@pytest.mark.parametrize("name", presets.VIT_NAMES)
def test_parameter_counts(name):
    config = presets.vit(name)
    images = jax.ShapeDtypeStruct((1, *config.image_shape), jnp.float32)
    shapes = jax.eval_shape(ViT(config).init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == EXACT[name]


def test_presets_take_changes():
    config = presets.vit(
        "deit_ti", image_size=32, patch_size=4, depth={"solver": "rk4", "share": 12}
    )
    assert (config.grid, config.depth.layers, config.depth.groups) == ((8, 8), 12, 1)
    with pytest.raises(ValueError, match="unknown vision transformer 'deit_tiny'.*'deit_ti'"):
        presets.vit("deit_tiny")
    with pytest.raises(ValueError, match="field of DepthConfig 'solvr'.*'solver'"):
        presets.vit("deit_ti", depth={"solvr": "rk4"})
    with pytest.raises(ValueError, match="field of ViTConfig 'class'.*'classes'"):
        presets.vit("deit_ti", **{"class": 10})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(heads=3), r"heads=3 does not divide width=16: take heads from 1, 2, 4, 8, 16"),
        (dict(patch_size=5), r"patch_size=5 does not divide image_size=\(8, 12\)"),
        (dict(pool="cls"), "unknown pool 'cls'; accepted: token, mean"),
        (dict(dtype="bf16"), "Did you mean 'bfloat16'|accepted: float32, bfloat16"),
        (dict(dtype="float16"), "unknown dtype 'float16'; accepted: float32, bfloat16, float64"),
        (dict(dtype=jnp.float32), "dtype is given by its name"),
        (dict(time="sin"), "unknown time 'sin'; accepted: none, additive"),
        (dict(attention="cudnn"), "'cudnn' takes dtype 'bfloat16'; 'float32' was given"),
        (dict(image_size=8.0), "image_size is a whole number, 1 or more; 8.0"),
        (dict(image_size=(8, 8, 3)), "a side or a pair of sides"),
        (dict(dropout=1.0), r"dropout is in \[0, 1\)"),
        (dict(width=18, heads=2, positions="sincos"), "a width that 4 divides"),
        (dict(pool="mean", distillation="mean"), "after the class token, which pool 'mean' does"),
        (dict(distillation="mean", classes=0), "with classes=0 there are none: take distillation"),
    ],
)
def test_config_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_float64_is_refused_where_jax_would_narrow_it():
    model = ViT(dataclasses.replace(SMALL, dtype="float64"))
    with pytest.raises(ValueError, match="'float64' was given while jax_enable_x64 is off"):
        model.init(jax.random.key(0), IMAGES)


def test_image_refusals():
    model, variables = make()
    with pytest.raises(
        ValueError, match=r"\[batch, 8, 12, 3\] are accepted; \[3, 12, 8, 3\] was given"
    ):
        model.apply(variables, IMAGES.transpose(0, 2, 1, 3))
    with pytest.raises(ValueError, match="floating dtype are accepted; uint8"):
        model.apply(variables, IMAGES.astype(jnp.uint8))
