"""Flags that are read before the others, as what they name says which others there are."""

import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from train.config.modules import import_modules
from train.config.suggestions import no_file
from train.errors import BadInput
from train.files import expand


def flag_value(argv: Sequence[str], name: str) -> str | None:
    """Returns the value of --name=value or --name value, before the flags are parsed."""
    for i, arg in enumerate(argv[1:], 1):
        option, equals, value = arg.lstrip("-").partition("=")
        if arg.startswith("-") and option == name:
            return value if equals else (argv[i + 1] if i + 1 < len(argv) else None)
    return None


def load_file(argv: Sequence[str], name: str) -> Any:
    """Returns the ConfigDict that get_config() of --name=FILE.py or =FILE.py:ARGUMENT returns.

    Raises:
      BadInput: the flag or the file is missing, or the file gives no config.
    """
    spec = flag_value(argv, name)
    if not spec:
        raise BadInput(f"--{name} is missing: give a file of configs/, e.g. configs/digits.py")

    spec = expand(spec)
    if not pathlib.Path(file := spec.partition(":")[0]).is_file():
        raise no_file(name, file)

    values = flags.FlagValues()
    alone = ["", f"--config={spec}"]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=alone)
    try:
        values(alone)
        loaded: Any = values["config"].value
    except Exception as error:  # the file is a program of the user's
        # config_flags puts the error's traceback into a message; its last line is the error itself.
        lines = [line for line in str(error).splitlines() if line.strip(") ")]
        raise BadInput(f"--{name}: {spec} does not give a config: {lines[-1]}") from error

    if not isinstance(loaded, ml_collections.ConfigDict):
        raise BadInput(f"--{name}: get_config() of {spec} does not return a ConfigDict")
    return loaded


def define_modules(own_flags: flags.FlagValues) -> None:
    """Defines --modules, which every program has."""
    if "modules" not in own_flags:
        flags.DEFINE_list(
            "modules",
            [],
            "Files (.py) and modules of your own to import first, comma-separated; those that a "
            "workdir names are not imported by themselves.",
            flag_values=own_flags,
        )


def import_named(argv: Sequence[str]) -> tuple[str, ...]:
    """Imports what --modules names."""
    return import_modules(_names(flag_value(argv, "modules")))


def import_own(argv: Sequence[str], name: str, file: Any) -> dict[str, tuple[str, ...]]:
    """Imports the modules of --modules and of a config, and returns {'modules': their names}.

    Args:
      argv: the command line, whose --NAME.modules replace those of the file.
      name: what stands before each key, e.g. 'config'.
      file: the config.
    """
    text = flag_value(argv, f"{name}.modules")
    own = import_modules(file.get("modules", ()) if text is None else _names(text))
    names = tuple(dict.fromkeys((*own, *import_named(argv))))
    return {"modules": names} if names else {}


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").strip("()[] ").split(",") if name.strip()]
