"""Runs of a reversible pair: its metrics, its warning, resuming, other solvers in evaluation."""

import dataclasses

import jax
import numpy as np
import pytest

from odeformer import example_inputs, make_model
from tests.helpers.tiny import make_tiny
from train.checkpoint.restore import evaluation_config
from train.config.border import from_config_dict
from train.config.stored import for_evaluation
from train.data.sources import load_splits
from train.devices.mesh import device_mesh
from train.errors import Stopped
from train.evaluate import depths
from train.logs.metrics import read_metrics
from train.loop import train
from train.scores import make_recovery
from train.tasks import make_task


def make_reversible(**depth):
    cfg = make_tiny()
    cfg.depth.update(solver="midpoint", reversible=0.99, adjoint="reversible", **depth)
    return cfg


def test_one_batch_is_recovered_or_warned_of(capsys):
    config = from_config_dict(make_reversible(layers=2, share=2))
    splits, mesh = load_splits(config), device_mesh(config.mesh)
    data = splits["validation"]
    task = make_task(config, splits["train"])
    model, inputs = make_model(config.model), example_inputs(config.model)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.2 * rng.standard_normal(x.shape, "f4"), shapes)
    recover = make_recovery(config.model, task, mesh)
    assert 0 < recover(params, data, 8)["reversible_error"] < 1e-4
    assert not capsys.readouterr().err

    # So steep a field that the steps back part from those forth.
    steep = jax.tree.map(lambda x: 100 * x, params)
    assert not recover(steep, data, 8)["reversible_error"] < 1e-3
    assert "config.depth.adjoint='reversible' are not exact either" in capsys.readouterr().err

    plain = dataclasses.replace(config.model.depth, reversible=None, adjoint="checkpoint")
    plain = dataclasses.replace(config.model, depth=plain)
    assert make_recovery(plain, task, mesh)(params, data, 8) == {}


def test_evaluation_of_a_pair():
    """It is evaluated as a pair, unless tolerances, which a pair cannot have, are asked for."""
    config = from_config_dict(make_reversible())
    depth = for_evaluation(config, {"depth.solver": "rk4"}).model.depth
    assert (depth.reversible, depth.adjoint) == (0.99, "checkpoint")
    adaptive = for_evaluation(config, {"depth.solver": "tsit5", "depth.rtol": 1e-3}).model.depth
    assert (adaptive.reversible, adaptive.rtol) == (None, 1e-3)
    rows = depths(config.model.depth, ["rk4", "tsit5"])
    assert [row.reversible for row in rows] == [0.99, 0.99, None]


@pytest.mark.slow
def test_a_run_logs_its_pair_and_resumes_bit_for_bit(tmp_path, monkeypatch):
    cfg = make_reversible()
    whole = train(cfg, tmp_path / "whole")
    lines = read_metrics(tmp_path / "whole")
    assert 0 < lines[0]["train/reversible_gap"] < 1
    evaluated = [line for line in lines if "val/loss" in line]
    assert len(evaluated) == 2
    for line in evaluated:
        assert 0 < line["val/reversible_error"] < 1e-3 and line["val/reversible_gap"] > 0
    assert whole["test/reversible_gap"] > 0
    assert evaluation_config(tmp_path / "whole", {}).model.depth.reversible == 0.99

    calls = []
    with monkeypatch.context() as patch:
        stops = lambda received: calls.append(received) or len(calls) > 3
        patch.setattr("train.run.AnyProcess", lambda: stops)
        with pytest.raises(Stopped):
            train(cfg, tmp_path / "parts")
    assert train(cfg, tmp_path / "parts") == whole
