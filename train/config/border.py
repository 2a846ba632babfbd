"""The border: a ConfigDict becomes the one frozen config that everything after it reads."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from odeformer import DepthConfig
from odeformer.errors import LARGEST_FLOAT, unknown
from train.config.names import refuse_old_name
from train.config.run import TASKS, Kind, RunConfig
from train.config.setting import PartOfRun, Setting, kinds_of, one_of, settings_of
from train.errors import BadInput
from train.files import absolute

Given = ml_collections.ConfigDict | Mapping[str, Any]


def from_config_dict(given: Given, changes: Mapping[str, Any] | None = None) -> RunConfig:
    """Returns the frozen config of a run.

    Args:
      given: the keys that differ from their defaults, in their groups; `depth`, the fields of
        DepthConfig, is a group of its own.
      changes: values that replace those, as {'depth.solver': 'rk4'}.

    Raises:
      BadInput: a key that is unknown (the message names the nearest known one), a value of the
        wrong type or out of range, or values that do not fit one another.
    """
    changes = changes or {}
    given = given.to_dict() if isinstance(given, ml_collections.ConfigDict) else given
    task = task_of({**given, **changes})
    settings = settings_for(task)
    for key in changes:
        check_key(key, settings)

    values = {"task": task, **_flat(given, settings), **changes}
    values = _defaults(settings) | _sizes(TASKS[task], values) | values
    for key, setting in settings.items():
        if isinstance(values[key], PartOfRun):
            values[key] = values[key].of(values["train_steps"])
        values[key] = checked(key, values[key], setting)

    return _build(RunConfig, values, "", TASKS[task])


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


def task_of(given: Given) -> str:
    """Returns the task of a config, which says what keys it has.

    Raises:
      BadInput: there is no such task.
    """
    setting = settings_of(RunConfig)["task"]
    task = _typed("config.task", given.get("task", setting.default), setting)
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
    if key in known:
        return

    refuse_old_name(key)
    group = key.rpartition(".")[0]
    prefix = f"{group}." if group else ""
    # Of a key that is inside a group, its first name alone: 'data.augment', not each key of it.
    siblings = {
        prefix + name.removeprefix(prefix).partition(".")[0]
        for name in known
        if name.startswith(prefix)
    }
    raise BadInput(str(unknown("config key", key, sorted(siblings or known))))


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
    given: Mapping[str, Any], settings: Mapping[str, Setting], path: str = ""
) -> dict[str, Any]:
    """The values by key; refuses keys that do not exist."""
    flat = {}

    for name, value in given.items():
        key = f"{path}{name}"
        if key == "model.depth":
            raise BadInput(
                "config.model.depth is no key: the depth is a group of its own; set config.depth"
            )

        if any(known.startswith(f"{key}.") for known in settings):
            if not isinstance(value, Mapping):
                raise BadInput(f"config.{key} is a group of keys; {value!r} was given")
            flat |= _flat(value, settings, f"{key}.")
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


def checked(key: str, value: Any, setting: Setting, of: str = "config") -> Any:
    """Returns a value as its setting's type.

    Args:
      key: its name.
      value: as it was given.
      setting: what is accepted.
      of: what it is a key of, for the message.

    Raises:
      BadInput: a value of another type, or out of range.
    """
    value = _typed(f"{of}.{key}", value, setting)
    if value is not None and not setting.accepted.contains(value):
        or_none = " (None is accepted, too)" if type(None) in kinds_of(setting.kind) else ""
        raise BadInput(f"{of}.{key} is {setting.accepted.text}; {value} was given{or_none}")

    # From the root on, so that a run can be resumed and evaluated from another folder.
    if setting.path and value and value not in setting.words:
        try:
            value = absolute(value)
        except BadInput as error:
            raise BadInput(f"{of}.{key}={error}") from error

    return value


def _typed(key: str, value: Any, setting: Setting) -> Any:
    """A value as its setting's type; an int serves as a float, and a list as a tuple."""
    origins = tuple(typing.get_origin(kind) or kind for kind in kinds_of(setting.kind))
    if isinstance(value, list) and tuple in origins:
        value = tuple(value)

    if isinstance(value, int | float) and not isinstance(value, bool) and float in origins:
        if not abs(value) <= LARGEST_FLOAT:
            raise BadInput(f"{key} is a finite number of float32; {value!r} was given")
        value = float(value)

    wrongly_bool = isinstance(value, bool) and bool not in origins
    if wrongly_bool or not isinstance(value, origins):
        names = " or ".join("None" if o is type(None) else o.__name__ for o in origins)
        raise BadInput(f"{key} takes {names}; {value!r} was given")
    return value


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
