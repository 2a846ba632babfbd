"""Runs that were saved without being trained."""

from etils import epath

from train.checkpoint.saver import Saver
from train.checkpoint.workdir import record_run
from train.config.border import from_config_dict
from train.data.pipeline import Position
from train.data.sources import load_splits
from train.devices.mesh import device_mesh
from train.optimizer import make_optimizer
from train.state import init_state


def save(cfg, workdir, change=lambda state: state, scores=({},)):
    """Saves the first state of a run as if it had been trained.

    Args:
      cfg: of the run.
      workdir: of the run.
      change: state -> the state to save.
      scores: of each step that is saved, from 1 on; each state is the changed one before it.
    """
    config, path = from_config_dict(cfg), epath.Path(workdir)
    data = load_splits(config)["train"]
    record_run(path, config, data)
    mesh = device_mesh(config.mesh)
    state = init_state(config, make_optimizer(config.optimizer, config.train_steps), mesh)
    with Saver(path, config, len(data)) as saver:
        for step, of_step in enumerate(scores, 1):
            state = change(state)
            saver.save(state, Position(step, 0), of_step, wait=True)
