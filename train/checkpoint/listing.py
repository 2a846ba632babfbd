"""What lies in a run's folder of checkpoints, each of them verified."""

import contextlib
import dataclasses
import datetime
import json
import time
from collections.abc import Sequence

import jax
from etils import epath

from train.checkpoint.metadata import Damaged, Metadata, read_metadata
from train.checkpoint.restore import restore_step
from train.checkpoint.retention import best_step
from train.checkpoint.workdir import (
    checkpoint_folder,
    retired_saves,
    saved_steps,
    unfinished_saves,
)
from train.config.run import MeshConfig, RunConfig
from train.devices.mesh import device_mesh
from train.errors import BadInput
from train.optimizer import make_optimizer
from train.state import TrainState, abstract_state

SOUND, DAMAGED, UNFIT = "sound", "damaged", "unfit"
UNFINISHED, SET_ASIDE = "unfinished", "set aside"
LOOKS, WAIT_SECS = 3, 1.0  # at what a run that trains may be changing, and between them


@dataclasses.dataclass(frozen=True)
class Found:
    """A folder of checkpoints/, and what it was found to be."""

    name: str
    step: int
    state: str  # SOUND, DAMAGED, UNFIT, UNFINISHED or SET_ASIDE
    reason: str = ""  # why it is neither sound nor finished
    record: Metadata | None = None  # where it can be read
    saved: datetime.datetime | None = None  # where that is known
    size: int | None = None  # on disk, bytes; None: it changed while it was counted

    @property
    def is_finished(self) -> bool:
        """Whether it is one of the run's checkpoints."""
        return self.state not in (UNFINISHED, SET_ASIDE)


def list_checkpoints(workdir: str | epath.Path, config: RunConfig) -> list[Found]:
    """Returns what lies in a run's folder of checkpoints, every finished one of them verified.

    What a run that trains deletes or renames meanwhile is left out.

    Args:
      workdir: of the run.
      config: of the run.

    Returns:
      Every checkpoint, those that are unfinished or set aside too, by step in ascending order.
    """
    mesh = device_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.local_devices()[:1])
    target = abstract_state(config, make_optimizer(config.optimizer, config.train_steps), mesh)
    folder = checkpoint_folder(workdir)
    for _ in range(LOOKS):
        steps, others = _folders(workdir)
        # The newest first: it is the oldest that are deleted while the others are read.
        found = [_verify(workdir, step, target) for step in reversed(steps)] + others
        found = [_measured(one, folder) for one in found if (folder / one.name).exists()]
        if any(one.is_finished for one in found) or not steps:
            break
    return sorted(found, key=lambda one: (one.step, one.is_finished))


def find_best(found: Sequence[Found], best: str | None) -> int | None:
    """Returns the step of the best sound checkpoint; None where none was scored.

    Args:
      found: of `list_checkpoints`.
      best: the metric's name, config.checkpoint.best.
    """
    sound = {one.step: one.record for one in found if one.state == SOUND}
    return best_step({step: r.metrics.get(best or "") for step, r in sound.items() if r}, best)


def _folders(workdir: str | epath.Path) -> tuple[list[int], list[Found]]:
    """The steps of the finished checkpoints, and what else lies beside them."""
    others = [
        Found(name, step, state, reason)
        for saves, state, reason in (
            (unfinished_saves(workdir), UNFINISHED, "its save was cut off, or is on its way"),
            (retired_saves(workdir), SET_ASIDE, "the run went back behind it"),
        )
        for name, step in saves.items()
    ]
    return saved_steps(workdir), others


def _verify(workdir: str | epath.Path, step: int, target: TrainState) -> Found:
    """A finished checkpoint, read whole; what seems damaged is read again, if it is still there."""
    folder, state, reason = checkpoint_folder(workdir) / str(step), SOUND, ""
    for wait_secs in (WAIT_SECS, None):
        try:
            _, record = restore_step(workdir, step, target)
            return Found(folder.name, step, SOUND, record=record)
        except Damaged as error:
            state, reason = DAMAGED, str(error)
        except BadInput as error:
            state, reason = UNFIT, str(error)
        if wait_secs is not None and folder.exists():
            time.sleep(wait_secs)  # it may be on its way out
    try:
        record = read_metadata(workdir, step)
    except Damaged:
        record = None
    return Found(folder.name, step, state, reason, record)


def _measured(found: Found, parent: epath.Path) -> Found:
    """The same with its date and its size."""
    folder, saved, size = parent / found.name, None, None
    # The date stands in a file of orbax's, and not where the save was cut off.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
        metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
        saved = datetime.datetime.fromtimestamp(metadata["commit_timestamp_nsecs"] / 1e9)
    with contextlib.suppress(OSError):
        size = _size(folder)
    return dataclasses.replace(found, saved=saved, size=size)


def _size(folder: epath.Path) -> int:
    return sum(
        _size(entry) if entry.is_dir() else entry.stat().length for entry in folder.iterdir()
    )
