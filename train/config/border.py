"""The border: a ConfigDict becomes the one frozen config that everything after it reads."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from odeformer import DepthConfig
from odeformer.errors import unknown
from train.config.faults import build_or_collect
from train.config.names import refuse_old_name
from train.config.run import TASKS, Kind, RunConfig
from train.config.setting import PartOfRun, Setting, checked, one_of, settings_of, typed
from train.config.suggestions import unknown_key
from train.errors import BadInput, collecting, refuse

# What a file of configs/ returns, and the command line changes.
Cfg = ml_collections.ConfigDict | Mapping[str, Any]


def from_config_dict(
    cfg: Cfg, changes: Mapping[str, Any] | None = None, earlier: Sequence[BadInput] = ()
) -> RunConfig:
    """Returns the frozen config of a run.

    Args:
      cfg: the keys that differ from their defaults, in their groups; `depth`, the fields of
        DepthConfig, is a group of its own.
      changes: values that replace those, as {'depth.solver': 'rk4'}.
      earlier: what the same input was refused for already, to be raised with what else is wrong.

    Raises:
      BadInput: keys that are unknown (the message names the nearest known ones), values of the
        wrong type or out of range, or values that do not fit one another: all that is wrong.
    """
    changes, refusals = changes or {}, list(earlier)
    cfg = cfg.to_dict() if isinstance(cfg, ml_collections.ConfigDict) else cfg
    task = task_of({**cfg, **changes})
    settings, kind = settings_for(task), TASKS[task]
    values = {"task": task, **_flat(cfg, settings, refusals)}
    values |= known_changes(changes, settings, refusals)

    defaults, sizes = {**_defaults(settings), "task": task}, None
    with collecting(refusals):
        sizes = _sizes(kind, values)
    if sizes is None:
        del values["model.preset"]

    defaults |= sizes or {}
    values = _checked_values(defaults | values, defaults, settings, refusals)

    # Without the sizes of its preset a config's other values do not fit one another.
    config = None
    if sizes is not None:
        config = build_or_collect(
            lambda values: _build(RunConfig, values, "", kind), values, defaults, refusals
        )
    refuse(refusals)
    assert config is not None
    return config


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Returns a config as nested plain values, complete, which `from_config_dict` accepts."""
    values = dataclasses.asdict(config)
    values["depth"] = values["model"].pop("depth")
    return values


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {'depth.solver': 'rk4', ...} of a nested config."""
    flat = {}

    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value

    return flat


def task_of(cfg: Cfg) -> str:
    """Returns the task of a config, which says what keys it has.

    Raises:
      BadInput: there is no such task.
    """
    setting = settings_of(RunConfig)["task"]
    task = typed("config.task", cfg.get("task", setting.default), setting)
    if task not in TASKS:
        raise BadInput(f"config.task: {unknown('task', task, TASKS)}")
    return task


def settings_for(task: str) -> dict[str, Setting]:
    """Returns every key of a run of that task, as {'depth.solver': ...}, in the config's order."""
    kind = TASKS[task]
    settings = dict(_walk(RunConfig, "", kind))
    settings["model.preset"] = Setting(
        str | None,
        None,
        "Sizes of odeformer.presets, for the keys of model and depth.layers that are left out.",
        one_of(*kind.presets),
    )
    return settings


def groups_for(task: str) -> dict[str, type]:
    """Returns the dataclass of each group of keys, as {'data.augment': ...}; '' is the whole."""
    groups = {"": RunConfig}

    def descend(cls: type, path: str) -> None:
        for _, hint, where in _fields(cls, path, TASKS[task]):
            if dataclasses.is_dataclass(hint):
                groups[where] = typing.cast(type, hint)
                descend(groups[where], where)

    descend(RunConfig, "")
    return groups


def check_key(key: str, known: Mapping[str, Any]) -> None:
    """Raises BadInput for a key that is not known: names what it is called now, or the nearest."""
    if key not in known:
        refuse_old_name(key)
        raise unknown_key(key, known)


def known_changes(
    changes: Mapping[str, Any], known: Mapping[str, Any], refusals: list[BadInput]
) -> dict[str, Any]:
    """Returns the changes whose keys are known; adds a refusal for each other one."""
    for key in changes:
        with collecting(refusals):
            check_key(key, known)

    return {key: value for key, value in changes.items() if key in known}


def _fields(cls: Any, path: str, kind: Kind) -> Iterator[tuple[str, Any, str]]:
    """Name, type and place in the config of each field of a dataclass."""
    hints = typing.get_type_hints(cls)
    if cls is RunConfig:
        hints |= {"model": kind.model, "data": kind.data}

    for field in dataclasses.fields(cls):
        # The depth is a group of its own, next to the model that it belongs to.
        if field.name == "depth":
            yield field.name, DepthConfig, "depth"
        else:
            yield field.name, hints[field.name], f"{path}.{field.name}" if path else field.name


def _walk(cls: type, path: str, kind: Kind) -> Iterator[tuple[str, Setting]]:
    """The settings of a dataclass and of those in it, by key."""
    own = settings_of(cls)

    for name, hint, where in _fields(cls, path, kind):
        if dataclasses.is_dataclass(hint):
            yield from _walk(typing.cast(type, hint), where, kind)
        else:
            yield where, own[name]


def _flat(
    cfg: Mapping[str, Any],
    settings: Mapping[str, Setting],
    refusals: list[BadInput],
    path: str = "",
) -> dict[str, Any]:
    """The values by key; adds a refusal for each key that does not exist."""
    flat = {}

    for name, value in cfg.items():
        key = f"{path}{name}"
        with collecting(refusals):
            if key == "model.depth":
                raise BadInput(
                    "config.model.depth is no key: the depth is a group of its own; set "
                    "config.depth"
                )

            if any(known.startswith(f"{key}.") for known in settings):
                if not isinstance(value, Mapping):
                    raise BadInput(f"config.{key} is a group of keys; {value!r} was given")
                flat |= _flat(value, settings, refusals, f"{key}.")
            else:
                check_key(key, settings)
                flat[key] = value

    return flat


def _defaults(settings: Mapping[str, Setting]) -> dict[str, Any]:
    return {key: setting.default for key, setting in settings.items()}


def _sizes(kind: Kind, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the preset that is named, if one is."""
    name = values.get("model.preset")
    if name is None:
        return {}
    if name not in kind.presets:
        accepted = (*kind.presets, "None")
        raise BadInput(f"config.model.preset: {unknown('preset', name, accepted)}")

    sizes = dataclasses.asdict(kind.preset(name))
    layers = sizes.pop("depth")["layers"]
    return {f"model.{key}": value for key, value in sizes.items()} | {"depth.layers": layers}


def _checked_values(
    values: Mapping[str, Any],
    defaults: dict[str, Any],
    settings: Mapping[str, Setting],
    refusals: list[BadInput],
) -> dict[str, Any]:
    """The values as their settings' types; the default, and a refusal, for each that is none."""
    accepted: dict[str, Any] = {}

    for key, setting in settings.items():
        # The number of steps is accepted before those that are a part of it.
        if isinstance(defaults[key], PartOfRun):
            defaults[key] = defaults[key].of(accepted["train_steps"])
        value = defaults[key] if isinstance(values[key], PartOfRun) else values[key]

        accepted[key] = defaults[key]
        with collecting(refusals):
            accepted[key] = checked(key, value, setting)

    return accepted


def _build(cls: Any, values: Mapping[str, Any], path: str, kind: Kind) -> Any:
    """Builds a dataclass, and those in it, from the values by key."""
    fields = {
        name: _build(hint, values, where, kind) if dataclasses.is_dataclass(hint) else values[where]
        for name, hint, where in _fields(cls, path, kind)
    }

    try:
        return cls(**fields)
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(f"config.{path}: {error}") from error
