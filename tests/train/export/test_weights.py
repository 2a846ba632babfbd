"""Exported weights: the published layout, our own names, and what is refused."""

import json
import pathlib
import re
import shutil
import sys

import jax
import jax.export
import numpy as np
import pytest

import odeformer
from odeformer.interop import load_preparation, load_pretrained, load_safetensors
from tests.helpers.checkout import ROOT
from tests.helpers.programs import run, start
from train.checkpoint import load_model
from train.checkpoint.restore import verified_config
from train.checkpoint.weights import load_params
from train.checkpoint.workdir import read_inputs
from train.data.inputs import ImageInputs
from train.data.text.tokenizer import ByteTokenizer, from_json
from train.export import __main__ as program
from train.export import weights
from train.export.weights import bytes_as_bpe

WORKDIR_0 = ROOT / "tests" / "data" / "workdir_0"


def assert_equal(found, expected):
    """Bit for bit, dtypes too."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture
def digits(runs):
    return runs / "images"


@pytest.fixture
def language(runs):
    return runs / "language"


def export(monkeypatch, workdir, form, folder, *flags):
    start(monkeypatch, program, f"--workdir={workdir}", f"--to={form}", f"--out={folder}", *flags)
    return folder


def test_our_own_names_are_read_back_by_the_library_alone(digits, tmp_path, monkeypatch):
    """As docs/exporting.md says."""
    folder = export(monkeypatch, digits, "safetensors", tmp_path / "out")
    stored = json.loads((folder / "config.json").read_text())
    model = odeformer.ViT(odeformer.ViTConfig(**stored["model"], depth=stored["depth"]))
    variables = load_safetensors(folder / "weights.safetensors")

    expected, weights = load_model(digits)
    assert model.config == expected.config
    assert_equal(variables, weights)
    assert json.loads((folder / "inputs.json").read_text()) == json.loads(
        (digits / "inputs.json").read_text()
    )
    # Everybody may read them who may read the rest.
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1


def test_every_model_goes_out_under_our_own_names(language, tmp_path, monkeypatch):
    for name, workdir in {"digits_0": WORKDIR_0, "language": language}.items():
        folder = export(monkeypatch, workdir, "safetensors", tmp_path / name)
        assert_equal(load_safetensors(folder / "weights.safetensors"), load_model(workdir)[1])

    tokenizer = (language / "tokenizer.json").read_text()
    assert (tmp_path / "language" / "tokenizer.json").read_text() == tokenizer


@pytest.mark.parametrize("step", [None, 1, 2, "best"])
def test_the_weights_are_those_that_evaluation_takes(digits, step, tmp_path, monkeypatch):
    flags = [] if step is None else [f"--step={step}"]
    folder = export(monkeypatch, digits, "safetensors", tmp_path / "out", *flags)
    found = load_safetensors(folder / "weights.safetensors")["params"]

    config = verified_config(digits)
    assert_equal(found, load_params(digits, config, step=step))
    same = 1 if step == "best" else step or 2
    other = load_params(digits, config, step=3 - same)
    assert np.any(found["head"]["kernel"] != np.asarray(other["head"]["kernel"]))


def test_a_layout_that_transformers_reads(digits, tmp_path, monkeypatch):
    folder = export(monkeypatch, digits, "huggingface", tmp_path / "out")
    model, variables = load_pretrained(folder)
    expected, weights = load_model(digits)
    assert_equal(variables, weights)
    assert model.config.depth == expected.config.depth

    stored = json.loads((folder / "config.json").read_text())
    assert stored["id2label"] == {str(n): str(n) for n in range(10)}
    assert stored["label2id"] == {str(n): n for n in range(10)}

    inputs = read_inputs(digits)
    pixels = np.random.default_rng(0).integers(0, 17, (3, 8, 8, 1), np.uint8)
    wanted = (pixels / inputs.peak - np.array(inputs.mean)) / np.array(inputs.std)
    preparation = load_preparation(folder)
    np.testing.assert_allclose(preparation.standardise(pixels), wanted, rtol=1e-5, atol=1e-6)
    assert (preparation.resize, preparation.crop) == (None, None)


def test_a_run_of_adapters_goes_out_merged(runs, tmp_path, monkeypatch):
    """In each form: what `load_model` reads, under the names of the weights that it adapts."""
    expected, weights = load_model(runs / "adapted")
    _, before = load_model(runs / "images")
    assert jax.tree.structure(weights) == jax.tree.structure(before)
    layer = lambda variables: variables["params"]["depth"]["groups"]["mlp_layer"]["up"]["kernel"]
    assert np.abs(layer(weights) - layer(before)).max() > 1e-3

    out = export(monkeypatch, runs / "adapted", "safetensors", tmp_path / "own")
    assert json.loads((tmp_path / "own/config.json").read_text())["lora"]["rank"] is None
    assert_equal(load_safetensors(out / "weights.safetensors"), weights)
    out = export(monkeypatch, runs / "adapted", "huggingface", tmp_path / "layout")
    assert_equal(load_pretrained(out)[1], weights)

    flags = ("--platforms=cpu", "--batch=3")
    out = export(monkeypatch, runs / "adapted", "stablehlo", tmp_path / "program", *flags)
    exported = jax.export.deserialize(bytearray((out / "program.bin").read_bytes()))
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    logits = expected.apply(weights, images)
    np.testing.assert_allclose(exported.call(images), logits, rtol=1e-5, atol=1e-5)


def test_crops_in_the_words_of_the_layout(capsys):
    """The centre of an image whose shorter side is 8/7 of the crop's."""
    square = ImageInputs((224, 224, 3), True, 255.0, (0.5,) * 3, (0.2,) * 3, ("a", "b"))
    said = weights._preparation(square)
    assert (said["size"], said["crop_size"]) == (
        {"shortest_edge": 256},
        {"height": 224, "width": 224},
    )
    oblong = square.__class__((32, 48, 3), True, 255.0, (0.5,) * 3, (0.2,) * 3, ("a", "b"))
    assert weights._preparation(oblong) is None
    assert "images of 32 x 48 pixels are cropped to their own ratio" in capsys.readouterr().err


def test_a_language_model_takes_its_tokeniser_along(language, tmp_path, monkeypatch):
    folder = export(monkeypatch, language, "huggingface", tmp_path / "out")
    _, variables = load_pretrained(folder)
    assert_equal(variables, load_model(language)[1])

    own = from_json((language / "tokenizer.json").read_text())
    read = from_json((folder / "tokenizer.json").read_text())
    (ours,), (theirs,) = own.encode("Licensed – so."), read.encode("Licensed – so.")
    np.testing.assert_array_equal(ours, theirs)
    stored = json.loads((folder / "config.json").read_text())
    assert stored["eos_token_id"] == stored["bos_token_id"] == own.end
    described = json.loads((folder / "tokenizer_config.json").read_text())
    assert described["eos_token"] == "<|endoftext|>" and described["model_max_length"] == 32


def test_bytes_as_a_byte_pair_encoding():
    own, other = ByteTokenizer(), from_json(bytes_as_bpe().to_str())
    assert (own.vocabulary, own.end) == (other.vocabulary, other.end)
    text = "Éa e\u0301  b\t\n\n中 1234's\x00 <|endoftext|>\U0001f642 "
    np.testing.assert_array_equal(own.encode(text)[0], other.encode(text)[0])
    assert other.decode(own.encode(text)[0]) == text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to=onnx"], r"--to: unknown form 'onnx'; accepted: huggingface, safetensors, stable"),
        ([], r"--to is missing: give one of huggingface, safetensors, stablehlo"),
        (["--to=safetensors", "--batch=3"], r"--batch has no effect with --to=safetensors"),
        (["--to=huggingface", "--platforms=cpu"], r"--platforms has no effect with --to=hugging"),
        (["--to=safetensors", "--weights=inside"], r"--weights has no effect with --to=safe"),
        (["--to=stablehlo", "--batch=0"], r"--batch is 1 or more; 0 was given"),
        (["--to=stablehlo", "--platforms=gpu"], r"unknown platform 'gpu'; accepted: cpu, cuda"),
        (["--to=stablehlo", "--platforms="], r"--platforms is empty: give some of cpu, cuda, tpu"),
        (["--to=stablehlo", "--weights=out"], r"unknown place 'out'; accepted: inside, beside"),
        (["--to=stablehlo", "--step=7"], r"7"),
        (
            ["--to=stablehlo", "--config.model.attention=cudnn", "--config.model.dtype=bfloat16"],
            r"attention='cudnn' calls a library of NVIDIA's.*--config.model.attention=xla",
        ),
        (["--to=huggingface"], r"depth.solver='heun' .*; of a run: --to=safetensors"),
    ],
)
def test_refusals(flags, message, tmp_path):
    done = run("train.export", f"--workdir={WORKDIR_0}", f"--out={tmp_path}/out", *flags)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert re.search(message, done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"depth.solver": "rk4"}, "depth.solver='rk4'"),
        ({"depth.steps": 2}, "depth.steps=2"),
        ({"model.centre": 0.5}, "model.centre=0.5"),
        ({"model.terms": "mlp,attention"}, r"model.terms=('mlp', 'attention')"),
    ],
)
def test_each_refusal_of_the_layout_names_its_key(digits, change, key, tmp_path):
    flags = [f"--config.{name}={value}" for name, value in change.items()]
    done = run(
        "train.export", f"--workdir={digits}", "--to=huggingface", f"--out={tmp_path}/out", *flags
    )
    assert done.returncode == 2 and f"--to=huggingface: a model of {key} is none" in done.stderr
    assert not (tmp_path / "out").exists()


def test_where_nothing_is_written(digits, tmp_path):
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "a.txt").write_text("a")
    (tmp_path / "file").write_text("a")
    to = (f"--workdir={digits}", "--to=safetensors")
    for out, message in {
        tmp_path / "held": "holds a.txt: give a folder that is empty or does not exist",
        tmp_path / "file": "is a file: give a folder",
        tmp_path / "file" / "below": "cannot be written",
        "gs://bucket/out": "is no local folder: write one, and copy it there",
    }.items():
        done = run("train.export", *to, f"--out={out}")
        assert done.returncode == 2 and f"--out={out} {message}" in done.stderr, done.stderr

    done = run("train.export", *to)
    assert done.returncode == 2 and "--out is missing" in done.stderr
    assert run("train.export", "--to=safetensors").returncode == 2
    assert (tmp_path / "held" / "a.txt").read_text() == "a"
    assert (tmp_path / "file").read_text() == "a"


@pytest.mark.parametrize(
    ("form", "package"), [("safetensors", "safetensors"), ("stablehlo", "flatbuffers")]
)
def test_without_its_package(form, package, digits, tmp_path, monkeypatch):
    """Not installed, the packages cannot be found."""

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=package)

    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Blocker(), *sys.meta_path])
    out = tmp_path / "out"
    done = run("train.export", f"--workdir={digits}", f"--to={form}", f"--out={out}")
    assert done.returncode == 2 and f"the package {package}, which is not installed" in done.stderr
    assert "pip install 'odeformer-jax[" in done.stderr


def test_a_run_that_did_not_record_its_inputs(tmp_path, monkeypatch):
    workdir = shutil.copytree(WORKDIR_0, tmp_path / "run")
    pathlib.Path(workdir / "inputs.json").unlink(missing_ok=True)
    folder = export(monkeypatch, workdir, "safetensors", tmp_path / "out")
    assert json.loads((folder / "inputs.json").read_text())["classes"][3] == "3"
