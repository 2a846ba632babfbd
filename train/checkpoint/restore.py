"""Reads checkpoints: verified, or not at all."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn

import flax.linen as nn
import jax
import numpy as np
from etils import epath

from odeformer import make_model
from train.checkpoint.arrays import read_part, read_state
from train.checkpoint.checks import (
    check_arrays_fit,
    check_files,
    check_none_damaged,
    check_saved,
    step_damaged,
)
from train.checkpoint.checksums import checksums
from train.checkpoint.metadata import STATE, Damaged, Metadata, read_metadata
from train.checkpoint.parameters import abstract_parameters
from train.checkpoint.retention import find_best_step
from train.checkpoint.workdir import (
    checkpoint_folder,
    read_config,
    saved_steps,
    unfinished_saves,
)
from train.config.run import RunConfig
from train.config.stored import for_evaluation
from train.devices.mesh import one_device_mesh
from train.devices.processes import all_agree, is_primary
from train.errors import BadInput, warn
from train.state import TrainState

Step = int | Literal["best"] | None  # None: the newest sound one


def restore_step(
    workdir: str | epath.Path, step: int, target: TrainState
) -> tuple[TrainState, Metadata]:
    """Returns a checkpoint's state, verified and laid out as the abstract target says.

    Raises:
      Damaged: it is not what was saved.
      BadInput: it has other arrays than the target; names the first that differs.
    """
    folder = checkpoint_folder(workdir) / str(step)
    metadata = _on_all(lambda: read_metadata(workdir, step))

    # Before any array is read, so that the message names the first one that differs.
    check_arrays_fit(metadata, target, str(folder))

    state = _on_all(lambda: read_state(folder / STATE, target, metadata.former))

    _verify(state, metadata)
    return state, metadata


def restore_weights(workdir: str | epath.Path, step: int, target: Any) -> tuple[Any, Metadata]:
    """Returns the weights of a checkpoint to evaluate with, verified; its other arrays are ignored.

    Args:
      workdir: of the run.
      step: of the checkpoint.
      target: the tree of `model.init(...)['params']`, of shapes, dtypes and shardings.

    Returns:
      The averaged weights if the checkpoint has them, else the newest; and the metadata.

    Raises:
      Damaged: they are not what was saved.
      BadInput: they do not fit the target; names the first array that differs.
    """
    folder = checkpoint_folder(workdir) / str(step)
    metadata = _on_all(lambda: read_metadata(workdir, step))

    # The average has the form of the weights, by whose names people know them.
    check_arrays_fit(metadata, {"params": target}, str(folder), part="params/")
    part = "ema" if any(name.startswith("ema/") for name in metadata.leaves) else "params"

    read = _on_all(lambda: read_part(folder / STATE, {part: target}))
    _verify(read, metadata)
    return read[part], metadata


def _verify(arrays: Any, metadata: Metadata) -> None:
    """Refuses arrays that are not what was saved."""
    # orbax restores a flipped byte of the arrays without an error.
    sums = checksums(arrays)
    wrong = [name for name, value in sums.items() if value != metadata.leaves[name].checksum]
    if wrong:
        raise Damaged(f"{len(wrong)} of its arrays are not what was saved, {wrong[0]} is the first")


def restore_newest(
    workdir: str | epath.Path, target: TrainState, before: int | None = None
) -> tuple[TrainState, Metadata] | None:
    """Returns the newest sound state, laid out as the abstract target says; None if there is none.

    What is damaged or unfinished is reported by name, and not changed.

    Args:
      workdir: of the run.
      target: the state's shapes, dtypes and shardings.
      before: checkpoints of earlier steps than this one are preferred; None: no preference.

    Raises:
      BadInput: there are checkpoints, none of them sound; or a state that does not fit the target.
    """
    return _newest_sound(workdir, lambda step: restore_step(workdir, step, target), before)


def _newest_sound(
    workdir: str | epath.Path,
    restore: Callable[[int], tuple[Any, Metadata]],
    before: int | None = None,
) -> tuple[Any, Metadata] | None:
    """What `restore` returns for the newest step for which it finds no damage; None without one."""
    folder = checkpoint_folder(workdir)
    for name in unfinished_saves(workdir):
        _report(f"{folder / name} is unfinished: its save was cut off, and it is ignored")

    # The sort is stable: on either side of `before` the newest comes first.
    steps = saved_steps(workdir)[::-1]
    if before is not None:
        steps.sort(key=lambda step: step >= before)

    damaged = {}
    for step in steps:
        # Twice: what could not be read for a moment is not damaged.
        for is_last in (False, True):
            try:
                return restore(step)
            except Damaged as error:
                damaged[step] = str(error)

            if is_last:
                _report(f"{folder / str(step)} is damaged and not used: {damaged[step]}")

    # A run whose checkpoints are all damaged must not start from the beginning, and overwrite them.
    check_none_damaged(folder, damaged)
    return None


def _on_all(read: Callable[[], Any]) -> Any:
    """What was read if every process could; else all of them find the checkpoint damaged."""
    value, error = None, None
    try:
        value = read()
    except Damaged as caught:
        error = caught

    # A process that took an older checkpoint alone would train on another state than the others.
    if not all_agree(error is None):
        raise error or Damaged("another process cannot read it")

    return value


def _report(text: str) -> None:
    if is_primary():
        warn(text)


def verified_config(workdir: str | epath.Path) -> RunConfig:
    """Returns the config of a run, compared with the newest metadata that can be read.

    Raises:
      BadInput: no run, or a config.json or tokenizer.json that is not the run's.
    """
    config = read_config(workdir)

    for step in reversed(saved_steps(workdir)):
        # An older checkpoint of the same run has the same config.
        try:
            metadata = read_metadata(workdir, step)
        except Damaged:
            continue

        check_files(metadata, workdir)
        break

    return config


def load_model(
    workdir: str | epath.Path,
    overrides: Mapping[str, Any] | None = None,
    step: Step = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns a trained model and its weights: the averaged ones if the run keeps them.

    Args:
      workdir: of a run; a local folder or a gs:// address.
      overrides: config keys to change, e.g. {'depth.solver': 'tsit5', 'depth.rtol': 1e-3}; a
        tolerance replaces the run's fixed steps, and the reverse.
      step: of the checkpoint; 'best' for the best one by the run's config.checkpoint.best, None
        for the newest sound one.

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
    step: Step = None,
) -> Any:
    """Returns the weights to evaluate with, from a run's checkpoint.

    Args:
      workdir: of the run.
      config: of a model that the weights fit.
      mesh: the devices to lay them out on; by default one device.
      step: of the checkpoint; 'best' for the best one by config.checkpoint.best, None for the
        newest sound one.

    Returns:
      The averaged weights if the run keeps them, else the newest: the tree of
      `model.init(...)['params']`.

    Raises:
      BadInput: no sound checkpoint, not this one, no best one, or one that does not fit the config.
    """
    # The weights alone, whatever optimiser trained them.
    target = abstract_parameters(config.model, one_device_mesh() if mesh is None else mesh)
    if step is None:
        return restore_newest_weights(workdir, target)[0]

    weights, _ = _restore_only(workdir, step, target, config.checkpoint.best) or _none(workdir)
    return weights


def restore_newest_weights(workdir: str | epath.Path, target: Any) -> tuple[Any, Metadata]:
    """Returns what `restore_weights` does, of the newest sound checkpoint.

    Raises:
      BadInput: no sound checkpoint, or one that does not fit the target.
    """
    found = _newest_sound(workdir, lambda step: restore_weights(workdir, step, target))
    return found or _none(workdir)


def _none(workdir: str | epath.Path) -> NoReturn:
    raise BadInput(f"{workdir} holds no checkpoint: train the run first")


def _restore_only(
    workdir: str | epath.Path, step: int | Literal["best"], target: Any, best: str | None
) -> tuple[Any, Metadata] | None:
    """The weights of a step, or the best ones by a metric, and no other; None if none exist."""
    steps = saved_steps(workdir)
    if not steps:
        return None

    if step == "best":
        step = find_best_step(workdir, best)
    check_saved(workdir, step, steps)

    try:
        return restore_weights(workdir, step, target)
    except Damaged as error:
        raise step_damaged(workdir, step, steps, error) from error


def count_parameters(params: Any) -> int:
    """Returns the number of parameters in a tree of arrays."""
    return int(sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(params)))
