"""What several processes agree on while they read a checkpoint, and say once."""

from collections.abc import Callable
from typing import Any

from train.checkpoint.metadata import Damaged
from train.devices.processes import all_agree, is_primary
from train.errors import warn


def on_all(read: Callable[[], Any]) -> Any:
    """Returns what was read if every process could read it.

    Raises:
      Damaged: one of them found it damaged, and so all of them do.
    """
    value, error = None, None
    try:
        value = read()
    except Damaged as caught:
        error = caught

    # A process that took an older checkpoint alone would train on another state than the others.
    if not all_agree(error is None):
        raise error or Damaged("another process cannot read it")

    return value


def report(text: str) -> None:
    """Warns once, whatever the number of processes."""
    if is_primary():
        warn(text)
