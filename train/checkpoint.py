"""Saving and restoring runs.

A workdir holds config.json, checkpoints/<step>/ and, of a run on text, tokenizer.json.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from odeformer import make_model
from odeformer.errors import unknown
from train import config as configs
from train.config import CheckpointConfig, MeshConfig, RunConfig
from train.data.text.tokenizer import Tokenizer, from_json
from train.errors import BadInput
from train.mesh import device_mesh
from train.optimizer import make_optimizer
from train.state import TrainState, abstract_state


def check_workdir(workdir: str | epath.Path, cfg: ml_collections.ConfigDict) -> epath.Path:
    """Returns the workdir's path, having made sure that it holds this run or none; writes nothing.

    A workdir without a checkpoint holds no run yet, whatever config was recorded.

    Raises:
      BadInput: the workdir cannot be read, or holds a run with another config or more steps.
    """
    with _reported(workdir):
        path = epath.Path(workdir)
        done = _newest_step(path)
        if done is not None:
            _check_same_run(path, cfg, done)
        return path


def record_run(path: epath.Path, cfg: ml_collections.ConfigDict, data: Any) -> None:
    """Makes the workdir where it is missing, and records the run in it.

    Args:
      path: of the workdir.
      cfg: the run's config.
      data: one of the run's splits, whose tokeniser, if it has one, is recorded too.

    Raises:
      BadInput: the workdir cannot be written.
    """
    tokenizer: Tokenizer | None = getattr(data, "tokenizer", None)
    with _reported(path):
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(configs.save(cfg))
        if tokenizer is not None:
            (path / "tokenizer.json").write_text(tokenizer.to_json())


@contextlib.contextmanager
def _reported(workdir: str | epath.Path) -> Iterator[None]:
    """Reports as bad input what keeps the workdir from being used."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"workdir {workdir} cannot be written ({error.strerror or error}): take another "
            "--workdir"
        ) from error
    except ImportError as error:
        raise BadInput(
            f"workdir {workdir} needs a package that is not there ({error}): for gs:// addresses "
            "pip install 'etils[epath-gcs]'"
        ) from error


def _newest_step(path: epath.Path) -> int | None:
    """The step of a workdir's newest checkpoint; None where it holds none."""
    folder = path / "checkpoints"
    steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.exists() else []
    return max(steps, default=None)


def _check_same_run(path: epath.Path, cfg: ml_collections.ConfigDict, done: int) -> None:
    conflicts = configs.resume_conflicts(read_config(path).to_dict(), cfg.to_dict())
    if conflicts:
        raise BadInput(
            f"{path} holds a run with another config:\n  " + "\n  ".join(conflicts) + "\n"
            f"Take another --workdir, or delete this one. On resume only "
            f"{', '.join(configs.CHANGEABLE_ON_RESUME)} may differ."
        )
    train_steps: Any = cfg.train_steps
    if train_steps < done:
        raise BadInput(
            f"{path} holds a run of {done} steps, config.train_steps={train_steps} was given: give "
            "as many or more, or take another --workdir"
        )


def read_config(workdir: str | epath.Path) -> ml_collections.ConfigDict:
    """Returns the config of the run in a workdir.

    Raises:
      BadInput: the workdir holds no run, or its config cannot be read.
    """
    record = epath.Path(workdir) / "config.json"
    if not record.exists():
        raise BadInput(f"{workdir} holds no run (no config.json): give a workdir that train made")
    try:
        return configs.load(record.read_text())
    except (ValueError, AttributeError, TypeError) as error:
        raise BadInput(
            f"{record} is not the config of a run ({error}): restore it, or delete the workdir"
        ) from error


def read_tokenizer(workdir: str | epath.Path) -> Tokenizer | None:
    """Returns the tokeniser of the run in a workdir; None where it has none, or no checkpoint yet.

    Raises:
      BadInput: the run is one on text, and its tokeniser is missing or cannot be read.
    """
    path = epath.Path(workdir)
    record = path / "tokenizer.json"
    if _newest_step(path) is None or read_config(path).task == "images":
        return None
    if not record.exists():
        raise BadInput(f"{record} is missing, without which no text can be read: restore it")
    try:
        return from_json(record.read_text())
    except ValueError as error:
        raise BadInput(f"{record} is not the tokeniser of a run ({error}): restore it") from error


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
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns a trained model and its weights: the averaged ones where the run keeps them.

    Args:
      workdir: of a run; a local folder or a gs:// address.
      overrides: config keys to change, e.g. {'depth.solver': 'tsit5', 'depth.rtol': 1e-3}; a
        tolerance replaces the run's fixed steps, and the reverse.

    Returns:
      (model, variables), for `model.apply(variables, images)`, images standardised as the run's
      data set does (`train.data.sources.load_splits(config)['test'].standardise`); or for
      `model.apply(variables, tokens)`, tokens of the run's tokeniser (`read_tokenizer(workdir)`).

    Raises:
      BadInput: no run, no checkpoint, a key or a value that the config refuses, or weights that do
        not fit it.
    """
    config = evaluation_config(workdir, overrides or {})
    return make_model(config.model), {"params": load_params(workdir, config)}


def evaluation_config(workdir: str | epath.Path, overrides: Mapping[str, Any]) -> RunConfig:
    """Returns the config of a run to evaluate under, with the overrides {'group.key': value}.

    Raises:
      BadInput: no run, or a key or a value that the config refuses.
    """
    cfg = read_config(workdir)
    known = configs.flatten(cfg.to_dict())
    for key in overrides:
        if key not in known:
            raise BadInput(str(unknown("config key", key, sorted(known))))
    try:
        cfg.update_from_flattened_dict(dict(overrides))
    except (TypeError, ValueError) as error:
        raise BadInput(f"a value does not fit the config: {error}") from error
    return configs.from_config_dict(configs.for_evaluation(cfg.to_dict(), set(overrides)))


def load_params(
    workdir: str | epath.Path, config: RunConfig, mesh: jax.sharding.Mesh | None = None
) -> Any:
    """Returns the weights to evaluate with, of a run's newest checkpoint.

    Args:
      workdir: of the run.
      config: of a model that the weights fit.
      mesh: the devices that they come to lie on; by default one device.

    Returns:
      The averaged weights where the run keeps them, else the newest: the tree of
      `model.init(...)['params']`.

    Raises:
      BadInput: no checkpoint, or one that does not fit the config.
    """
    if mesh is None:
        mesh = device_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.local_devices()[:1])
    optimizer = make_optimizer(config.optimizer, config.train_steps)
    path = epath.Path(workdir) / "checkpoints"
    if not path.exists():
        raise BadInput(f"{workdir} holds no checkpoint: train the run first")
    with Checkpoints(workdir) as checkpoints:
        state = checkpoints.restore(abstract_state(config, optimizer, mesh))
    if state is None:
        raise BadInput(f"{workdir} holds no checkpoint: train the run first")
    return state.eval_params


def count_parameters(params: Any) -> int:
    """Returns the number of parameters in a tree of arrays."""
    return int(sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(params)))
