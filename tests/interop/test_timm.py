"""Vision transformers as timm stores them: logits, how images are prepared, what is refused.

tests/data/timm holds tiny models of timm with what they say, and the recipe that makes them again.
"""

import dataclasses
import importlib.util
import json
import runpy
import shutil

import jax
import numpy as np
import pytest

import odeformer
from odeformer.interop import ImagePreparation, load_preparation, load_pretrained, save_pretrained
from odeformer.interop.timm_vit import read
from tests.helpers.checkout import ROOT
from tests.interop.test_pretrained import largest_difference, said

DATA = ROOT / "tests" / "data" / "timm"
NAMES = sorted(path.name for path in DATA.iterdir() if path.is_dir())
RENEW = "made by tests/data/timm/recipe.py, which says how"


@pytest.fixture
def vit(tmp_path):
    """A copy of a model's folder, to spoil."""
    return shutil.copytree(DATA / "vit", tmp_path / "vit")


def change(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_timm(name):
    model, variables = load_pretrained(DATA / name)
    assert largest_difference(*said(model, variables, DATA / name)) < 1e-5, RENEW

    inputs = odeformer.example_inputs(model.config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    look = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert look(shapes) == look(variables)


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_out_as_a_model_of_transformers(name, tmp_path):
    model, variables = load_pretrained(DATA / name)
    if name == "deit3":
        with pytest.raises(ValueError, match=r"model.pool='token'.*model.pool='token_mean'"):
            save_pretrained(model, variables, tmp_path)
        return

    if name.startswith("dinov2"):
        model = odeformer.ViT(dataclasses.replace(model.config, pool="token_mean"))
    save_pretrained(model, variables, tmp_path)
    again, reread = load_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, reread, variables)
    # The value at which layer scale begins is no weight, and is written all the same.
    assert again.config == model.config


def config_of(architecture, **changes):
    raw = dict(architecture=architecture, num_classes=1000, pretrained_cfg={}) | changes
    fields = read(raw)
    layers = fields.pop("layers")
    config = odeformer.ViTConfig(**fields, depth={"layers": layers})
    shapes = jax.eval_shape(
        odeformer.ViT(config).init, jax.random.key(0), *odeformer.example_inputs(config)
    )
    return config, sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # As timm 1.0.31 counts them.
        ("vit_tiny_patch16_224", 5_717_416),
        ("vit_base_patch32_224", 88_224_232),
        ("vit_huge_patch14_224", 632_045_800),
        ("deit_small_patch16_224", 22_050_664),
        ("deit_tiny_distilled_patch16_224", 5_910_800),
    ],
)
def test_sizes_follow_from_the_name(name, parameters):
    assert config_of(name)[1] == parameters


def test_what_else_the_name_and_the_input_say():
    # Positions of the class token, which timm lacks here, are there with ours.
    config, count = config_of("deit3_medium_patch16_224")
    assert count == 38_849_512 + 512 and config.layer_scale == 1e-6

    changes = dict(pretrained_cfg={"input_size": [3, 518, 518]}, num_classes=0)
    config, count = config_of("vit_small_patch14_reg4_dinov2", **changes)
    assert count == 22_057_344 + 384 and (config.registers, config.layer_scale) == (4, 1e-5)
    assert config.grid == (37, 37)
    assert config_of("vit_small_patch14_dinov2", **changes)[1] == 22_056_192

    config, count = config_of("vit_giant_patch14_dinov2", **changes)
    assert (config.mlp, config.gated, config.activation) == (4096, True, "silu")
    assert count == 1_136_479_232
    assert config_of("vit_giant_patch14_reg4_dinov2", **changes)[1] == 1_136_483_840 + 1536


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(architecture="resnet50"), "timm's model 'resnet50', which is not read; those that"),
        (dict(architecture="vit_base_patch16_clip_224"), r"norm before the first layer \(clip\)"),
        (dict(architecture="vit_giant_patch14_224"), "'vit_giant_patch14_224', which is not read"),
        (dict(model_args={"mlp_layer": "SwiGLUPacked"}), "mlp_layer='SwiGLUPacked' in model_args"),
        (dict(model_args={"act_layer": "mish"}), "act_layer='mish' .*'gelu' is accepted"),
        (dict(global_pool="avg", model_args={}), "global_pool='avg' .*'token' is accepted"),
        (dict(model_args={"qkv_bias": "no"}), "qkv_bias is True or False; 'no' was given"),
        (dict(model_args={"proj_bias": False}), "proj_bias=False .*True is accepted"),
        (dict(model_args={"reg_tokens": 4}), "reg_tokens=4 with positions of their own"),
        (dict(model_args={"rope": 1}), "rope=1 in model_args, which is not read"),
        (dict(model_args={"patch_size": [4, 4]}), r"patch_size is a whole number.*\[4, 4\]"),
        (dict(architecture=None), "timm's model None"),
    ],
)
def test_refusals(vit, changes, message):
    change(vit, **changes)
    with pytest.raises(ValueError, match=message):
        load_pretrained(vit)


def test_how_images_are_prepared(vit):
    half = (0.5, 0.5, 0.5)
    expected = ImagePreparation(8, (8, 8), "bicubic", 1 / 255, half, half)
    assert load_preparation(vit) == expected  # floor(8 / 0.9)

    given = dict(input_size=[3, 384, 384], mean=half, std=half, interpolation="bilinear")
    for changes, resize in (
        (dict(crop_pct=0.95), 404),
        ({}, 438),
        (dict(crop_pct=1.0, crop_mode="squash"), (384, 384)),
    ):
        change(vit, pretrained_cfg=given | changes)
        found = load_preparation(vit)
        assert (found.resize, found.crop, found.resample) == (resize, (384, 384), "bilinear")

    for changes, message in (
        (dict(crop_mode="border"), "crop_mode='border' of 384 x 384"),
        (dict(input_size=[3, 8, 12]), "crop_mode='center' of 8 x 12"),
        (dict(interpolation="random"), "interpolation='random'; nearest"),
    ):
        change(vit, pretrained_cfg=given | changes)
        with pytest.raises(ValueError, match=message):
            load_preparation(vit)
    change(vit, pretrained_cfg={})
    with pytest.raises(ValueError, match="lacks input_size and mean and std in pretrained_cfg"):
        load_preparation(vit)


@pytest.mark.slow
def test_timm_makes_the_golden_values_again(tmp_path):
    for module in ("torch", "timm"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    recipe = runpy.run_path(str(DATA / "recipe.py"))
    for seed, name in enumerate(recipe["MODELS"]):
        recipe["make"](tmp_path, name, seed + 100)
        model, variables = load_pretrained(tmp_path / name)
        assert largest_difference(*said(model, variables, tmp_path / name)) < 1e-5
