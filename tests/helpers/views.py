"""What a run's config comes to, without a run: programs as text, batches, files, what is due."""

import functools
import re
import tempfile
import types

import jax
import numpy as np
import pytest
from etils import epath

from odeformer import example_inputs, make_model
from train import loop
from train import run as runs
from train.adapters import abstract_base
from train.checkpoint.initial import check_initial
from train.checkpoint.retention import Retention
from train.checkpoint.saver import Saver
from train.checkpoint.transfer import find_source, plan_initial
from train.data.pipeline import BEGINNING, Position, train_batches
from train.data.sources import load_splits
from train.devices.mesh import device_mesh, on_mesh
from train.divergence import SkipMonitor
from train.gradient import make_gradient
from train.logs.throughput import Throughput
from train.optimizer import make_optimizer
from train.state import abstract_state, expected_state
from train.step import lower_train_step
from train.tasks import make_task
from train.tasks.task import Keys

STEPS = range(1, 7)


@functools.lru_cache(maxsize=4)
def _splits(config):
    return load_splits(config)


def _batch(config):
    return next(train_batches(_splits(config)["train"], config.batch_size, 1, config.seed))


def _task(config):
    return make_task(config, _splits(config)["train"])


def _text(program):
    return re.sub(r" at 0x[0-9a-f]+", "", str(program))  # where Python's functions happen to lie


def _prepared(config, batch):
    task = _task(config)
    keys = Keys(jax.random.key(0), jax.random.split(jax.random.key(1), config.batch_size))
    return jax.make_jaxpr(task.prepare, return_shape=True)(batch, keys, task.constants())


def prepare(config):
    """The program from a training batch to the model's inputs and targets."""
    return _text(_prepared(config, _batch(config))[0])


def gradient(config):
    """The program of the gradient."""
    params = abstract_state(config, _optimizer(config), _mesh(config)).params
    inputs, targets = _prepared(config, _batch(config))[1]
    key = jax.random.key(0)
    with on_mesh(_mesh(config), config.model):
        program = make_gradient(config, _task(config))
        base = abstract_base(config, _mesh(config))
        return _text(jax.make_jaxpr(program)(params, inputs, targets, key, base))


def forward(config):
    """The program of the model in evaluation."""
    model, inputs = make_model(config.model), example_inputs(config.model)
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return _text(jax.make_jaxpr(model.apply)(variables, *inputs))


def step(config):
    """The train step, lowered."""
    return lower_train_step(
        config, _optimizer(config), _task(config), _mesh(config), _batch(config)
    ).as_text()


def optimizer(config):
    """The program of an update of a kernel and a bias."""
    params = dict(kernel=np.zeros(2, "f4"), bias=np.zeros(2, "f4"))
    state = jax.eval_shape(_optimizer(config).init, params)
    return _text(jax.make_jaxpr(_optimizer(config).update)(params, state, params))


def state(config):
    """The arrays of the state, which its checkpoints hold."""
    return str(abstract_state(config, _optimizer(config), _mesh(config)))


def refined(config):
    """The arrays of the state after each step, whose weights may have been refined."""
    return str([expected_state(config, _mesh(config), step).params for step in STEPS])


def initial(config):
    """What becomes of each parameter at the start of a run."""
    check_initial(epath.Path("/nowhere"), config, _splits(config)["train"])
    return "" if config.init.path is None else str(plan_initial(config, find_source(config)))


def batches(config):
    """The sizes of the splits, and the first batches that the loop reads."""
    splits = _splits(config)
    run = types.SimpleNamespace(config=config, splits=splits, mesh=_mesh(config))
    read = runs.Run.batches(run, BEGINNING)
    some = [next(read) for _ in range(2)] + [splits["test"].gather(np.arange(1))]
    read.close()
    sizes = {name: len(split) for name, split in splits.items()}
    return str(sizes) + str([{k: v.tolist() for k, v in batch.items()} for batch in some])


def read(config):
    """What the loop asks of those who read training batches and score a split."""
    asked = []
    run = types.SimpleNamespace(config=config, splits=_splits(config), mesh=_mesh(config))
    run.eval_step, run.eval_params = None, lambda state: None
    with pytest.MonkeyPatch.context() as patch:
        for name in ("train_batches", "score"):
            patch.setattr(runs, name, lambda *args, **kwargs: asked.append((args[2:], kwargs)))
        runs.Run.batches(run, BEGINNING)
        runs.Run.score(run, "validation", None)
    return str(asked)


def due(config):
    """After which steps a run evaluates and saves."""
    with tempfile.TemporaryDirectory() as folder, Saver(epath.Path(folder), config, 1) as saver:
        schedule = runs.Schedule(config, saver)
        return str([schedule.due(step, stop=False) for step in STEPS])


def kept(config):
    """Which of the checkpoints are kept, of which the second has the best loss."""
    with tempfile.TemporaryDirectory() as folder:
        retention = Retention(epath.Path(folder), config.checkpoint)
        for step in STEPS:
            scores = {"val/loss": abs(step - 2.0), "val/accuracy": -abs(step - 1.0)}
            retention.add(step, scores)
        saved = [types.SimpleNamespace(step=step) for step in STEPS]
        return str(retention.should_preserve(saved, context=None))


def logged(config):
    """Which steps' metrics are written."""
    throughput = Throughput(config, _task(config), _mesh(config), 0)
    return str([throughput.is_due(step) for step in STEPS])


def rolled_back(config):
    """After how many skipped batches a run is rolled back, and how often at most."""
    monitor = SkipMonitor(config.guard, lambda *_: None)
    after = [monitor.exceeded(n, {"skipped_in_a_row": n}, wait=True) for n in range(20)]
    nothing = dict.fromkeys(("path", "task", "mesh", "base"))
    run = types.SimpleNamespace(config=config, splits={"train": ()}, **nothing)
    diverged = types.SimpleNamespace(step=9, metrics={"skipped_in_a_row": 1})
    often = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "given_up", lambda *_, **__: StopIteration())
        for shuffle in range(9):
            try:
                often.append(loop._resume_before(run, Position(3, shuffle), diverged))
            except StopIteration:
                often.append(None)
    return f"{after} {often}"


def mesh(config):
    """The mesh of eight devices."""
    return str(device_mesh(config.mesh, jax.devices()[:1] * 8).shape)


def _mesh(config):
    return device_mesh(config.mesh, jax.devices()[:1])


def _optimizer(config):
    return make_optimizer(config.optimizer, config.train_steps, config.model.depth.layers)
