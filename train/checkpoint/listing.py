"""What a run's folder of checkpoints holds, every checkpoint verified."""

import contextlib
import dataclasses
import datetime
import functools
import json
import time
from collections.abc import Sequence

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
from train.config.refining import at_step
from train.config.run import RunConfig
from train.devices.mesh import one_device_mesh
from train.errors import BadInput
from train.state import TrainState, expected_state

SOUND, DAMAGED, UNFIT = "sound", "damaged", "unfit"
UNFINISHED, RETIRED = "unfinished", "retired"

# How often the folder is read, and how long before a checkpoint that seems damaged is read again: a
# run that is training may be deleting what is being read.
ATTEMPTS, WAIT_SECS = 3, 1.0


@dataclasses.dataclass(frozen=True)
class Entry:
    """A folder of checkpoints/, and the state it is in."""

    name: str
    step: int
    state: str  # SOUND, DAMAGED, UNFIT, UNFINISHED or RETIRED
    reason: str = ""  # why it is in any state but SOUND
    metadata: Metadata | None = None  # None if it cannot be read
    saved: datetime.datetime | None = None  # None if the save did not end
    size: int | None = None  # on disk, bytes; None if it changed while it was counted

    @property
    def is_finished(self) -> bool:
        """Whether it is one of the run's checkpoints."""
        return self.state not in (UNFINISHED, RETIRED)


def list_checkpoints(workdir: str | epath.Path, config: RunConfig) -> list[Entry]:
    """Returns what a run's folder of checkpoints holds, every finished checkpoint verified.

    What a run that is training deletes or renames in the meantime is left out.

    Returns:
      Every checkpoint, unfinished and retired ones included, by step in ascending order.
    """
    # Refined weights have other shapes than those before them.
    target = functools.cache(lambda config: expected_state(config, one_device_mesh()))
    folder = checkpoint_folder(workdir)

    entries: list[Entry] = []
    for _ in range(ATTEMPTS):
        steps, others = saved_steps(workdir), _not_checkpoints(workdir)

        # The newest first: a run that is training deletes the oldest.
        entries = [
            _verify(workdir, step, target(at_step(config, step))) for step in reversed(steps)
        ] + others
        entries = [_measure(entry, folder) for entry in entries if (folder / entry.name).exists()]

        # A run that keeps few checkpoints may have replaced all of them while they were read.
        if any(entry.is_finished for entry in entries) or not steps:
            break

    return sorted(entries, key=lambda entry: (entry.step, entry.is_finished))


def find_best(entries: Sequence[Entry], best: str | None) -> int | None:
    """Returns the step of the best sound checkpoint; None if none was scored.

    Args:
      entries: of `list_checkpoints`.
      best: the metric's name, config.checkpoint.best.
    """
    sound = {entry.step: entry.metadata for entry in entries if entry.state == SOUND}
    scores = {step: m.metrics.get(best or "") for step, m in sound.items() if m}
    return best_step(scores, best)


def _not_checkpoints(workdir: str | epath.Path) -> list[Entry]:
    """The folders next to the checkpoints that are none, or are none any longer."""
    return [
        Entry(name, step, state, reason)
        for saves, state, reason in (
            (unfinished_saves(workdir), UNFINISHED, "its save was cut off, or is in progress"),
            (retired_saves(workdir), RETIRED, "the run was rolled back to an earlier step"),
        )
        for name, step in saves.items()
    ]


def _verify(workdir: str | epath.Path, step: int, target: TrainState) -> Entry:
    """Reads a finished checkpoint in full, and a second time if it seems damaged."""
    folder, state, reason = checkpoint_folder(workdir) / str(step), SOUND, ""

    for wait_secs in (WAIT_SECS, None):
        try:
            _, metadata = restore_step(workdir, step, target)
            return Entry(folder.name, step, SOUND, metadata=metadata)
        except Damaged as error:
            state, reason = DAMAGED, str(error)
        except BadInput as error:
            state, reason = UNFIT, str(error)

        # It may be in the middle of being deleted.
        if wait_secs is not None and folder.exists():
            time.sleep(wait_secs)

    # Even of a damaged checkpoint the metadata, with its metrics, may be sound.
    try:
        metadata = read_metadata(workdir, step)
    except Damaged:
        metadata = None

    return Entry(folder.name, step, state, reason, metadata)


def _measure(entry: Entry, parent: epath.Path) -> Entry:
    """The same entry with its date and its size."""
    folder, saved, size = parent / entry.name, None, None

    # orbax keeps the date in a file of its own, which a save that was cut off may lack.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
        values = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
        saved = datetime.datetime.fromtimestamp(values["commit_timestamp_nsecs"] / 1e9)

    # A folder that is deleted while it is measured has no size.
    with contextlib.suppress(OSError):
        size = _size(folder)

    return dataclasses.replace(entry, saved=saved, size=size)


def _size(folder: epath.Path) -> int:
    return sum(_size(path) if path.is_dir() else path.stat().length for path in folder.iterdir())
