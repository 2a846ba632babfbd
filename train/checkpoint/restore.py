"""Reads checkpoints: verified, or not at all."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath

from odeformer import make_model
from train.checkpoint.arrays import read_arrays
from train.checkpoint.checksums import checksums, leaf_name
from train.checkpoint.metadata import STATE, Damaged, Metadata, read_metadata, verified_config
from train.checkpoint.workdir import checkpoint_folder, saved_steps, unfinished_saves
from train.config.run import MeshConfig, RunConfig
from train.config.stored import for_evaluation
from train.devices.mesh import device_mesh
from train.devices.processes import all_agree, is_primary
from train.errors import BadInput, first_line, warn
from train.optimizer import make_optimizer
from train.state import TrainState, abstract_state


def restore_step(
    workdir: str | epath.Path, step: int, target: TrainState
) -> tuple[TrainState, Metadata]:
    """Returns a checkpoint's state, verified and laid out as the abstract target says.

    Raises:
      Damaged: it is not what was saved.
      BadInput: it has other arrays than the target; names the first that differs.
    """
    record = _on_all(lambda: read_metadata(workdir, step))
    folder = checkpoint_folder(workdir) / str(step)
    check_fits(record, target, str(folder))
    state = _on_all(lambda: _read_arrays(folder / STATE, target, record.former))
    found = checksums(state)
    wrong = [name for name, leaf in record.leaves.items() if found[name] != leaf.checksum]
    if wrong:
        raise Damaged(f"{len(wrong)} of its arrays are not what was saved, {wrong[0]} is the first")
    return state, record


def restore_newest(
    workdir: str | epath.Path, target: TrainState, before: int | None = None
) -> tuple[TrainState, Metadata] | None:
    """Returns the newest sound state, laid out as the abstract target says; None if there is none.

    What is damaged or unfinished is reported by name, and left as it is.

    Args:
      workdir: of the run.
      target: the state's shapes, dtypes and shardings.
      before: a step that the checkpoint is to lie before, if one that is sound does; None for any.

    Raises:
      BadInput: there are checkpoints, none of them sound; or a state that does not fit the target.
    """
    folder = checkpoint_folder(workdir)
    for name in unfinished_saves(workdir):
        _report(f"{folder / name} is unfinished: its save was cut off, and it is left out")
    steps = saved_steps(workdir)[::-1]
    if before is not None:
        steps.sort(key=lambda step: step >= before)  # and in descending order as they were
    damaged = {}
    for step in steps:
        for is_last in (False, True):  # what could not be read for a moment is not damaged
            try:
                return restore_step(workdir, step, target)
            except Damaged as error:
                damaged[step] = str(error)
            if is_last:
                _report(f"{folder / str(step)} is damaged and not used: {damaged[step]}")
    if damaged:
        listed = "".join(f"\n  {step}: {reason}" for step, reason in damaged.items())
        raise BadInput(
            f"{folder} holds no sound checkpoint:{listed}\nPut one back from a copy, or take "
            "another --workdir; none of them was changed"
        )
    return None


def check_fits(record: Metadata, target: TrainState, where: str) -> None:
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


def _read_arrays(folder: epath.Path, target: TrainState, former: Mapping[str, str]) -> TrainState:
    try:
        if not former:
            return read_arrays(folder, target)

        return _from_fields(read_arrays(folder, _to_fields(target, former)), target, former)
    except Exception as error:  # orbax and tensorstore raise whatever a broken file leads to
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
            raise  # the device is full
        raise Damaged(f"its arrays cannot be read: {first_line(error)}") from error


def _to_fields(state: TrainState, former: Mapping[str, str]) -> dict[str, Any]:
    """The state as a dict of its parts; a part with leaves of other names is a dict, too."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    for name in {name.partition("/")[0] for name in former}:
        part = fields[name]
        fields[name] = {
            former.get(f"{name}/{leaf.name}", f"{name}/{leaf.name}").partition("/")[2]: getattr(
                part, leaf.name
            )
            for leaf in dataclasses.fields(part)
        }
    return fields


def _from_fields(fields: dict[str, Any], like: TrainState, former: Mapping[str, str]) -> TrainState:
    """The reverse of `_to_fields`."""
    names = {old: new for new, old in former.items()}
    for name in {name.partition("/")[0] for name in former}:
        values = {
            names.get(f"{name}/{leaf}", f"{name}/{leaf}").partition("/")[2]: value
            for leaf, value in fields[name].items()
        }
        fields[name] = type(getattr(like, name))(**values)
    return TrainState(**fields)


def _on_all(read: Any) -> Any:
    """What was read, where every process could; else all of them find the checkpoint damaged."""
    value, error = None, None
    try:
        value = read()
    except Damaged as caught:
        error = caught
    if not all_agree(error is None):
        raise error or Damaged("another process cannot read it")
    return value


def _report(text: str) -> None:
    if is_primary():
        warn(text)


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
    return for_evaluation(verified_config(workdir), overrides)


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
