"""Values of `--config.KEY=VALUE` for keys of several kinds, which ml_collections does not read.

A key that may be without a value takes None, and one that may be a number or several takes them
with commas: --config.optimizer.clip_norm=None, --config.model.image_size=8,16.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from odeformer import DepthConfig
from train.config.run import TASKS, RunConfig, flatten
from train.errors import BadInput

_NONE = "None"
_FLAG = re.compile("--?[A-Za-z]")
_STUDY: dict[str, Any] = {"folds": int | None, "matched": Mapping[str, Any] | None}


def hints_of(cfg: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the types of the keys of a run's or a study's config, as {'depth.rtol': ...}.

    Args:
      cfg: the config; of a task that is unknown the types are those of the values it has.
    """
    values = flatten(cfg.to_dict()).items()
    hints: dict[str, Any] = {k: type(v) for k, v in values if isinstance(v, str | int | float)}
    if "grid" not in cfg:
        return hints | _run_hints(cfg)
    run = cfg.get("config")
    inner = _run_hints(run) if isinstance(run, ml_collections.ConfigDict) else {}
    return hints | {f"config.{k}": hint for k, hint in inner.items()} | _STUDY


def _run_hints(cfg: Any) -> dict[str, Any]:
    task = cfg.get("task")
    kind = TASKS.get(task) if isinstance(task, str) else None
    if kind is None:
        return {}
    groups = {"depth": DepthConfig, "model": kind.model, "data": kind.data}
    hints = _flat({**typing.get_type_hints(RunConfig), **groups}, "")
    return {k: hint for k, hint in hints.items() if not k.startswith("model.depth.")}


def _flat(hints: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat = {}
    for key, hint in hints.items():
        inner = typing.get_type_hints(hint) if dataclasses.is_dataclass(hint) else None
        flat |= {f"{prefix}{key}": hint} if inner is None else _flat(inner, f"{prefix}{key}.")
    return flat


def split(
    argv: Sequence[str], name: str, hints: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """Takes what is read here off a command line.

    Args:
      argv: the command line.
      name: of the flag whose keys are overridden, 'config' or another.
      hints: the keys' types.

    Returns:
      The rest of the command line, and the values by key, the last one given of each.

    Raises:
      BadInput: a value of a kind that its key does not take.
    """
    rest, values = [], {}
    for option, value, arguments in _options(argv):
        key = option.removeprefix(f"{name}.")
        hint = hints.get(key) if key != option else None
        if value is None or hint is None or (not _kinds(hint)[1:] and value != _NONE):
            rest += arguments
        else:
            values[key] = _read(value, hint, f"{name}.{key}")
    return rest, values


def assign(cfg: ml_collections.ConfigDict, values: Mapping[str, Any], hints: Mapping[str, Any]):
    """Sets keys of a config, whatever type they had.

    Args:
      cfg: the config; changed.
      values: by key.
      hints: the keys' types.
    """
    for key, value in values.items():
        *groups, last = key.split(".")
        holder: Any = cfg
        for group in groups:
            holder = holder[group]
        with holder.ignore_type():
            holder[last] = value
        if holder.get_type(last) is types.NoneType:  # typed, so that it can be given a value again
            kinds = [typing.get_origin(kind) or kind for kind in _kinds(hints[key])]
            with cfg.unlocked():
                del holder[last]
                holder[last] = config_dict.placeholder(kinds[kinds[0] is types.NoneType])


def _options(argv: Sequence[str]) -> Iterator[tuple[str, str | None, list[str]]]:
    """Yields (name, value or None, the arguments it was made of) of a command line."""
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        option, equals, value = argument.lstrip("-").partition("=")
        if argument == "--":
            yield "", None, [argument, *rest]
            return
        if not argument.startswith("-"):
            yield "", None, [argument]
        elif equals:
            yield option, value, [argument]
        elif "." in option and rest and not _FLAG.match(rest[0]):
            following = rest.pop(0)
            yield option, following, [argument, following]
        else:
            yield option, None, [argument]


def _kinds(hint: Any) -> tuple[Any, ...]:
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if is_union else (hint,)


def _read(text: str, hint: Any, where: str) -> Any:
    """Reads a value as the first of its key's kinds that it fits."""
    kinds = _kinds(hint)
    if text == _NONE and types.NoneType in kinds:
        return None
    for kind in kinds:
        try:
            if kind in (int, float):
                return kind(text)
            if kind is str and text != _NONE:
                return text
            if typing.get_origin(kind) is tuple:
                (part, *_) = typing.get_args(kind)
                return tuple(
                    part(entry) for entry in text.strip("()[]").split(",") if entry.strip()
                )
        except ValueError:
            continue
    raise BadInput(f"{where} takes {' or '.join(map(_in_words, kinds))}; {text} was given")


def _in_words(kind: Any) -> str:
    if kind is types.NoneType:
        return _NONE
    if typing.get_origin(kind) is tuple:
        return f"{len(typing.get_args(kind))} numbers with commas"
    return "keys of its own" if typing.get_origin(kind) else kind.__name__
