"""Runs: what they write, that they resume bit for bit, what they refuse."""

import json

import jax
import numpy as np
import pytest

from tests.helpers.programs import interrupt_at_second_score, timeless
from tests.helpers.tiny import make_tiny
from train.checkpoint.metadata import read_metadata
from train.checkpoint.restore import evaluation_config
from train.checkpoint.weights import load_model
from train.checkpoint.workdir import saved_steps
from train.config.border import from_config_dict
from train.data.sources import load_splits
from train.errors import BadInput
from train.logs.metrics import read_metrics, read_scores
from train.loop import train

SOLVER = "heun"  # whose program is compiled in half the time of RK4's


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run, trained to its end: its config and workdir."""
    cfg = make_tiny()
    cfg.depth.solver = SOLVER
    workdir = tmp_path_factory.mktemp("run")
    train(cfg, workdir)
    return cfg, workdir


def test_what_a_run_writes(finished):
    _, workdir = finished
    lines = read_metrics(workdir)
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "val/loss" in line] == [3, 6]
    assert {"test/loss", "test/accuracy", "test/nfe"} <= set(lines[-1])
    first = lines[0]
    assert first["train/nfe"] == 8 and first["train/failed_solves"] == 0
    assert first["train/learning_rate"] == 0.0 and lines[1]["train/learning_rate"] > 0
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["3", "6"]
    assert list((workdir / "events").iterdir())
    assert json.loads((workdir / "config.json").read_text())["seed"] == 0
    scores = read_scores(workdir)
    assert scores["correct"].shape == (360,)
    assert scores["correct"].mean() == pytest.approx(lines[-1]["test/accuracy"], abs=1e-6)


def test_loaded_model_scores_as_the_run_said(finished):
    cfg, workdir = finished
    model, variables = load_model(workdir)
    splits, lines = load_splits(from_config_dict(cfg)), read_metrics(workdir)
    losses = {}
    for name, split in (("val", "validation"), ("test", "test")):
        data = splits[split]
        logits = jax.jit(model.apply)(variables, data.standardise(data.to_unit(data.images)))
        log = np.asarray(jax.nn.log_softmax(logits), np.float64)
        losses[name] = -log[np.arange(len(log)), data.labels].mean()
        accuracy = (log.argmax(-1) == data.labels).mean()

        last = [line for line in lines if f"{name}/loss" in line][-1]
        assert last[f"{name}/loss"] == pytest.approx(losses[name], rel=1e-5)
        assert last[f"{name}/accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert abs(losses["val"] - losses["test"]) > 1e-3  # else one could stand for the other

    other, _ = load_model(workdir, {"depth.solver": "tsit5", "depth.rtol": 1e-3})
    assert other.config.depth.rtol == 1e-3


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(finished, tmp_path):
    """Bit for bit: every array of its last checkpoint, its metrics and its scores."""
    cfg, whole = finished
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.run.score", interrupt_at_second_score())
        with pytest.raises(KeyboardInterrupt):
            train(cfg, tmp_path)
    assert saved_steps(tmp_path) == [3]
    train(cfg, tmp_path)

    assert saved_steps(tmp_path) == saved_steps(whole) == [3, 6]
    was, now = (read_metadata(workdir, 6) for workdir in (whole, tmp_path))
    assert now.leaves == was.leaves and now.position == was.position
    assert list(map(timeless, read_metrics(tmp_path))) == list(map(timeless, read_metrics(whole)))
    expected, found = read_scores(whole), read_scores(tmp_path)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_a_finished_run_is_not_trained_again(finished):
    cfg, workdir = finished
    before = read_metrics(workdir)
    train(cfg, workdir)
    assert read_metrics(workdir) == before


def test_another_config_is_refused(finished):
    cfg, workdir = finished
    other = cfg.copy_and_resolve_references()
    other.optimizer.learning_rate = 1.0
    with pytest.raises(BadInput, match="optimizer.learning_rate: 0.003 in the workdir, 1.0 given"):
        train(other, workdir)


def test_a_checkpoint_that_does_not_fit_names_the_first_parameter(finished):
    _, workdir = finished
    with pytest.raises(BadInput, match=r"params/.* is float32 \[.*16\] in the .* float32 \[.*32\]"):
        load_model(workdir, {"model.width": 32})


def test_fewer_steps_than_were_done_are_refused(finished):
    cfg, workdir = finished
    fewer = cfg.copy_and_resolve_references()
    fewer.train_steps = 5
    before = (workdir / "config.json").read_text()
    with pytest.raises(BadInput, match="holds a run of 6 steps, config.train_steps=5 was given"):
        train(fewer, workdir)
    assert (workdir / "config.json").read_text() == before


def test_a_start_that_was_refused_does_not_bind_the_workdir(tiny, tmp_path):
    tiny.batch_size = 2000
    with pytest.raises(BadInput, match="larger than the training split"):
        train(tiny, tmp_path)
    tiny.batch_size, tiny.depth.solver = 32, SOLVER
    assert train(tiny, tmp_path)["step"] == 6
    (tmp_path / "config.json").unlink()
    with pytest.raises(BadInput, match="no config.json"):
        train(tiny, tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="is not the config of a run"):
        load_model(tmp_path)


def test_models_are_loaded_under_other_steps(finished):
    _, workdir = finished
    config = evaluation_config(workdir, {"depth.rtol": 1e-2, "depth.solver": "bosh3"})
    assert (config.model.depth.rtol, config.model.depth.steps) == (1e-2, None)
    for overrides, message in (
        ({"depth.solvr": "rk4"}, "Did you mean 'depth.solver'"),
        ({"depth.steps": "many"}, "config.depth.steps takes int or None; 'many' was given"),
    ):
        with pytest.raises(BadInput, match=message):
            load_model(workdir, overrides)


def test_workdirs_that_cannot_be_used(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be read and written"):
        train(tiny, tmp_path / "file" / "run")
    with pytest.raises(BadInput, match="file is a file: give a folder as --workdir"):
        train(tiny, tmp_path / "file")
    with pytest.raises(BadInput, match="holds no run"):
        load_model(tmp_path)


def test_data_that_does_not_fit_the_model(tiny, tmp_path):
    tiny.model.classes = 7
    with pytest.raises(
        BadInput, match="number of classes of data set 'digits' is 10, the model's is 7"
    ):
        train(tiny, tmp_path)
    tiny.model.update(classes=10, channels=3)
    with pytest.raises(BadInput, match="image shape"):
        train(tiny, tmp_path)
