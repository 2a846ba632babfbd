"""Compiling for TPUs without one: what it refuses, what it reports, and the real thing (tpu)."""

import dataclasses
import functools
import io
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from rich.console import Console

from configs import digits
from tests.helpers.checkout import ROOT
from tests.helpers.programs import start
from train.aot import __main__ as aot
from train.aot import checks, report, topologies
from train.aot.advice import advise
from train.aot.tables import print_report
from train.config.border import from_config_dict
from train.errors import BadInput

DEIT = "--config=configs/imagenet.py:variant=deit_ti"
VIT_L = "--config=configs/imagenet.py:variant=vit_l"
GPT_1B = "--config=configs/lm1b.py:variant=gpt_1b"
GIB = 2**30


@functools.cache
def compile_for(*arguments):
    """The exit code of the program, and the JSON object that it prints."""
    command = [sys.executable, "-m", "train.aot", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout, done.stderr
    began, compiling = done.stderr.splitlines()
    assert began == "importing JAX and the trainer ..."
    assert re.fullmatch(r"compiling the train step for \S+ \.\.\.", compiling)
    return done.returncode, json.loads(done.stdout)


# What needs no compiler.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--topology is missing"),
        (["--topology=v5e:3x3"], "there is no v5e:3x3; take v5e:1x1, .*v5e:16x16$"),
        (["--topology=v5e:32x32"], "there is no v5e:32x32"),
        (["--topology=v5e"], "there is no v5e; take v5e:1x1"),
        (["--topology=v4:4x4"], "there is no v4:4x4; take v4:2x2x1, .* up to 4,096 chips"),
        (["--topology=v9:4x4"], "unknown TPU 'v9'; accepted: v4, v5e, v5p, v6e"),
        (["--topology=v5e:4x4", "--num_slices=0"], "--num_slices is 1 or more; 0 was given"),
    ],
)
def test_refusals(monkeypatch, arguments, message):
    with pytest.raises(BadInput, match=message):
        start(monkeypatch, aot, "--config=configs/digits.py", *arguments)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(BadInput, match=r"pip install 'odeformer-jax\[tpu\]'"):
        start(monkeypatch, aot, "--config=configs/digits.py", "--topology=v5e:4x4")


@pytest.mark.parametrize("name", ["v4:2x2x1", "v4:8x8x16", "v5p:16x16x24", "v5e:16x16", "v6e:1x1"])
def test_slices_that_exist(name):
    topologies.find(name)


@pytest.mark.parametrize("name", ["v4:16x16x24", "v5p:8x4x4", "v5p:4x4x6", "v5e:4x4x4", "v6e:0x4"])
def test_slices_that_do_not(name):
    with pytest.raises(BadInput, match="there is no"):
        topologies.find(name)


@dataclasses.dataclass(frozen=True)
class Refused:
    """A program that XLA does not make."""

    message: str

    def compile(self):
        raise jax.errors.JaxRuntimeError(self.message)


@pytest.mark.parametrize(
    ("message", "total"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (18.00G) exceeds available HBM (15.75G).",
            18 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 16.50G of 15.75G hbm. Exceeded hbm capacity by 768.00M.",
            33 * GIB // 2,
        ),
    ],
)
def test_a_refusal_says_by_how_much(message, total):
    assert report._compile(Refused(message), 16 * GIB) == (None, total, 63 * GIB // 4)


def test_a_failure_is_no_refusal():
    with pytest.raises(jax.errors.JaxRuntimeError, match="vmem"):
        report._compile(Refused("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem."), GIB)


def advice(shape=(4, 1, 1), **changes):
    """The settings that are advised for the digits model on a mesh, by name."""
    cfg = digits.get_config()
    for key, value in changes.items():
        group, _, name = key.partition("_")
        cfg[group][name] = value
    types = (AxisType.Auto,) * 3
    mesh = Mesh(np.resize(jax.devices(), shape), ("data", "fsdp", "tensor"), axis_types=types)
    config = from_config_dict(cfg.to_dict())
    return {line.partition("=")[0] for line in advise(config, mesh, num_slices=1)}


def test_advice_leaves_out_what_is_at_its_limit():
    everything = {"mesh.fsdp", "mesh.tensor", "parallel.accumulate", "batch_size", "model.dtype"}
    assert advice() == everything
    assert advice(model_dtype="bfloat16") == everything - {"model.dtype"}
    assert advice(shape=(1, 4, 1)) == everything - {"mesh.fsdp"}
    batch = {"parallel.accumulate", "batch_size"}
    assert advice(parallel_accumulate=digits.get_config().batch_size // 4) == everything - batch
    assert advice(depth_adjoint="store") == everything | {"depth.adjoint"}
    assert advice(model_fused=True) == everything - {"mesh.tensor"}
    by_shard = everything - {"mesh.fsdp", "mesh.tensor"} | {"parallel.mode"}
    assert advice(parallel_mode="shard_map") == by_shard


def make_report(**changes):
    whole = report.Report(
        config="configs/x.py",
        topology="v5e:4x4",
        num_slices=2,
        chips=32,
        mesh={"data": 32, "fsdp": 1, "tensor": 1},
        batch_size=64,
        fits=True,
        parameters=1_000_000,
        parameter_bytes=4_000_000,
        optimizer_bytes=8_000_000,
        ema_bytes=None,
        temporary_bytes=3 * GIB,
        total_bytes=4 * GIB,
        available_bytes=16 * GIB,
        model_flops=64 * 10**12,
        recomputed_flops=None,
        collectives=[
            {"kind": "all-reduce", "place": "step", "count": 12, "bytes": GIB, "known": False}
        ],
        collective_bytes=GIB,
        advice=["batch_size=32 is a smaller batch"],
        compile_secs=2.5,
    )
    return dataclasses.replace(whole, **changes)


def printed(report):
    console = Console(file=io.StringIO(), width=120)
    print_report(report, console)
    return console.file.getvalue()


def test_the_printed_report():
    text = printed(make_report())
    for part in ("2 slices of v5e:4x4: 32 chips", "3.81 MiB", "4.00 GiB", "16.00 GiB", "It fits"):
        assert part in text
    assert "64.0, 2.000 per chip" in text
    assert "12 *" in text and "taken as 1" in text
    assert "moving average" not in text and "smaller batch" not in text


def test_the_printed_refusal():
    text = printed(make_report(fits=False, total_bytes=17 * GIB, collectives=None))
    assert "It does not fit, by 1.00 GiB" in text
    assert "batch_size=32 is a smaller batch" in text
    assert "all-reduce" not in text


# The real compiler.


@pytest.mark.tpu
@pytest.mark.parametrize(
    "arguments",
    [
        (DEIT, "--topology=v5e:4x4"),
        (VIT_L, "--topology=v5e:4x4"),
        (GPT_1B, "--topology=v5e:16x16"),
        (DEIT, "--topology=v4:4x4x4"),
        (DEIT, "--topology=v6e:16x16"),
    ],
    ids=lambda arguments: " ".join(arguments).replace("--", ""),
)
def test_it_fits(arguments):
    code, report = compile_for(*arguments)
    assert code == 0
    assert report["fits"] and report["advice"] == []
    parts = (report["parameter_bytes"], report["optimizer_bytes"], report["ema_bytes"] or 0)
    assert sum(parts) + report["temporary_bytes"] == report["total_bytes"]
    assert report["total_bytes"] < report["available_bytes"]
    assert report["optimizer_bytes"] == pytest.approx(2 * report["parameter_bytes"], rel=1e-3)
    shards = report["mesh"]["fsdp"] * report["mesh"]["tensor"]
    whole = 4 * report["parameters"]
    assert whole / shards <= report["parameter_bytes"] <= 1.1 * whole / shards
    assert report["chips"] == np.prod(list(report["mesh"].values()))
    assert report["collective_bytes"] == sum(one["bytes"] for one in report["collectives"])
    assert all(one["known"] for one in report["collectives"])


@pytest.mark.tpu
def test_nothing_is_communicated_inside_the_solver():
    """Of a model that is not split along tensor: once a group, whatever the steps and stages."""
    for arguments in ((DEIT, "--topology=v5e:4x4"), (VIT_L, "--topology=v5e:4x4")):
        _, report = compile_for(*arguments)
        assert "solver's loop" not in {one["place"] for one in report["collectives"]}


@pytest.mark.tpu
def test_two_slices_meet_over_the_network():
    """Each chip sends its part of the gradient once, and everything else stays in its slice."""
    code, report = compile_for(DEIT, "--topology=v5e:8x8", "--num_slices=2")
    assert code == 0
    assert report["chips"] == 128
    sent = [one for one in report["collectives"] if one["kind"].endswith("between slices")]
    assert {one["kind"] for one in sent} >= {"all-reduce between slices"}
    gradient = [one["bytes"] for one in sent if one["kind"].startswith("all-reduce")]
    assert sum(gradient) < 2 * report["parameter_bytes"] / 64 + 2**20


@pytest.mark.tpu
def test_a_batch_that_is_too_large_does_not_fit():
    code, report = compile_for(DEIT, "--topology=v5e:4x4", "--config.batch_size=131072")
    assert code == 1
    assert not report["fits"] and report["collectives"] is None
    assert report["total_bytes"] > report["available_bytes"]
    assert {line.partition("=")[0] for line in report["advice"]} >= {
        "parallel.accumulate",
        "batch_size",
    }


@pytest.mark.tpu
@pytest.mark.parametrize("mesh", ["data", "fsdp"])
def test_weak_scaling(mesh):
    """With 64 examples a chip, 256 chips tell one another what 16 do."""
    model = [f"--config.mesh.fsdp={8 if mesh == 'fsdp' else 1}"]
    few, many = (
        compile_for(DEIT, f"--topology={slice_}", f"--config.batch_size={64 * chips}", *model)[1]
        for slice_, chips in (("v5e:4x4", 16), ("v5e:16x16", 256))
    )
    assert many["collective_bytes"] == pytest.approx(few["collective_bytes"], rel=0.1)
