"""Reads checkpoints: verified, or not at all; the newest one that is sound."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from etils import epath

from train.checkpoint.arrays import read_part, read_state
from train.checkpoint.checks import check_arrays_fit, check_files, check_none_damaged
from train.checkpoint.checksums import checksums
from train.checkpoint.metadata import STATE, Damaged, Metadata, read_metadata
from train.checkpoint.workdir import checkpoint_folder, read_config, saved_steps, unfinished_saves
from train.config.run import RunConfig
from train.config.stored import for_evaluation
from train.devices.processes import all_agree, is_primary
from train.errors import BadInput, warn
from train.state import TrainState


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


def _on_all(read: Callable[[], Any]) -> Any:
    """What was read if every process could read it; Damaged in all of them if one could not."""
    value, error = None, None
    try:
        value = read()
    except Damaged as caught:
        error = caught

    # A process that took an older checkpoint alone would train on another state than the others.
    if not all_agree(error is None):
        raise error or Damaged("another process cannot read it")

    return value


def _verify(arrays: Any, metadata: Metadata) -> None:
    """Refuses arrays that are not what was saved."""
    # orbax restores a flipped byte of the arrays without an error.
    sums = checksums(arrays)
    wrong = [name for name, value in sums.items() if value != metadata.leaves[name].checksum]
    if wrong:
        raise Damaged(f"{len(wrong)} of its arrays are not what was saved, {wrong[0]} is the first")


def restore_newest(
    workdir: str | epath.Path,
    target: TrainState | Callable[[int], TrainState],
    before: int | None = None,
) -> tuple[TrainState, Metadata] | None:
    """Returns the newest sound state, laid out as the abstract target says; None if there is none.

    What is damaged or unfinished is reported by name, and not changed.

    Args:
      target: the state's shapes, dtypes and shardings; a function of the step where they depend on
        it.
      before: checkpoints of earlier steps than this one are preferred; None: no preference.

    Raises:
      BadInput: there are checkpoints, none of them sound; or a state that does not fit the target.
    """

    def restore(step: int) -> tuple[TrainState, Metadata]:
        return restore_step(workdir, step, target(step) if callable(target) else target)

    return newest_sound(workdir, restore, before)


def newest_sound(
    workdir: str | epath.Path,
    restore: Callable[[int], tuple[Any, Metadata]],
    before: int | None = None,
) -> tuple[Any, Metadata] | None:
    """Returns what `restore` does for the newest step it finds sound; None if there is no step.

    Args:
      restore: step -> the arrays and the metadata; raises Damaged.
      before: checkpoints of earlier steps than this one are preferred.

    Raises:
      BadInput: there are checkpoints, none of them sound.
    """
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


def _report(text: str) -> None:
    """Warns once, whatever the number of processes."""
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


def evaluation_config(workdir: str | epath.Path, overrides: Mapping[str, Any]) -> RunConfig:
    """Returns the config of a run to evaluate under, with the overrides {'group.key': value}.

    Raises:
      BadInput: no run, one whose config.json is not its own, or a key or a value that the config
        refuses.
    """
    return for_evaluation(verified_config(workdir), overrides)


def refuse_none(workdir: str | epath.Path) -> NoReturn:
    """Refuses a run without a checkpoint."""
    raise BadInput(f"{workdir} holds no checkpoint: train the run first")
