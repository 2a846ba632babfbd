"""Runs whose weights others adapt, saved without being trained."""

import jax
from etils import epath

from tests.helpers.trees import noisy
from train.checkpoint.saver import Saver
from train.checkpoint.workdir import record_run
from train.data.pipeline import Position
from train.data.sources import load_splits
from train.devices.mesh import device_mesh
from train.optimizer import make_optimizer
from train.state import init_state


def save_base(config, workdir):
    """Saves the first state of a run, with weights none of which are zero; makes its workdir."""
    path, data = epath.Path(workdir), load_splits(config)["train"]
    record_run(path, config, data)
    mesh = device_mesh(config.mesh, jax.devices()[:1])
    state = init_state(config, make_optimizer(config.optimizer, config.train_steps), mesh)
    ema = None if state.ema is None else noisy(state.ema)
    state = state.replace(params=noisy(state.params), ema=ema)
    with Saver(path, config, len(data)) as saver:
        saver.save(state, Position(1, 0), {}, wait=True)
