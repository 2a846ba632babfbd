"""Exported programs: the same logits in a process that has jax alone, for any batch size."""

import ast
import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from odeformer import LMConfig, TextConfig, ViTConfig, make_model, solvers, terms
from tests.helpers.checkout import ROOT
from tests.helpers.programs import start
from train.checkpoint import load_model
from train.checkpoint.workdir import read_inputs
from train.errors import BadInput
from train.export import __main__ as program
from train.export.checks import check_attention, check_inside
from train.export.example import example
from train.export.program import export_model, write_program

BATCHES = (1, 3, 64)
SIZES = dict(width=8, heads=2, mlp=8)


CASES = {  # name -> the run's task, its flags
    "images": ("images", ("--platforms=cpu",)),
    "adaptive": (
        "images",
        ("--weights=beside", "--config.depth.solver=tsit5", "--config.depth.rtol=1e-2"),
    ),
    "language": ("language", ("--platforms=cpu,tpu",)),
    "sentences": ("sentences", ("--weights=beside", "--platforms=cpu,cuda")),
}


def raw_inputs(task, workdir):
    """What the example reads, and what the model is applied to, of the largest batch."""
    rng, batch = np.random.default_rng(0), max(BATCHES)
    if task == "images":
        inputs = read_inputs(workdir)
        raw = rng.integers(0, 17, (batch, *inputs.image_shape), np.uint8)
        images = raw.astype(np.float32) / np.float32(inputs.peak)
        mean, std = np.float32(inputs.mean), np.float32(inputs.std)
        return raw, ((images - mean) / std,)

    size = read_inputs(workdir).block_size
    raw = rng.integers(0, 250, (batch, size))
    lengths = rng.integers(1, size + 1, batch)
    raw[np.arange(size) >= lengths[:, None]] = -1
    tokens = np.where(raw < 0, 0, raw).astype(np.int32)
    return raw, (tokens,) if task == "language" else (tokens, raw >= 0)


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """The folder of each case, and for each batch size the logits in and out of this process."""
    root, arguments, expected = tmp_path_factory.mktemp("exported"), [], {}
    for name, (task, given) in CASES.items():
        workdir, folder = runs / task, root / name
        with pytest.MonkeyPatch.context() as patch:
            to = ("--to=stablehlo", f"--out={folder}")
            start(patch, program, f"--workdir={workdir}", *to, *given)

        overrides = [flag.removeprefix("--config.") for flag in given if "config" in flag]
        overrides = dict(flag.split("=") for flag in overrides)
        overrides |= {"depth.rtol": 1e-2} if "depth.rtol" in overrides else {}
        model, variables = load_model(workdir, overrides)
        apply = jax.jit(model.apply)

        raw, inputs = raw_inputs(task, workdir)
        logits = apply(variables, *inputs)
        for batch in BATCHES:
            stem = root / f"{name}_{batch}"
            np.save(f"{stem}_in.npy", raw[:batch])
            arguments += [str(folder), f"{stem}_in.npy", f"{stem}_out.npy"]

            # Adaptive steps are chosen for the whole batch: another one has other steps.
            if name == "adaptive":
                logits = apply(variables, *(x[:batch] for x in inputs))
            expected[name, batch] = logits[:batch], f"{stem}_out.npy"

    told = alone(arguments)
    return root, {key: (want, np.load(path)) for key, (want, path) in expected.items()}, told


def alone(arguments):
    """What the examples print in a process without odeformer, flax and diffrax."""
    command = [sys.executable, str(ROOT / "tests/helpers/alone.py"), *arguments]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", CASES)
def test_a_program_gives_the_models_logits_where_there_is_jax_alone(exported, name):
    _, logits, _ = exported
    for batch in BATCHES:
        want, found = logits[name, batch]
        assert found.dtype == np.float32 and found.shape == want.shape
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-6 * np.abs(want).max())


def test_the_example_says_what_the_logits_say(exported):
    _, logits, told = exported
    assert len(told) == len(CASES) * len(BATCHES)
    digits, words = ast.literal_eval(told[2]), ast.literal_eval(told[11])
    assert digits == [str(place) for place in logits["images", 64][0].argmax(-1)]
    assert words == [("bad", "good")[n] for n in logits["sentences", 64][0].argmax(-1)]


def test_padding_changes_no_earlier_logit_of_a_language_model(exported):
    """A causal model needs no mask: what follows a text has no influence on it."""
    root, logits, told = exported
    raw = np.load(root / "language_3_in.npy")
    last = (raw >= 0).sum(axis=1) - 1
    want = logits["language", 3][0][np.arange(3), last].argmax(-1)
    assert ast.literal_eval(told[7]) == want.tolist()


def test_the_manifest_says_what_the_workdir_says(exported, runs):
    root, _, _ = exported
    for name, (task, given) in CASES.items():
        manifest = json.loads((root / name / "manifest.json").read_text())
        assert manifest["data"] == json.loads((runs / task / "inputs.json").read_text())
        held = {path.name for path in (root / name).iterdir()}
        assert held >= {"manifest.json", "program.bin", "run.py"}
        assert ("weights.npz" in held) == ("--weights=beside" in given)

        has_tokenizer = manifest["tokenizer"] is not None
        assert has_tokenizer == (task != "images") == ("tokenizer.json" in held)
        if has_tokenizer:
            stored = (runs / task / "tokenizer.json").read_text()
            assert (root / name / "tokenizer.json").read_text() == stored

        read = export.deserialize(bytearray((root / name / "program.bin").read_bytes()))
        assert manifest["platforms"] == list(read.platforms)
        named = [*manifest["inputs"].values(), *manifest["outputs"].values()]
        avals = (*read.in_avals[-len(manifest["inputs"]) :], *read.out_avals)
        for described, aval in zip(named, avals, strict=True):
            assert described["shape"] == ["batch", *aval.shape[1:]]
            assert described["dtype"] == aval.dtype.name

    adaptive = json.loads((root / "adaptive" / "manifest.json").read_text())
    assert adaptive["platforms"] == ["cpu", "cuda", "tpu"]
    assert (adaptive["depth"]["solver"], adaptive["depth"]["rtol"]) == ("tsit5", 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_weights_of_every_dtype_lie_beside(dtype, tmp_path):
    """Parameters of bfloat16, and a model that computes in float64."""
    is_wide, images = dtype == "float64", np.random.default_rng(0).normal(size=(2, 4, 4, 3))
    np.save(tmp_path / "in.npy", images)
    data = {"task": "images", "peak": 1.0, "mean": [0.0], "std": [1.0]}
    data["classes"] = [str(label) for label in range(10)]

    with jax.enable_x64(is_wide):
        own = "float64" if is_wide else "float32"
        config = ViTConfig(4, 2, **SIZES, dtype=own, depth={"layers": 1})
        model, images = make_model(config), images.astype(np.float32)
        params = jax.jit(model.init)(jax.random.key(0), images)["params"]
        params = jax.tree.map(lambda x: (x + 0.1).astype(dtype), params)
        write_program(tmp_path / "p", config, params, data, platforms=["cpu"], weights="beside")
        want = np.asarray(jax.jit(model.apply)({"params": params}, images))

    alone([str(tmp_path / "p"), str(tmp_path / "in.npy"), str(tmp_path / "out.npy")])
    found = np.load(tmp_path / "out.npy")
    assert found.dtype == want.dtype == (np.float64 if is_wide else np.float32)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-6 * np.abs(want).max())


def traced(config, batch=None):
    """The exported program of a model, of its shapes alone."""
    model, size = make_model(config), 4
    inputs = (
        jnp.ones((1, size, size, 3)) if isinstance(config, ViTConfig) else jnp.ones((1, 4), int)
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
    flat = {
        "/".join(key.key for key in path): np.zeros(leaf.shape, leaf.dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    return export_model(config, flat, platforms=["cpu"], inside=True, batch=batch)


@pytest.mark.parametrize("name", terms.NAMES)
def test_every_term_takes_any_batch_size(name):
    own = {"vocabulary": 8, "block_size": 4}
    names = (name,) if name in ("attention", "mlp") else ("attention", name)
    own |= {} if "attention" in names else {"positions": "learned"}
    for config in (LMConfig(**own, **SIZES), TextConfig(**own, **SIZES), ViTConfig(4, 2, **SIZES)):
        try:
            config = type(config)(
                **{**vars(config), "terms": names, "depth": {"layers": 2, "share": 2}}
            )
        except ValueError:
            continue  # a term that the model does not take
        (logits,) = traced(config).out_avals
        assert not isinstance(logits.shape[0], int)


def test_a_batch_size_may_be_fixed():
    config = ViTConfig(4, 2, **SIZES, depth={"layers": 1, "solver": "rk4"})
    (logits,) = traced(config, batch=5).out_avals
    assert logits.shape == (5, 10)


def test_a_term_that_needs_its_batch_size_as_a_number(tables):
    class Counted(nn.Module):
        @nn.compact
        def __call__(self, x, context=None):
            return x / len(range(x.shape[0]))

    terms.register("counted", terms.Term(make=lambda config: Counted(), flops=lambda *_: 0))
    config = ViTConfig(4, 2, **SIZES, terms=("attention", "counted"), depth={"layers": 1})
    with pytest.raises(BadInput, match=r"cannot be made for every batch size .*as --batch=8"):
        traced(config)
    assert traced(config, batch=8).out_avals[0].shape == (8, 10)


def test_what_does_not_fit_inside_or_a_platform():
    check_inside(2**31 - 1)
    with pytest.raises(
        BadInput, match=r"weights have 2.1 GB, and .* less than 2.1: give --weights"
    ):
        check_inside(2**31)
    check_attention("xla")
    with pytest.raises(BadInput, match="attention='cudnn' .*: give --config.model.attention=xla"):
        check_attention("cudnn")


def test_solvers_have_names_in_the_manifest():
    assert {solvers.name_of(name) for name in solvers.NAMES} == set(solvers.NAMES)


def test_the_documents_show_the_example():
    shown = (ROOT / "docs" / "exporting.md").read_text().split("```")
    assert any(block.partition("\n")[2] == example("images", "inside") for block in shown)
