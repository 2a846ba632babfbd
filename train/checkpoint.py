"""What a checkpoint is, and how one is read: verified, or not at all.

checkpoints/<step>/state/ is orbax's, and holds the arrays; checkpoints/<step>/record/record.json
says what they must be.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from etils import epath

from odeformer import make_model
from odeformer.errors import unknown
from train import config as configs
from train.checksums import checksums, leaf_name
from train.config import MeshConfig, RunConfig
from train.data.pipeline import Position
from train.errors import BadInput, warn
from train.mesh import device_mesh
from train.optimizer import make_optimizer
from train.processes import is_first, on_all
from train.state import TrainState, abstract_state
from train.stored import read_arrays
from train.workdir import checkpoint_folder, read_config, saved_steps, unfinished_saves

STATE, RECORD, RECORD_FILE = "state", "record", "record.json"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "diffrax", "orbax-checkpoint", "grain", "numpy")


class Damaged(Exception):
    """A checkpoint that is not what was saved; the text says in what."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What an array of the state must be."""

    shape: tuple[int, ...]
    dtype: str
    checksum: str  # of `checksums`: the same on every mesh


@dataclasses.dataclass(frozen=True)
class Record:
    """What a checkpoint holds beside the arrays of the state.

    Random keys and the data of every process are functions of it: of the seed, which the config
    holds, of the state's step, and of the position.
    """

    position: Position  # in the data
    examples: int  # of the training split
    config: dict[str, Any]  # of the run
    versions: dict[str, str]  # of Python and of the packages
    metrics: dict[str, float]  # of the validation split, where it was scored behind this step
    leaves: dict[str, Leaf]  # by name
    tokenizer: str | None = None  # `tokenizer_digest` of the workdir

    def to_json(self) -> dict[str, Any]:
        """Returns the record as JSON values, with a digest of all of them."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        return values | {"digest": _digest(values)}


def make_record(
    state: TrainState,
    position: Position,
    examples: int,
    config: Mapping[str, Any],
    metrics: Mapping[str, float],
    tokenizer: str | None = None,
) -> Record:
    """Returns the record of a state, whose checksums are taken here.

    Args:
      state: to be saved.
      position: of the run in its data.
      examples: of the training split.
      config: of the run, as a nested dict.
      metrics: of the validation split; none where it was not scored behind this step.
      tokenizer: `tokenizer_digest` of the workdir.
    """
    found = checksums(state)
    leaves = {
        leaf_name(path): Leaf(tuple(leaf.shape), str(leaf.dtype), found[leaf_name(path)])
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    return Record(position, examples, dict(config), _versions(), dict(metrics), leaves, tokenizer)


def tokenizer_digest(workdir: str | epath.Path) -> str | None:
    """Returns the SHA-256 of a workdir's tokenizer.json; None where there is none."""
    path = epath.Path(workdir) / "tokenizer.json"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def read_record(workdir: str | epath.Path, step: int) -> Record:
    """Returns the record of a checkpoint.

    Raises:
      Damaged: it is missing, or not what was saved.
    """
    path = checkpoint_folder(workdir) / str(step) / RECORD / RECORD_FILE
    try:
        values = json.loads(path.read_text())
        digest = values.pop("digest")
    except FileNotFoundError as error:
        raise Damaged(f"its {RECORD_FILE} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"its {RECORD_FILE} cannot be read: {_line(error)}") from error
    if digest != _digest(values):
        raise Damaged(f"its {RECORD_FILE} is not what was saved")
    leaves = {
        name: Leaf(tuple(leaf["shape"]), leaf["dtype"], leaf["checksum"])
        for name, leaf in values.pop("leaves").items()
    }
    return Record(**values | {"position": Position(**values["position"]), "leaves": leaves})


def restore_step(
    workdir: str | epath.Path, step: int, target: TrainState
) -> tuple[TrainState, Record]:
    """Returns a checkpoint's state, verified and laid out as the abstract target says.

    Raises:
      Damaged: it is not what was saved.
      BadInput: it has other arrays than the target; names the first that differs.
    """
    record = _on_all(lambda: read_record(workdir, step))
    folder = checkpoint_folder(workdir) / str(step)
    check_fits(record, target, str(folder))
    state = _on_all(lambda: _read_arrays(folder / STATE, target))
    found = checksums(state)
    wrong = [name for name, leaf in record.leaves.items() if found[name] != leaf.checksum]
    if wrong:
        raise Damaged(f"{len(wrong)} of its arrays are not what was saved, {wrong[0]} is the first")
    return state, record


def restore_newest(
    workdir: str | epath.Path, target: TrainState, before: int | None = None
) -> tuple[TrainState, Record] | None:
    """Returns the newest sound state, laid out as the abstract target says; None if there is none.

    What is damaged or unfinished is reported by name, and left as it is.

    Args:
      workdir: of the run.
      target: the state's shapes, dtypes and shardings.
      before: a step that the checkpoint must lie before; None for any.

    Raises:
      BadInput: there are checkpoints, none of them sound; or a state that does not fit the target.
    """
    folder = checkpoint_folder(workdir)
    damaged = {}
    for name in unfinished_saves(workdir):
        _report(f"{folder / name} is unfinished: its save was cut off, and it is left out")
    for step in reversed(saved_steps(workdir)):
        if before is not None and step >= before:
            continue
        try:
            return restore_step(workdir, step, target)
        except Damaged as error:
            damaged[step] = str(error)
            _report(f"{folder / str(step)} is damaged and not used: {error}")
    if damaged:
        listed = "".join(f"\n  {step}: {reason}" for step, reason in damaged.items())
        raise BadInput(
            f"{folder} holds no sound checkpoint:{listed}\nPut one back from a copy, or take "
            "another --workdir; nothing was changed"
        )
    return None


def check_origin(record: Record, workdir: str | epath.Path, examples: int) -> None:
    """Makes sure that a run goes on with its own config and data; tells of other versions.

    Args:
      record: of the checkpoint that is gone on with.
      workdir: of the run.
      examples: of the training split, as it is now.

    Raises:
      BadInput: another config, another tokeniser, or another number of training examples.
    """
    _check_files(record, workdir)
    if record.examples != examples:
        raise BadInput(
            f"the training split has {examples} examples, and {workdir} was trained on one of "
            f"{record.examples}: give it the data it had, or take another --workdir"
        )
    now, was = _versions(), record.versions
    if other := [f"{k} {was[k]}, now {now.get(k)}" for k in was if was[k] != now.get(k)]:
        _report(f"{workdir} was saved with {', '.join(other)}: it need not go on bit for bit")


def recorded_config(workdir: str | epath.Path) -> ml_collections.ConfigDict:
    """Returns the config of a run, having compared it with the newest record that can be read.

    Raises:
      BadInput: no run, or a config.json or tokenizer.json that is not the run's.
    """
    cfg = read_config(workdir)
    for step in reversed(saved_steps(workdir)):
        try:
            record = read_record(workdir, step)
        except Damaged:
            continue
        _check_files(record, workdir)
        break
    return cfg


def _check_files(record: Record, workdir: str | epath.Path) -> None:
    """Raises BadInput where what stands beside the checkpoints is not what they were made with."""
    was, now = configs.flatten(record.config), configs.flatten(read_config(workdir).to_dict())
    other = [
        f"{key}: {was.get(key)!r} in checkpoint {record.position.step}, {now.get(key)!r} in it"
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key) and key.split(".")[0] not in configs.CHANGEABLE_ON_RESUME
    ]
    if other:
        raise BadInput(
            f"{workdir}/config.json is not what the run was trained with:\n  "
            + "\n  ".join(other)
            + "\nPut these values back, or take another --workdir"
        )
    # Other versions of the library may write the same tokeniser in another way.
    same_library = record.versions.get("tokenizers") == _versions()["tokenizers"]
    if same_library and record.tokenizer not in (None, tokenizer_digest(workdir)):
        raise BadInput(
            f"{workdir}/tokenizer.json is not what the run was trained with: put it back from a "
            f"copy whose SHA-256 is {record.tokenizer}, or take another --workdir"
        )


def check_fits(record: Record, target: TrainState, where: str) -> None:
    """Raises BadInput naming the first array whose presence, shape or dtype differs."""
    have = {name: _form(leaf) for name, leaf in record.leaves.items()}
    want = {
        leaf_name(path): _form(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(target)
    }
    for name in want | have:
        if have.get(name) != want.get(name):
            raise BadInput(
                f"the checkpoint {where} does not fit the model: {name} is "
                f"{have.get(name, 'absent')} in the checkpoint and {want.get(name, 'absent')} in "
                "the model; give the config that the run was trained with"
            )


def _form(leaf: Any) -> str:
    return f"{leaf.dtype} {list(leaf.shape)}"


def _read_arrays(folder: epath.Path, target: TrainState) -> TrainState:
    try:
        return read_arrays(folder, target)
    except Exception as error:  # orbax and tensorstore raise whatever a broken file leads to
        raise Damaged(f"its arrays cannot be read: {_line(error)}") from error


def _on_all(read: Any) -> Any:
    """What was read, where every process could; else all of them find the checkpoint damaged."""
    value, error = None, None
    try:
        value = read()
    except Damaged as caught:
        error = caught
    if not on_all(error is None):
        raise error or Damaged("another process cannot read it")
    return value


def _report(text: str) -> None:
    if is_first():
        warn(text)


def _line(error: BaseException) -> str:
    """The first line of what an error was caused by."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in (*_PACKAGES, "tokenizers")},
    }


def load_model(
    workdir: str | epath.Path,
    overrides: Mapping[str, Any] | None = None,
    step: int | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns a trained model and its weights: the averaged ones where the run keeps them.

    Args:
      workdir: of a run; a local folder or a gs:// address.
      overrides: config keys to change, e.g. {'depth.solver': 'tsit5', 'depth.rtol': 1e-3}; a
        tolerance replaces the run's fixed steps, and the reverse.
      step: of the checkpoint; None for the newest sound one.

    Returns:
      (model, variables), for `model.apply(variables, images)`, images standardised as the run's
      data set does (`train.data.sources.load_splits(config)['test'].standardise`); or for
      `model.apply(variables, tokens)`, tokens of the run's tokeniser (`read_tokenizer(workdir)`).

    Raises:
      BadInput: no run, no checkpoint, a key or a value that the config refuses, or weights that do
        not fit it.
    """
    config = evaluation_config(workdir, overrides or {})
    return make_model(config.model), {"params": load_params(workdir, config, step=step)}


def evaluation_config(workdir: str | epath.Path, overrides: Mapping[str, Any]) -> RunConfig:
    """Returns the config of a run to evaluate under, with the overrides {'group.key': value}.

    Raises:
      BadInput: no run, one whose config.json is not its own, or a key or a value that the config
        refuses.
    """
    cfg = recorded_config(workdir)
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
    workdir: str | epath.Path,
    config: RunConfig,
    mesh: jax.sharding.Mesh | None = None,
    step: int | None = None,
) -> Any:
    """Returns the weights to evaluate with, of a run's checkpoint.

    Args:
      workdir: of the run.
      config: of a model that the weights fit.
      mesh: the devices that they come to lie on; by default one device.
      step: of the checkpoint; None for the newest sound one.

    Returns:
      The averaged weights where the run keeps them, else the newest: the tree of
      `model.init(...)['params']`.

    Raises:
      BadInput: no sound checkpoint, not this one, or one that does not fit the config.
    """
    if mesh is None:
        mesh = device_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.local_devices()[:1])
    optimizer = make_optimizer(config.optimizer, config.train_steps)
    target = abstract_state(config, optimizer, mesh)
    steps = saved_steps(workdir)
    if not steps:
        raise BadInput(f"{workdir} holds no checkpoint: train the run first")
    listed = ", ".join(map(str, steps))
    if step is not None and step not in steps:
        raise BadInput(f"{workdir} holds no checkpoint of step {step}: take one of {listed}")
    try:
        restored: Any = (
            restore_newest(workdir, target) if step is None else restore_step(workdir, step, target)
        )
    except Damaged as error:
        raise BadInput(
            f"the checkpoint of step {step} in {workdir} is damaged ({error}): take another of "
            f"{listed}"
        ) from error
    return restored[0].eval_params


def count_parameters(params: Any) -> int:
    """Returns the number of parameters in a tree of arrays."""
    return int(sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(params)))
