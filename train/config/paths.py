"""A run's config as it is stored: with paths that hold in any current folder, and every key."""

from collections.abc import Collection, Mapping
from typing import Any

from train.errors import BadInput
from train.files import absolute

# The keys that hold a path -> the values that are none.
_PATHS: Mapping[str, Collection[str]] = {
    "data.data_dir": (),
    "data.files": (),
    "data.tokenizer": ("bytes", "bpe"),
    "checkpoint.spare_dir": (),
}

# Keys that runs of older versions were saved without, by task -> what such a run did.
_LATER: Mapping[str, Mapping[str, Any]] = {"images": {"data.test_fraction": 0.0}}


def with_absolute_paths(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config with its paths from the root on, `~` replaced.

    So a run can be resumed and evaluated from another folder than it was started in.

    Args:
      given: a config, as a nested dict; what is not a path is left as it is, fitting or not.

    Raises:
      BadInput: a path into a home of no one's.
    """
    full = dict(given)
    for key, words in _PATHS.items():
        group, _, name = key.partition(".")
        holder = full.get(group)
        path = holder.get(name) if isinstance(holder, Mapping) else None
        if not isinstance(path, str) or not path or path in words:
            continue
        try:
            full[group] = {**full[group], name: absolute(path)}
        except BadInput as error:
            raise BadInput(f"config.{key}={error}") from error
    return full


def as_stored(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run's config as it is stored now, also where an older version stored it.

    Args:
      given: the config, as a nested dict.

    Raises:
      BadInput: a path into a home of no one's.
    """
    full = with_absolute_paths(given)
    for key, value in _LATER.get(full.get("task", ""), {}).items():
        group, _, name = key.partition(".")
        if isinstance(full.get(group), Mapping):  # else it is refused where it is read
            full[group] = {name: value, **full[group]}
    return full
