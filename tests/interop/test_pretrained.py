"""Pretrained transformers: their logits, their text, in and out again, other solvers.

tests/data/interop holds tiny models of the library transformers with what they say, and the recipe
that makes them again.
"""

import dataclasses
import importlib.util
import json
import runpy
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import odeformer
from odeformer import DepthConfig
from odeformer.interop import (
    load_pretrained,
    load_safetensors,
    save_pretrained,
    save_safetensors,
)
from odeformer.interop.families import FAMILIES
from odeformer.interop.weights import FILE, INDEX, find_weights
from tests.helpers.checkout import ROOT
from tests.helpers.trees import noisy

DATA = ROOT / "tests" / "data" / "interop"
NAMES = sorted(path.name for path in DATA.iterdir() if path.is_dir())
TEXTS = ("gpt2", "gpt2_untied", "llama_single", "qwen3")
OTHER_TEXTS = [n for n in NAMES if n.startswith(("llama", "qwen")) and n not in TEXTS]
RENEW = "made by tests/data/interop/recipe.py, which says how"


def said(model, variables, folder):
    """The logits of a model, and those of transformers, for the inputs of a folder."""
    golden = np.load(folder / "golden.npz")
    inputs = golden["images"] if "images" in golden else golden["tokens"].astype(np.int32)
    return np.asarray(jax.jit(model.apply)(variables, inputs)), golden["logits"]


def largest_difference(found, expected):
    """As a part of the largest logit."""
    return np.abs(found - expected).max() / np.abs(expected).max()


def stored(path):
    """Every tensor of a file, its dtype and its bytes."""
    weights = find_weights([path])
    tensors = {name: weights.read(name) for name in weights.shapes}
    return {name: (x.dtype.name, x.shape, x.tobytes()) for name, x in tensors.items()}


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name):
    model, variables = load_pretrained(DATA / name)
    assert largest_difference(*said(model, variables, DATA / name)) < 1e-5, RENEW

    # Every parameter of the model, and nothing else, in the dtype and shape that it has.
    inputs = odeformer.example_inputs(model.config)
    assert jax.tree.map(
        lambda x: (x.shape, x.dtype), jax.eval_shape(model.init, jax.random.key(0), *inputs)
    ) == jax.tree.map(lambda x: (x.shape, x.dtype), variables)


def test_every_architecture_has_a_golden_model():
    configs = [json.loads((DATA / name / "config.json").read_text()) for name in NAMES]
    assert {config["architectures"][0] for config in configs} == set(FAMILIES)


@pytest.mark.parametrize(
    "name", [*TEXTS, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHER_TEXTS)]
)
def test_greedy_text_with_caches_is_that_of_transformers(name):
    golden = np.load(DATA / name / "golden.npz")
    model, variables = load_pretrained(DATA / name)
    tokens = golden["tokens"].astype(np.int32)
    new = odeformer.generate(
        model, variables, tokens, max_new_tokens=golden["new"].shape[1], temperature=0.0
    )
    np.testing.assert_array_equal(np.asarray(new)[:, -golden["new"].shape[1] :], golden["new"])


@pytest.mark.parametrize("name", NAMES)
def test_in_and_out_again_is_bit_for_bit(name, tmp_path):
    model, variables = load_pretrained(DATA / name)
    save_pretrained(model, variables, tmp_path / "again")
    was = stored(DATA / name / FILE)
    read = {name: tensor for name, tensor in was.items() if "mask_token" not in name}
    assert stored(tmp_path / "again" / FILE) == read and len(was) - len(read) <= 1
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"config.json", FILE}

    again, reread = load_pretrained(tmp_path / "again")
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, reread, variables)

    # What transformers would read: each key that decides something says what it said.
    was, now = (
        json.loads((folder / "config.json").read_text())
        for folder in (DATA / name, tmp_path / "again")
    )
    renamed = {"hidden_act", "activation_function", "n_inner"}
    chosen = {"attn_pdrop", "embd_pdrop", "resid_pdrop", "use_mask_token"}
    assert {k: v for k, v in now.items() if k in was and was[k] != v}.keys() <= renamed | chosen


def test_parameters_in_bfloat16_come_and_go(tmp_path):
    model, variables = load_pretrained(DATA / "gpt2", param_dtype="bfloat16", dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}
    assert model.config.dtype == "bfloat16"

    save_pretrained(model, variables, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    _, reread = load_pretrained(tmp_path, param_dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, reread, variables)
    _, exact = load_pretrained(DATA / "gpt2")
    jax.tree.map(
        np.testing.assert_array_equal, jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact), reread
    )


def test_the_solver_can_be_swapped(tmp_path):
    folder = DATA / "vit"
    exact, variables = load_pretrained(folder)
    assert exact.config.depth == DepthConfig(layers=2, share=1, solver="lie_trotter")

    model, same = load_pretrained(folder, depth={"solver": "euler"})
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    found, golden = said(model, same, folder)
    assert largest_difference(found, golden) > 1e-3

    # A whole DepthConfig, and the same weights in a model of another depth.
    depth = DepthConfig(layers=2, solver="rk4", steps=2)
    model, _ = load_pretrained(folder, depth=depth)
    assert model.config.depth == depth
    with pytest.raises(ValueError, match=r"depth.solver='rk4'.*depth.solver='lie_trotter'"):
        save_pretrained(model, variables, tmp_path)


@pytest.mark.parametrize("fused", [False, True])
def test_a_fused_parallel_sum_is_the_same(fused):
    model, variables = load_pretrained(DATA / "deit_mean", depth={"solver": "euler"})
    plain, _ = said(model, variables, DATA / "deit_mean")
    fused_model = odeformer.ViT(dataclasses.replace(model.config, fused=fused))
    found, _ = said(fused_model, variables, DATA / "deit_mean")
    assert largest_difference(found, plain) < 1e-5


def test_shards_are_read_as_one_file(tmp_path):
    shutil.copy(DATA / "gpt2" / "config.json", tmp_path)
    tensors = load_file(DATA / "gpt2" / FILE)
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    places = {name: file for file, part in parts.items() for name in part}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))

    _, variables = load_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, variables, load_pretrained(DATA / "gpt2")[1])

    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"there is no file .*model-2.safetensors"):
        load_pretrained(tmp_path)


def test_the_first_published_form_of_gpt2_is_read(tmp_path):
    """Without the prefix, with masks, and with the tied head written out."""
    shutil.copy(DATA / "gpt2" / "config.json", tmp_path)
    tensors = load_file(DATA / "gpt2" / FILE)
    bare = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    bare["h.0.attn.bias"] = np.ones((1, 1, 48, 48), np.float32)
    bare["h.1.attn.masked_bias"] = np.float32([-1e4])
    bare["lm_head.weight"] = bare["wte.weight"]
    save_file(bare, tmp_path / FILE)
    _, variables = load_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, variables, load_pretrained(DATA / "gpt2")[1])


def test_our_own_names_hold_any_model(tmp_path):
    depth = DepthConfig(layers=4, share=2, solver="rk4")
    config = odeformer.ViTConfig(
        image_size=8,
        patch_size=4,
        width=8,
        heads=2,
        mlp=12,
        depth=depth,
        pool="mean",
        time="additive",
        terms=("attention", "conv"),
        positions="sincos",
    )
    model = odeformer.ViT(config)
    variables = noisy(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))
    variables["params"]["norm"] = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16), variables["params"]["norm"]
    )
    save_safetensors(variables, tmp_path / "own.safetensors")
    reread = load_safetensors(tmp_path / "own.safetensors")
    assert jax.tree.map(lambda x: x.dtype, reread) == jax.tree.map(lambda x: x.dtype, variables)
    jax.tree.map(np.testing.assert_array_equal, reread, variables)
    assert "params/norm/scale" in stored(tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match="model.*save_safetensors"):
        save_pretrained(model, variables, tmp_path)


def test_older_files_of_llama_are_read(tmp_path):
    """Their keys of rotary positions, and angles that they hold in addition to the weights."""
    config = json.loads((DATA / "llama" / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scaling": rope}))
    tensors = load_file(DATA / "llama" / FILE)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, tmp_path / FILE)
    model, variables = load_pretrained(tmp_path)
    new, expected = load_pretrained(DATA / "llama")
    assert model.config == new.config
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_the_kernels_of_heads_that_share_keys():
    """One kernel where each head has keys of its own, else two."""
    for name, kernels in (("llama", {"qkv", "out"}), ("llama_shared", {"q", "kv", "out"})):
        layer = load_pretrained(DATA / name)[1]["params"]["depth"]["groups"]["attention_layer"]
        assert layer.keys() == kernels
    assert layer["q"]["kernel"].shape == (2, 16, 4, 4)  # [layers, D, H, K]
    assert layer["kv"]["kernel"].shape == (2, 16, 2, 2, 4)


@pytest.mark.slow
def test_transformers_makes_the_golden_values_anew(tmp_path):
    for module in ("torch", "transformers"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    recipe = runpy.run_path(str(DATA / "recipe.py"))
    for seed, name in enumerate(recipe["MODELS"]):
        recipe["make"](tmp_path, name, seed + 100)
        model, variables = load_pretrained(tmp_path / name)
        assert largest_difference(*said(model, variables, tmp_path / name)) < 1e-5

        # And ours is read by transformers, to the same logits.
        save_pretrained(model, variables, tmp_path / "ours")
        family, kind, _ = recipe["MODELS"][name]
        theirs = getattr(recipe["transformers"], f"{family}{kind}")
        read = theirs.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
        again = recipe["say"](read, read.config)
        np.savez(tmp_path / "ours" / "golden.npz", **again)
        assert largest_difference(*said(model, variables, tmp_path / "ours")) < 1e-5
        shutil.rmtree(tmp_path / "ours")
