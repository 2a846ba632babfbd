"""Every setting of a model has a place in each layout, or is refused by its key.

The tests go over the fields of the configs, so that a new one cannot be forgotten.
"""

import dataclasses
import json

import jax
import pytest
from flax import traverse_util

from odeformer import LMConfig, ViTConfig
from odeformer.interop.arrays import shapes_of
from odeformer.interop.families import family_of, read_family
from odeformer.models.registry import example_inputs, make_model

DEPTH = dict(layers=1, solver="lie_trotter")
SIZES = dict(width=16, heads=2, mlp=32, depth=DEPTH)
IMAGES = SIZES | dict(image_size=8, patch_size=4)
TEXTS = SIZES | dict(vocabulary=7, block_size=8)
SCALED = dict(layer_scale=0.1, pool="token_mean")
GATED = dict(norm="rms", gated=True, mlp_bias=False, activation="silu")
UNBIASED = GATED | dict(qkv_bias=False, out_bias=False)

MODELS = {
    "vit": ViTConfig(**IMAGES),
    "deit": ViTConfig(**IMAGES, distillation="mean"),
    "dinov2": ViTConfig(**IMAGES, **SCALED),
    "dinov2 giant": ViTConfig(
        **IMAGES | dict(mlp=24), **SCALED, registers=1, gated=True, activation="silu"
    ),
    "gpt2": LMConfig(**TEXTS, positions="learned"),
    "llama": LMConfig(**TEXTS, **UNBIASED),
    "qwen2": LMConfig(**TEXTS, **GATED, out_bias=False),
    "qwen3": LMConfig(**TEXTS, **UNBIASED, qk_norm=True),
}

# What decides nothing of the function that the parameters are: how it is trained and computed.
LOST = ("dropout", "drop_path", "dtype", "fused", "attention")

# What changes no parameter's shape.
SHAPELESS = (*LOST, "activation", "norm_epsilon", "rotary_base", "rotary_scaling", "rotary_factor")
SHAPELESS += ("rotary_low_turns", "rotary_high_turns", "rotary_length")

# By field, values that a model may have instead; a mapping where others have to change with it.
LINEAR = dict(rotary_scaling="linear", rotary_factor=3.0)
LLAMA3 = dict(rotary_scaling="llama3", rotary_factor=3.0)
OTHERS = dict(
    width=[32, 20],
    heads=[4],
    mlp=[48, 20],
    dropout=[0.1],
    drop_path=[0.1],
    dtype=["bfloat16"],
    time=["additive"],
    fused=[True],
    attention=["xla"],
    centre=[0.5],
    terms=[("mlp", "attention"), ("mlp",), ("attention", "mlp", "conv")],
    activation=["gelu", "gelu_tanh", "relu", "silu"],
    gated=[True, False],
    mlp_bias=[True, False],
    norm=["layer", "rms"],
    norm_epsilon=[1e-3],
    kv_heads=[1],
    head_size=[6],
    qk_norm=[True, False],
    qkv_bias=[True, False],
    out_bias=[True, False],
    layer_scale=[0.3, None],
    # Of images.
    image_size=[16, (8, 12)],
    patch_size=[2],
    channels=[1],
    classes=[0, 3],
    pool=["token", "mean", "token_mean"],
    distillation=["none", "token", "mean"],
    registers=[0, 2],
    positions=["learned", "sincos", "rotary"],
    # Of texts.
    vocabulary=[9],
    block_size=[6],
    rotary_base=[500.0],
    rotary_fraction=[0.5],
    rotary_scaling=[LINEAR, LLAMA3],
    rotary_factor=[LINEAR],
    rotary_low_turns=[LLAMA3 | dict(rotary_low_turns=0.5)],
    rotary_high_turns=[LLAMA3 | dict(rotary_high_turns=3.0)],
    rotary_length=[LLAMA3 | dict(rotary_length=20)],
    tied=[False],
)

# By field, others by whose keys it is refused, as the value makes a model one of another layout.
ALSO = dict(
    norm=("gated", "positions"),
    layer_scale=("pool",),
    pool=("layer_scale",),
    registers=("layer_scale",),
    classes=("layer_scale",),
    qk_norm=("out_bias",),
    qkv_bias=("out_bias",),
    out_bias=("qkv_bias",),
    width=("mlp",),
    gated=("activation", "mlp"),
    **{name: ("rotary_scaling",) for name in OTHERS if name.startswith("rotary_")},
)


def changes(field, model):
    """What makes another model of it, by that field."""
    for other in OTHERS[field]:
        change = other if isinstance(other, dict) else {field: other}
        if any(getattr(model, name) != value for name, value in change.items()):
            yield change


def check_read_again(model, shaped=True):
    """config.json and the tensors hold all of a model, unless it is refused."""
    family = family_of(model)
    raw = json.loads(json.dumps(family.write(model)))
    again = read_family(raw, None, "float32").config
    assert dataclasses.replace(again, **{name: getattr(model, name) for name in LOST}) == model

    if not shaped:
        return

    # The layout has every parameter, and none that there is not.
    shapes = jax.eval_shape(make_model(model).init, jax.random.key(0), *example_inputs(model))
    flat = traverse_util.flatten_dict(shapes["params"], sep="/")
    assert shapes_of(family.layout(model), 1) == {path: x.shape for path, x in flat.items()}


@pytest.mark.parametrize("name", MODELS)
def test_every_field_has_a_place_or_is_refused_by_its_key(name):
    model, carried = MODELS[name], set()
    check_read_again(model)
    for field in [field.name for field in dataclasses.fields(model) if field.name != "depth"]:
        for change in changes(field, model):
            try:
                check_read_again(dataclasses.replace(model, **change), field not in SHAPELESS)
            except ValueError as error:
                keys = (field, *ALSO.get(field, ()))
                assert any(key in str(error).partition(";")[0] for key in keys), (change, error)
            else:
                carried.add(field)

    # Sizes are in every layout, and what is lost is no hindrance; gated MLPs cannot be fused.
    expected = {"width", "heads", "mlp", "norm_epsilon", *LOST} - {"fused" if model.gated else ""}
    assert expected <= carried
