"""All that is wrong with a config, found at once."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from train.errors import BadInput

T = TypeVar("T")


def build_or_collect(
    build: Callable[[dict[str, Any]], T],
    values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    refusals: list[BadInput],
) -> T | None:
    """Builds a config of values that are each accepted by themselves, or collects its refusals.

    A dataclass refuses its first fault alone. What this one names is replaced by its default, until
    no other fault is found. A fault that names what an earlier one names may be due to such a
    default, and is left out.

    Args:
      build: makes the config of its values by key, or raises BadInput.
      values: by key.
      defaults: by key; what was refused already is at its default.
      refusals: of the same config, found earlier; others are added.

    Returns:
      The config; None if it was refused.
    """
    values, named = dict(values), {name for r in refusals for name in _names(r, values)}
    config, error = _attempt(build, values)

    while error is not None:
        names = _names(error, values)
        if not names & named:
            refusals.append(error)
        named |= names

        for key in [key for key in values if _last(key) in names and values[key] != defaults[key]]:
            values[key] = defaults[key]
            _, other = _attempt(build, values)
            if str(other) != str(error):
                break
        else:
            return None
        error = other

    return config


def _attempt(build: Callable[[dict[str, Any]], T], values: dict[str, Any]) -> Any:
    """(the config, None), or (None, its refusal)."""
    try:
        return build(values), None
    except BadInput as error:
        return None, error


def _names(refusal: BadInput, keys: Iterable[str]) -> set[str]:
    """The last parts of the keys that a refusal names, in the first line of its text."""
    words = set(re.findall(r"\w+", str(refusal).partition("\n")[0]))
    return {last for key in keys if (last := _last(key)) in words}


def _last(key: str) -> str:
    return key.rpartition(".")[2]
