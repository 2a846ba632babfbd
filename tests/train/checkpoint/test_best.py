"""The best checkpoint of a run, wherever a step is named."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from absl import flags
from etils import epath

from tests.helpers.programs import start
from tests.helpers.tiny import make_tiny
from train import command_line, evaluate
from train.checkpoint import load_model
from train.checkpoint.saver import Saver
from train.checkpoint.workdir import record_run
from train.config.border import from_config_dict
from train.data.pipeline import Position
from train.devices.mesh import device_mesh
from train.errors import BadInput
from train.optimizer import make_optimizer
from train.state import init_state

LOSSES = {2: 2.25, 4: 1.25, 6: 3.25}  # of the validation split


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a checkpoint of other weights at each step: saved, not trained."""
    cfg = make_tiny()
    cfg.checkpoint.update(every_steps=2, keep=3)
    config, path = from_config_dict(cfg), epath.Path(tmp_path_factory.mktemp("best") / "run")
    record_run(path, config, None)
    optimizer = make_optimizer(config.optimizer, config.train_steps)
    state = init_state(config, optimizer, device_mesh(config.mesh))

    with Saver(path, config, 1000) as saver:
        for step, loss in LOSSES.items():
            scaled = jax.tree.map(lambda leaf, step=step: step * leaf, state.ema)
            at_step = dataclasses.replace(state, ema=scaled)
            saver.save(at_step, Position(step, 0), {"val/loss": loss}, wait=True)
    return path


def weights(path, step):
    return jax.tree.leaves(load_model(path, step=step)[1])


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_best_is_that_of_the_least_loss(run):
    best = weights(run, "best")
    assert equal(best, weights(run, 4)) and not equal(best, weights(run, None))


def test_evaluate_takes_it(run, monkeypatch):
    given = []
    monkeypatch.setattr(evaluate, "score_depths", lambda params, *_: given.append(params) or [{}])
    monkeypatch.setattr(evaluate, "_print_comparison", lambda *_: None)
    start(monkeypatch, evaluate, f"--workdir={run}", "--step=best")
    assert equal(jax.tree.leaves(given[0]), weights(run, 4))


def test_a_damaged_best_is_not_replaced_by_another(run, tmp_path):
    path = epath.Path(shutil.copytree(run, tmp_path / "run"))
    (path / "checkpoints" / "4" / "state").rmtree()
    with pytest.raises(BadInput, match="the checkpoint of step 4 in .* is damaged"):
        load_model(path, step="best")


def test_a_run_without_a_best_says_what_to_do(run):
    message = r"keeps no best checkpoint \(config.checkpoint.best=None\): leave the step out"
    with pytest.raises(BadInput, match=message):
        load_model(run, {"checkpoint.best": None}, step="best")
    with pytest.raises(BadInput, match="none was saved at a step at which val/accuracy was eval"):
        load_model(run, {"checkpoint.best": "val/accuracy"}, step="best")


def test_a_step_that_was_not_saved_is_refused_with_those_that_were(run):
    message = r"holds no checkpoint of step 7: take a saved step \(2, 4, 6\)"
    with pytest.raises(BadInput, match=message):
        load_model(run, step=7)


@pytest.mark.parametrize(
    ("text", "step"), [("best", "best"), ("12", 12), ("-1", None), ("x", None)]
)
def test_a_step_is_a_number_or_best(text, step):
    values = flags.FlagValues()
    command_line.define_step(values)
    if step is None:
        with pytest.raises(BadInput, match="a step is a whole number, or the word 'best'"):
            command_line.parse(["", f"--step={text}"], values)
    else:
        command_line.parse(["", f"--step={text}"], values)
        assert values.step == step
