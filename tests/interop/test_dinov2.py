"""DINOv2: what of it is not read or written, and a head for a model that was published without."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from odeformer import LMConfig, ViT, ViTConfig
from odeformer.interop import load_pretrained, save_pretrained
from odeformer.interop.dinov2 import read
from odeformer.interop.families import family_of
from tests.helpers.checkout import ROOT

DATA = ROOT / "tests" / "data" / "interop"
SEQUENTIAL = dict(layers=2, solver="lie_trotter")
SCALED = dict(layer_scale=0.1, pool="token_mean", depth=SEQUENTIAL)
SWIGLU = dict(gated=True, activation="silu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(use_swiglu_ffn=True), r"8 missing: .*weights_in.weight.*8 left over: .*mlp.fc1.bias"),
        (dict(use_swiglu_ffn="yes"), "gated is True or False; 'yes' was given"),
        (dict(qkv_bias=False), "6 left over: .*attention.key.bias"),
        (dict(image_size=[8, 12]), r"image_size=\[8, 12\]: one side is accepted"),
        (dict(layerscale_value=0.0), "layer_scale is greater than 0"),
        # Positions of another grid are not interpolated.
        (dict(image_size=16), r"1 of another shape: embeddings.position.*\[1, 17, 8\]"),
    ],
)
def test_values_of_the_config_that_no_model_has(changes, message, tmp_path):
    folder = shutil.copytree(DATA / "dinov2", tmp_path / "dinov2")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ViTConfig(depth=SEQUENTIAL, layer_scale=0.1), "pool='token'.*pool='token_mean'"),
        (ViTConfig(depth=SEQUENTIAL, classes=0), "layer_scale=None.*layer_scale='a number'"),
        (ViTConfig(distillation="token", **SCALED), "distillation='token'.*distillation='none'"),
        (ViTConfig((32, 16), **SCALED), r"image_size=\(32, 16\).*one side"),
        (ViTConfig(mlp=200, **SCALED), "mlp=200.*model.mlp=192"),
        # Two thirds of 192 and of 384 are 128 and 256.
        (ViTConfig(mlp=200, **SCALED, **SWIGLU), "mlp=200.*model.mlp=128"),
        (ViTConfig(mlp=100, **SCALED, **SWIGLU), "mlp=100.*model.mlp=128"),
        (ViTConfig(mlp=256, **SCALED, gated=True), "activation='gelu_tanh'.*activation='silu'"),
        (LMConfig(depth=SEQUENTIAL, positions="learned", layer_scale=0.1), "layer_scale=0.1"),
    ],
)
def test_a_model_without_a_place_in_the_layout(config, message):
    with pytest.raises(ValueError, match=message):
        family_of(config)


def test_a_model_without_a_head_takes_one(tmp_path):
    """Which reads what the architecture with a head reads, and so is written as that one."""
    bare, variables = load_pretrained(DATA / "dinov2_registers")
    model = ViT(dataclasses.replace(bare.config, classes=4))
    images = np.load(DATA / "dinov2_registers" / "golden.npz")["images"]
    rng = np.random.default_rng(0)
    head = {"kernel": rng.standard_normal((16, 4), "f4"), "bias": rng.standard_normal(4, "f4")}
    params = variables["params"] | {"head": head}
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)

    save_pretrained(model, {"params": params}, tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["architectures"] == ["Dinov2WithRegistersForImageClassification"]
    again, reread = load_pretrained(tmp_path)
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, reread["params"], params)

    tokens = jax.jit(bare.apply)(variables, images)
    read = np.concatenate([tokens[:, 0], tokens[:, 4:].mean(axis=1)], axis=-1)
    logits = read @ params["head"]["kernel"] + params["head"]["bias"]
    found = jax.jit(model.apply)({"params": params}, images)
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "ratio", "mlp"),
    [(1536, 4, 4096), (16, 2, 24), (16, 3, 32), (12, 1, 8), (8, 5, 32)],  # the first is published
)
def test_the_hidden_size_of_a_giant(width, ratio, mlp):
    """Two thirds of the ratio's, up to a multiple of 8; and a ratio for it."""
    raw = dict(architectures=["Dinov2Model"], image_size=28, hidden_size=width, mlp_ratio=ratio)
    fields = read(raw | dict(num_attention_heads=2, use_swiglu_ffn=True, hidden_act="relu"))
    assert (fields["mlp"], fields["gated"], fields["activation"]) == (mlp, True, "silu")

    layers = fields.pop("layers")
    config = ViTConfig(**fields, depth=SEQUENTIAL | {"layers": layers})
    assert read(family_of(config).write(config)) == fields | {"layers": layers}
