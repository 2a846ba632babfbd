"""Parameters by name or by pattern: 'head', 'depth/groups/mlp_layer', '**/bias'.

A name is a parameter's path, such as 'depth/groups/mlp_layer/up/kernel', as `python -m
train.inspect --params` lists them. The rule is that of the files of `train.data.file_search`: in a
part of the path `*`, `?` and `[...]` stand for other characters, and `**` for any number of parts,
including zero. What stands above other parameters is short for all below it: 'head' for
'head/kernel' and 'head/bias'.
"""

import fnmatch
import math
from collections.abc import Iterable, Sequence
from typing import Any

from odeformer.errors import LARGEST_FLOAT
from train.config.setting import Range
from train.errors import BadInput

_ANY_DEPTH = "**"


def matches(name: str, pattern: str) -> bool:
    """Returns whether a parameter's name is the pattern's, or lies below one that is."""
    return _match(name.split("/"), pattern.split("/"))


def matches_any(name: str, patterns: Iterable[str]) -> bool:
    """Returns whether a parameter's name matches one of several patterns."""
    return any(matches(name, pattern) for pattern in patterns)


def _match(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return True

    first, remaining = pattern[0], pattern[1:]
    if first == _ANY_DEPTH:
        return any(_match(parts[n:], remaining) for n in range(len(parts)))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], first) and _match(parts[1:], remaining)


def factors(entries: Iterable[str]) -> dict[str, float]:
    """Returns {pattern: factor} of entries 'PATTERN=FACTOR'."""
    return {pattern: float(text) for pattern, _, text in (e.rpartition("=") for e in entries)}


def factor_of(name: str, by_pattern: dict[str, float]) -> float:
    """Returns the factor of a parameter: that of the last pattern that it matches, or 1."""
    found = [factor for pattern, factor in by_pattern.items() if matches(name, pattern)]
    return found[-1] if found else 1.0


def _are_patterns(values: Any) -> bool:
    return all(isinstance(value, str) and all(value.split("/")) for value in values)


def _are_factors(values: Any) -> bool:
    for value in values:
        pattern, _, text = value.rpartition("=") if isinstance(value, str) else ("", "", "")
        try:
            factor = float(text)
        except ValueError:
            return False
        if not _are_patterns([pattern]) or not 0 < factor <= LARGEST_FLOAT:
            return False
    return True


PATTERNS = Range("a list of names or patterns of parameters, as head,**/bias", _are_patterns)
FACTORS = Range(
    "a list of PATTERN=FACTOR, as head=10,patches=0.1, with factors above 0", _are_factors
)


def check_matching(key: str, patterns: Iterable[str], names: Sequence[str], what: str = "") -> None:
    """Refuses a pattern that matches none of the names; the message lists what could be meant.

    Args:
      key: that holds the patterns.
      patterns: the patterns.
      names: of the parameters.
      what: that they are, if they are not all of the model's.
    """
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            tops = ", ".join(dict.fromkeys(_group(name) for name in names))
            raise BadInput(
                f"config.{key}: {pattern!r} matches no parameter{what}: there are {tops}; "
                "`python -m train.inspect --params --config=...` lists all"
            )


def _group(name: str) -> str:
    """The parts of a name that a message shows: the first, or a depth's down to its layer."""
    parts = name.split("/")
    return "/".join(parts[:3] if parts[0] == "depth" else parts[:1])


def check_trained(freeze: Sequence[str], names: Sequence[str]) -> list[str]:
    """Returns the names of the parameters that are trained.

    Raises:
      BadInput: none is.
    """
    trained = [name for name in names if not matches_any(name, freeze)]
    if not trained:
        raise BadInput(
            f"config.optimizer.freeze={list(freeze)} leaves nothing to train: all "
            f"{len(names)} parameters match; leave out those that are to be trained, as the head"
        )
    return trained


def check_layer_decay(decay: float, layers: int) -> None:
    """Refuses a decay that is 0, as float32, for the lowest of so many layers."""
    if decay and (layers + 1) * math.log(decay) < math.log(1e-37):
        raise BadInput(
            f"config.optimizer.layer_decay={decay} over {layers} layers is less than 1e-37 for "
            "the lowest: give a value nearer to 1, or name what is not trained in "
            "config.optimizer.freeze"
        )
