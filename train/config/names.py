"""Names of earlier versions: what is stored may still have them, what is given may not."""

from collections.abc import Mapping
from typing import Any

from train.errors import BadInput

# What a key was called -> what it is called; None where it is gone.
RENAMED: dict[str, str | None] = {
    "checkpoint.spare_dir": None,
    "data.held_out": "data.held_out_fraction",
    "data.repeats": "data.repeats_per_batch",
    "data.validation": "data.validation_examples",
    "guard.in_a_row": "guard.max_consecutive",
    "guard.returns": "guard.max_rollbacks",
}

# Arrays of a checkpoint, by the names of `leaf_name`.
STATE: Mapping[str, str] = {"guard/in_a_row": "guard/consecutive"}

# Fields of the position in a checkpoint's metadata.
POSITION: Mapping[str, str] = {"order": "shuffle"}

# A key and the value that it had, as text -> the value that it has.
_REPLACED: dict[tuple[str, str], Any] = {("checkpoint.best", "none"): None}


def refuse_old_name(key: str) -> None:
    """Raises BadInput, which names the new key, for one that is called otherwise now."""
    key = key.removeprefix("config.")  # which precedes it in a study's flags
    if key not in RENAMED:
        return

    new = RENAMED[key]
    if new is None:
        raise BadInput(f"config.{key} is no key any more: leave it out")
    raise BadInput(f"config.{key} is now config.{new}")


def with_new_names(stored: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Returns a stored config with the names and values that are in use now."""
    renamed = {}

    for name, value in stored.items():
        key = f"{path}{name}"
        if isinstance(value, Mapping):
            renamed[name] = with_new_names(value, f"{key}.")
        elif (new := RENAMED.get(key, key)) is not None:
            # A key that was renamed is in the group that it was in.
            renamed[new.rpartition(".")[2]] = _REPLACED.get((key, str(value)), value)

    return renamed
