"""Settings as text: listed for --help, and read from the command line."""

import contextlib
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from train.config.border import flatten, from_config_dict, groups_for, settings_for, to_dict
from train.config.run import TASKS, RunConfig
from train.config.setting import Setting, kinds_of, settings_of
from train.config.study import StudyConfig
from train.errors import BadInput

_WIDTH = 100


def list_config(name: str, file: Any) -> Iterator[str]:
    """Yields the lines that list every key of a config, or of a study and its runs.

    Args:
      name: of the flag that names the file, 'study' for a study.
      file: what get_config() of it returns; None to list the keys of all tasks.
    """
    if name == "study":
        # A study holds the config of its runs.
        name, file = "study.config", None if file is None else file.config
        yield from list_group("study", StudyConfig)

    yield from list_keys(name, None if file is None else from_config_dict(file))


def list_keys(name: str, config: RunConfig | None = None) -> Iterator[str]:
    """Yields the lines that list every key, group by group.

    Args:
      name: what stands before each key, e.g. 'config'.
      config: the run whose keys are listed, with their values where these are not the defaults;
        None for the keys of all tasks.
    """
    tasks = TASKS if config is None else (config.task,)
    values = {} if config is None else flatten(to_dict(config))
    listed = set()

    for task in tasks:
        settings = settings_for(task)
        for group, cls in groups_for(task).items():
            keys = [key for key in settings if key.rpartition(".")[0] == group]
            # What the tasks share is listed once.
            if (group, cls) in listed or not keys:
                continue

            listed.add((group, cls))
            yield f"\n{group or 'The run'}: {_first_line(cls)}"
            for key in keys:
                yield from _lines(f"{name}.{key}", settings[key], values.get(key))


def list_group(name: str, cls: type) -> Iterator[str]:
    """Yields the lines that list the settings of one dataclass."""
    yield f"\n{name}: {_first_line(cls)}"
    for key, setting in settings_of(cls).items():
        yield from _lines(f"{name}.{key}", setting, None)


def _lines(flag: str, setting: Setting, value: Any) -> Iterator[str]:
    yield f"  --{flag}={kind_text(setting)}"

    text = setting.help
    if setting.accepted.text:
        text += f" {setting.accepted.text[:1].upper()}{setting.accepted.text[1:]}."
    text += f" Default: {_shown(setting.default)}."
    if value is not None and _shown(value) != _shown(setting.default):
        text += f" Here: {_shown(value)}."

    indent = " " * 6
    yield textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def _shown(value: Any) -> str:
    """A value as the command line takes it: 'attention,mlp' for the tuple of these."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def parse_value(text: str, setting: Setting, key: str) -> Any:
    """Returns the value that a text stands for: 3, 1e-3, rk4, '8,16', or None where it is accepted.

    Raises:
      BadInput: it stands for no value of the setting's type.
    """
    kinds = kinds_of(setting.kind)
    if type(None) in kinds and text == "None":
        return None

    for kind in kinds:
        with contextlib.suppress(ValueError):
            if kind in (int, float) or (kind is str and text != "None"):
                return kind(text)
            if typing.get_origin(kind) is tuple:
                return _parse_tuple(text, typing.get_args(kind))

    raise BadInput(f"{key} takes {kind_text(setting)}; {text} was given")


def _parse_tuple(text: str, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    """The tuple of a text such as '8,16' or '(8, 16)'; of how many entries is checked later."""
    parts = [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
    return tuple(kinds[0](part) for part in parts)


def kind_text(setting: Setting) -> str:
    """Returns a setting's type in words: 'float or None', 'int or 2 numbers with commas'."""
    return " or ".join(map(_in_words, kinds_of(setting.kind)))


def _in_words(kind: Any) -> str:
    if kind is type(None):
        return "None"

    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is not tuple:
        return kind.__name__
    what = "numbers" if arguments[0] is int else "words"
    return f"{what} with commas" if ... in arguments else f"{len(arguments)} {what} with commas"


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]
