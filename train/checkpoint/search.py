"""Looks for the newest checkpoint that is sound."""

from collections.abc import Callable
from typing import Any

from etils import epath

from train.checkpoint.checks import check_none_damaged
from train.checkpoint.metadata import Damaged, Metadata
from train.checkpoint.together import report
from train.checkpoint.workdir import checkpoint_folder, saved_steps, unfinished_saves


def newest_sound(
    workdir: str | epath.Path,
    restore: Callable[[int], tuple[Any, Metadata]],
    before: int | None = None,
) -> tuple[Any, Metadata] | None:
    """Returns what `restore` does for the newest step it finds sound; None if there is no step.

    Args:
      workdir: of the run.
      restore: step -> the arrays and the metadata; raises Damaged.
      before: checkpoints of earlier steps than this one are preferred.

    Raises:
      BadInput: there are checkpoints, none of them sound.
    """
    folder = checkpoint_folder(workdir)
    for name in unfinished_saves(workdir):
        report(f"{folder / name} is unfinished: its save was cut off, and it is ignored")

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
                report(f"{folder / str(step)} is damaged and not used: {damaged[step]}")

    # A run whose checkpoints are all damaged must not start from the beginning, and overwrite them.
    check_none_damaged(folder, damaged)
    return None
