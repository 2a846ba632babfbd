"""What is not read, and not written, and what the messages say."""

import importlib.util
import json
import pathlib
import pickle
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

import odeformer
from odeformer import DepthConfig, LMConfig, TextConfig, ViTConfig
from odeformer.interop import load_pretrained, load_safetensors, save_pretrained
from odeformer.interop.families import FAMILIES, family_of
from odeformer.interop.weights import FILE, INDEX
from tests.helpers.checkout import ROOT

DATA = ROOT / "tests" / "data" / "interop"


@pytest.fixture
def vit(tmp_path):
    """A copy of a model's folder, to spoil."""
    return shutil.copytree(DATA / "vit", tmp_path / "vit")


@pytest.fixture
def gpt2(tmp_path):
    """A copy of a language model's folder, to spoil."""
    return shutil.copytree(DATA / "gpt2", tmp_path / "gpt2")


@pytest.fixture
def llama(tmp_path):
    """A copy of a model's folder whose heads share keys, to spoil."""
    return shutil.copytree(DATA / "llama_shared", tmp_path / "llama")


@pytest.fixture
def qwen3(tmp_path):
    """A copy of a model's folder, to spoil."""
    return shutil.copytree(DATA / "qwen3", tmp_path / "qwen3")


def change(folder, **changes):
    """Changes config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spoil(folder, edit):
    """Changes the tensors."""
    tensors = load_file(folder / FILE)
    edit(tensors)
    save_file(tensors, folder / FILE)


def test_a_folder_without_a_config(vit):
    (vit / "config.json").unlink()
    with pytest.raises(ValueError, match=r"vit holds no config.json: give the folder of a model"):
        load_pretrained(vit)

    (vit / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is no JSON .*: copy or download it again"):
        load_pretrained(vit)


def test_an_architecture_that_is_not_read_lists_those_that_are(vit):
    change(vit, architectures=["MixtralForCausalLM"], model_type="mixtral")
    with pytest.raises(ValueError, match=r"'MixtralForCausalLM' .*those that are: ") as refusal:
        load_pretrained(vit)
    assert all(name in str(refusal.value) for name in FAMILIES)
    assert "and of timm: vit_*, deit_*, deit3_* and vit_*_dinov2" in str(refusal.value)
    assert "as it has experts in place of one MLP, which our models lack" in str(refusal.value)

    change(vit, architectures=None)
    with pytest.raises(ValueError, match=r"architecture None"):
        load_pretrained(vit)


def test_a_post_norm_model_is_no_solve(vit):
    change(vit, architectures=["BertForMaskedLM"], model_type="bert")
    with pytest.raises(
        ValueError,
        match=r"BertForMaskedLM .*post-norm: its layer, y = norm\(y \+ f\(y\)\).*no step of any",
    ):
        load_pretrained(vit)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vit", dict(qkv_bias=False), r"6 left over: .*attention.key.bias"),
        (
            "vit",
            dict(hidden_act="mish"),
            "unknown hidden_act in config.json 'mish'; accepted: gelu",
        ),
        ("vit", dict(num_attention_heads=3), "heads=3 does not divide width=8"),
        ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "inverse_layer_idx=True.*False is"),
        ("gpt2", dict(scale_attn_weights=False), "scale_attn_weights=False"),
        ("gpt2", dict(add_cross_attention=True), "add_cross_attention=True"),
        ("gpt2", dict(tie_word_embeddings=False), "1 missing: lm_head.weight"),
        ("gpt2", dict(n_embd="8"), "width is a whole number"),
        ("llama", dict(hidden_act="mish"), "unknown hidden_act in config.json 'mish'"),
        (
            "llama",
            dict(rope_parameters=dict(rope_type="yarn", factor=4.0)),
            "unknown rope_type in config.json 'yarn'; accepted: default, linear, llama3",
        ),
        (
            "llama",
            dict(rope_scaling=dict(type="dynamic", factor=4.0)),
            "unknown rope_type in config.json 'dynamic'",
        ),
        (
            "llama",
            dict(rope_parameters=dict(rope_type="llama3", factor=4.0)),
            "lacks low_freq_factor, high_freq_factor of rope_type 'llama3'",
        ),
        (
            "llama",
            dict(rope_parameters=dict(rope_type="linear", factor="4")),
            "rotary_factor is a finite number",
        ),
        ("llama", dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5.*1.0 is accepted"),
        ("llama", dict(num_key_value_heads=3), "kv_heads=3 does not divide heads=4"),
        (
            "qwen3",
            dict(layer_types=["full_attention", "sliding_attention"]),
            "layer_types=.*sliding window of the tokens, which these models do not have",
        ),
        (
            "qwen3",
            dict(layer_types=None, use_sliding_window=True, sliding_window=8, max_window_layers=1),
            "use_sliding_window=True: .*sliding window",
        ),
        ("qwen3", dict(attention_bias=True), "8 missing: .*self_attn.q_proj.bias"),
        ("llama", dict(mlp_bias=True), "6 missing: model.layers.0.mlp.gate_proj.bias"),
        ("llama", dict(tie_word_embeddings=False), "1 missing: lm_head.weight"),
        ("llama", dict(num_key_value_heads=4), r"4 of another shape: .*\[8, 16\] in place of"),
    ],
)
def test_values_of_the_config_that_no_model_has(name, changes, message, request):
    folder = request.getfixturevalue(name)
    change(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        # What lies outside of every layer, or is not turned on, hides nothing.
        ("qwen3", dict(layer_types=None, use_sliding_window=True, max_window_layers=2)),
        ("qwen3", dict(layer_types=None, use_sliding_window=False, max_window_layers=0)),
        ("qwen3", dict(layer_types=None, use_sliding_window=True, sliding_window=None)),
        # As files before version 5 of transformers say it.
        ("llama", dict(rope_parameters=None, rope_theta=10_000, rope_scaling=None)),
        ("llama", dict(head_dim=None, pretraining_tp=2, attention_bias=None)),
    ],
)
def test_other_words_for_the_same_model(name, changes, request):
    folder = request.getfixturevalue(name)
    model, variables = load_pretrained(folder)
    change(folder, **changes)
    again, same = load_pretrained(folder)
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, same, variables)


def test_tensors_that_are_not_those_of_the_model(vit):
    change(vit, num_hidden_layers=3)
    with pytest.raises(
        ValueError,
        match=r"16 missing: vit.encoder.layer.2.layernorm_before.weight, .*, .*, \.\.\.\)",
    ):
        load_pretrained(vit)

    change(vit, num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"\(16 left over: (vit.encoder.layer.1.\S+, ){3}\.\.\.\)"):
        load_pretrained(vit)

    change(vit, num_hidden_layers=2, intermediate_size=16)
    with pytest.raises(ValueError, match=r"6 of another shape: .*\[12, 8\] in place of \[16, 8\]"):
        load_pretrained(vit)

    change(vit, intermediate_size=12)

    def edit(tensors):
        tensors["extra"] = np.zeros(1, np.float32)
        del tensors["vit.layernorm.bias"]

    spoil(vit, edit)
    with pytest.raises(ValueError, match=r"\(1 missing: vit.layernorm.bias; 1 left over: extra\)"):
        load_pretrained(vit)


def test_integers_are_no_weights(vit):
    spoil(vit, lambda tensors: tensors.update({"vit.layernorm.bias": np.zeros(8, np.int8)}))
    with pytest.raises(ValueError, match=r"vit.layernorm.bias .* dtype I8; F64, F32, F16, BF16"):
        load_pretrained(vit)


def test_a_pickle_is_never_opened(vit, tmp_path):
    (vit / FILE).unlink()
    with pytest.raises(
        ValueError,
        match=f"holds no weights: neither {FILE} nor {INDEX} is there.*safetensors/convert",
    ):
        load_pretrained(vit)

    class Trap:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "sprung",))

    (vit / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"pickle \(pytorch_model.bin\).*safetensors/convert"):
        load_pretrained(vit)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("left", [4, 100, -5])
def test_a_file_that_is_cut_off(vit, left):
    content = (vit / FILE).read_bytes()
    (vit / FILE).write_bytes(content[:left])
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read as safetensors .*cut"):
        load_pretrained(vit)
    with pytest.raises(ValueError, match=r"cannot be read as safetensors"):
        load_safetensors(vit / FILE)


@pytest.mark.parametrize("place", [0, 9, 40])
def test_a_file_whose_header_is_damaged(vit, place):
    content = bytearray((vit / FILE).read_bytes())
    content[place : place + 4] = b"\xff\x00\xfe!"
    (vit / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read as safetensors"):
        load_pretrained(vit)


@pytest.mark.parametrize("places", [{"a": "../model.safetensors"}, {"a": 7}, {}, []])
def test_an_index_that_leaves_its_folder(vit, places):
    (vit / FILE).rename(vit.parent / FILE)
    (vit / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ValueError, match="no weight_map from tensors to files in its folder"):
        load_pretrained(vit)


@pytest.mark.parametrize("folder", ["/nowhere/at/all", "./no folder", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_name(folder):
    with pytest.raises(ValueError, match="is no folder: give the folder that holds config.json"):
        load_pretrained(folder)


def test_a_file_is_no_folder(vit):
    with pytest.raises(ValueError, match="is no folder: give the folder"):
        load_pretrained(vit / FILE)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The Hub's cache, empty and all that there is."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_name_without_a_network(offline):
    brought = "run 'hf download someone/vit --local-dir FOLDER' on a machine that has a network"
    with pytest.raises(ValueError, match=rf"no folder 'someone/vit' here.*give a.*{brought}"):
        load_pretrained("someone/vit")


def test_a_name_that_is_in_the_cache(offline):
    """As the Hub's own library lays it out."""
    place = offline / "models--someone--vit"
    shutil.copytree(DATA / "vit", place / "snapshots" / ("0" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    model, _ = load_pretrained("someone/vit")
    assert model.config == load_pretrained(DATA / "vit")[0].config


@pytest.mark.parametrize(
    ("package", "folder"), [("safetensors", DATA / "vit"), ("huggingface_hub", "someone/vit")]
)
def test_a_package_that_is_not_installed(package, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*'odeformer-jax\[pretrained\]'"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        ({"share": 2}, "layers=2, each with its own .* layers=2, share=2 was given"),
        ({"layers": 4}, "a depth of layers=4, share=1 was given"),
        (DepthConfig(), "a depth of layers=12, share=1 was given"),
        ({"basis": "legendre", "coefficients": 2}, "share=1, basis='legendre' was given"),
        ({"solvr": "rk4"}, "unknown field of DepthConfig 'solvr'"),
        ("rk4", "depth is a DepthConfig, or a mapping"),
    ],
)
def test_a_depth_of_which_the_weights_are_not(depth, message):
    with pytest.raises(ValueError, match=message):
        load_pretrained(DATA / "vit", depth=depth)


@pytest.mark.parametrize("key", ["dtype", "param_dtype"])
def test_dtypes(key):
    with pytest.raises(ValueError, match=f"unknown {key} 'float16'; accepted: float32, bfloat16"):
        load_pretrained(DATA / "vit", **{key: "float16"})


SEQUENTIAL = dict(layers=2, solver="lie_trotter")
LEARNED = dict(depth=SEQUENTIAL, positions="learned")
GATED = dict(depth=SEQUENTIAL, norm="rms", gated=True, mlp_bias=False)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            ViTConfig(depth=DepthConfig(layers=2)),
            "depth.solver='euler'.*depth.solver='lie_trotter'",
        ),
        (ViTConfig(depth=SEQUENTIAL | {"share": 2}), "depth.share=2"),
        (ViTConfig(depth=SEQUENTIAL | {"steps": 3}), "depth.steps=3"),
        (ViTConfig(depth=SEQUENTIAL | {"basis": "hat", "coefficients": 3}), "depth.basis='hat'"),
        (ViTConfig(depth=SEQUENTIAL, terms=("mlp", "attention")), "model.terms"),
        (ViTConfig(depth=SEQUENTIAL, time="additive"), "model.time='additive'"),
        (ViTConfig(depth=SEQUENTIAL, centre=0.5), "model.centre=0.5"),
        (ViTConfig(depth=SEQUENTIAL, positions="sincos"), "model.positions='sincos'"),
        (ViTConfig(depth=SEQUENTIAL, pool="mean"), "model.pool='mean'"),
        (LMConfig(depth=SEQUENTIAL), "model.positions='rotary'.*save_safetensors"),
        (ViTConfig(depth=SEQUENTIAL, norm="rms"), "model.norm='rms'.*model.norm='layer'"),
        (ViTConfig(depth=SEQUENTIAL, gated=True), "model.gated=True"),
        (ViTConfig(depth=SEQUENTIAL, kv_heads=1), "model.kv_heads=1.*model.kv_heads=3"),
        (ViTConfig(depth=SEQUENTIAL, head_size=16), "model.head_size=16.*model.head_size=64"),
        (ViTConfig(depth=SEQUENTIAL, qk_norm=True), "model.qk_norm=True"),
        (LMConfig(**LEARNED, qkv_bias=False), "model.qkv_bias=False.*model.qkv_bias=True"),
        (LMConfig(**LEARNED, gated=True), "model.gated=True.*model.gated=False"),
        (ViTConfig(depth=SEQUENTIAL, out_bias=False), "model.out_bias=False"),
        (ViTConfig(depth=SEQUENTIAL, mlp_bias=False), "model.mlp_bias=False"),
        (LMConfig(**GATED | dict(gated=False)), "model.gated=False"),
        (LMConfig(**GATED, positions="learned"), "model.positions='learned'.*'rotary'"),
        (LMConfig(**GATED, rotary_fraction=0.5), "model.rotary_fraction=0.5"),
        (LMConfig(**GATED, heads=5, head_size=8), "model.width % model.heads=4"),
        (LMConfig(**GATED, qkv_bias=False), "model.qkv_bias=False"),
        (LMConfig(**GATED, qk_norm=True, out_bias=False), "model.out_bias=False"),
        (LMConfig(**GATED | dict(mlp_bias=True, qk_norm=True)), "model.mlp_bias=True"),
        (TextConfig(depth=SEQUENTIAL), "save_pretrained takes a ViTConfig or LMConfig"),
    ],
)
def test_a_model_without_a_place_in_the_layout(config, message):
    with pytest.raises(ValueError, match=message):
        family_of(config)


def test_variables_of_another_model(tmp_path):
    model, variables = load_pretrained(DATA / "vit")
    _, others = load_pretrained(DATA / "vit_wide")
    with pytest.raises(ValueError, match="the tensors of the variables are not those.*shape"):
        save_pretrained(model, others, tmp_path)

    lacking = {name: leaf for name, leaf in variables["params"].items() if name != "norm"}
    with pytest.raises(ValueError, match="2 missing: norm/scale, norm/bias"):
        save_pretrained(model, {"params": lacking}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_importing_the_library_loads_neither_the_room_nor_safetensors():
    """Though they are there; and the room is imported where the packages are not."""
    assert importlib.util.find_spec("safetensors") and odeformer.__all__.count("interop") == 0
    code = (
        "import sys, odeformer; "
        "print([name for name in sys.modules if 'interop' in name or 'safetensors' in name]); "
        "sys.modules['safetensors'] = sys.modules['huggingface_hub'] = None; "
        "import odeformer.interop"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout == "[]\n"
