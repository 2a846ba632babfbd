"""Saving and restoring runs. A workdir holds config.json and checkpoints/<step>/."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from odeformer import ViT
from train import config as configs
from train.config import CheckpointConfig, RunConfig
from train.errors import BadInput
from train.optimizer import make_optimizer
from train.state import TrainState, abstract_state


def open_workdir(workdir: str | epath.Path, cfg: ml_collections.ConfigDict) -> epath.Path:
    """Makes the workdir, or takes one that holds the same run, and records the config in it.

    Raises:
      BadInput: the workdir cannot be written, or holds a run with another config.
    """
    path = epath.Path(workdir)
    record = path / "config.json"
    try:
        if record.exists():
            conflicts = configs.resume_conflicts(json.loads(record.read_text()), cfg.to_dict())
            if conflicts:
                raise BadInput(
                    f"{path} holds a run with another config:\n  " + "\n  ".join(conflicts) + "\n"
                    f"Take another --workdir, or delete this one. On resume only "
                    f"{', '.join(configs.CHANGEABLE_ON_RESUME)} may differ."
                )
        path.mkdir(parents=True, exist_ok=True)
        record.write_text(configs.save(cfg))
    except OSError as error:
        raise BadInput(
            f"workdir {path} cannot be written ({error.strerror or error}): take another --workdir"
        ) from error
    return path


def read_config(workdir: str | epath.Path) -> ml_collections.ConfigDict:
    """Returns the config of the run in a workdir.

    Raises:
      BadInput: the workdir holds no run.
    """
    record = epath.Path(workdir) / "config.json"
    if not record.exists():
        raise BadInput(f"{workdir} holds no run (no config.json): give a workdir that train made")
    return configs.load(record.read_text())


class Checkpoints:
    """The checkpoints of one workdir: the newest few, saved in the background."""

    def __init__(self, workdir: str | epath.Path, config: CheckpointConfig | None = None):
        self._path = epath.Path(workdir).resolve() / "checkpoints"
        keep = None if config is None else config.keep
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=config is not None)
        handler = ocp.StandardCheckpointHandler()
        self._manager = ocp.CheckpointManager(self._path, item_handlers=handler, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, state: TrainState, step: int) -> None:
        """Starts saving the state behind `step` steps; a step that is saved already is left."""
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, target: TrainState) -> TrainState | None:
        """Returns the newest state, laid out as the abstract target says; None if there is none.

        Raises:
          BadInput: the state has other parameters than the target; names the first that differs.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        saved = self._manager.item_metadata(step)
        check_fits(saved, target, f"{self._path}/{step}")
        restored: Any = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        return restored


def check_fits(saved: Any, target: TrainState, where: str) -> None:
    """Raises BadInput naming the first leaf whose presence or shape differs."""
    saved = getattr(saved, "tree", saved)
    have = {
        _name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(saved)
    }
    want = {
        _name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(target)
    }
    for name in want | have:
        if have.get(name) != want.get(name):
            raise BadInput(
                f"the checkpoint {where} does not fit the model: {name} is "
                f"{_shape(have.get(name))} in the checkpoint and {_shape(want.get(name))} in the "
                "model; give the config that the run was trained with"
            )


def _name(path: tuple[Any, ...]) -> str:
    """One name for a leaf, whether its containers are dataclasses, dicts or lists."""
    keys = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))) for key in path)
    return "/".join(str(key) for key in keys)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def load_model(
    workdir: str | epath.Path, overrides: Mapping[str, Any] | None = None
) -> tuple[ViT, dict[str, Any]]:
    """Returns a trained model and its weights: the averaged ones where the run keeps them.

    Args:
      workdir: of a run; a local folder or a gs:// address.
      overrides: config keys to change, e.g. {'depth.solver': 'tsit5', 'depth.rtol': 1e-3}.

    Returns:
      (model, variables), for `model.apply(variables, images)`; images standardised as the run's
      data set does (`train.data.sources.load_splits(name)['test'].standardise`).

    Raises:
      BadInput: no run, no checkpoint, or weights that do not fit the config.
    """
    cfg = read_config(workdir)
    with cfg.unlocked():
        cfg.update_from_flattened_dict(dict(overrides or {}))
    given = configs.with_other_steps(cfg.to_dict(), read_config(workdir).to_dict())
    config = configs.from_config_dict(given)
    return ViT(config.model), {"params": load_params(workdir, config)}


def load_params(workdir: str | epath.Path, config: RunConfig) -> Any:
    """Returns the weights to evaluate with, of a run's newest checkpoint, on one device.

    Raises:
      BadInput: no checkpoint, or one that does not fit the config.
    """
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    optimizer = make_optimizer(config.optimizer, config.train_steps)
    path = epath.Path(workdir) / "checkpoints"
    if not path.exists():
        raise BadInput(f"{workdir} holds no checkpoint: train the run first")
    with Checkpoints(workdir) as checkpoints:
        state = checkpoints.restore(abstract_state(config, optimizer, device))
    if state is None:
        raise BadInput(f"{workdir} holds no checkpoint: train the run first")
    return state.eval_params


def count_parameters(params: Any) -> int:
    """Returns the number of parameters in a tree of arrays."""
    return int(sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(params)))
