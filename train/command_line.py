"""Flags, help and exit codes of the programs.

Exit codes: 0 done, 1 failed, 2 bad input (the message on standard error), 75 stopped with the
state saved: the same command goes on.
"""

import io
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from odeformer.errors import unknown
from train.config import overrides
from train.config.run import RunConfig, flatten, for_evaluation, from_config_dict
from train.errors import BadInput, ProcessError, RunError, Stopped
from train.files import expand

DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 75  # the last is EX_TEMPFAIL of sysexits.h


def run(
    main: Callable[[Sequence[str]], None],
    argv: Sequence[str],
    own_flags: flags.FlagValues,
    help_text: str | None,
    config_flag: str | None = None,
) -> int:
    """Runs a program and returns its exit code; bad input is told in a line, not in a traceback.

    Args:
      main: the program, given the command line.
      argv: the command line.
      own_flags: the program's flags.
      help_text: what --help prints above them.
      config_flag: the flag that names a config file, or whose keys can be overridden, if any.
    """
    logging.set_verbosity(logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's is none
            # Names of files and texts of users hold what not every terminal can show.
            stream.reconfigure(errors="replace")
    try:
        if any(arg in ("--help", "-h", "--helpfull", "-help") for arg in argv[1:]):
            _print_help(argv, own_flags, help_text or "", config_flag)
        else:
            main(argv)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except (ProcessError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except Stopped as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # who read the output wants no more of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return FAILED
    return DONE


class _PathParser(flags.ArgumentParser):
    """Of flags that name a file or folder, whose `~` is replaced."""

    syntactic_help = "a path, in which ~ is the home folder, or an address such as gs://"

    def parse(self, argument: str) -> str:
        return expand(argument)


def define_path(name: str, help_text: str, own_flags: flags.FlagValues) -> None:
    """Defines a flag that names a file or folder, None by default; its `~` is replaced.

    Args:
      name: of the flag.
      help_text: what --help prints.
      own_flags: the program's flags; the flag is added.
    """
    flags.DEFINE(_PathParser(), name, None, help_text, flag_values=own_flags)


def flag_value(argv: Sequence[str], name: str) -> str | None:
    """Returns the value of --name=value or --name value, before the flags are parsed."""
    for i, arg in enumerate(argv[1:], 1):
        option, equals, value = arg.lstrip("-").partition("=")
        if arg.startswith("-") and option == name:
            return value if equals else (argv[i + 1] if i + 1 < len(argv) else None)
    return None


def parse(argv: Sequence[str], own_flags: flags.FlagValues) -> list[str]:
    """Parses the flags, and returns the arguments that are none.

    Args:
      argv: the command line.
      own_flags: the program's flags; filled in.

    Raises:
      BadInput: a flag that is unknown (names the nearest), or a value that does not fit.
    """
    try:
        return own_flags(list(argv))[1:]
    except flags.UnrecognizedFlagError as error:
        known = [f"--{name}" for name in (*own_flags, "help") if "." not in name]
        raise BadInput(str(unknown("flag", f"--{error.flagname}", known))) from error
    except (flags.Error, TypeError, ValueError) as error:
        raise BadInput(str(error)) from error


def parse_with_config(
    argv: Sequence[str],
    own_flags: flags.FlagValues,
    cfg: ml_collections.ConfigDict | None = None,
    name: str = "config",
) -> ml_collections.ConfigDict:
    """Parses the flags, --config.key=value among them, and returns the config they leave.

    Args:
      argv: the command line.
      own_flags: the program's flags; filled in.
      cfg: the config whose keys the flags override; None to read it off --config=FILE.py.
      name: of the flag, where it is not 'config'.

    Raises:
      BadInput: a flag or key that is unknown (names the nearest), or a value that does not fit.
    """
    base = _load(flag_value(argv, name), name) if cfg is None else cfg
    hints = overrides.hints_of(base)
    _check_keys(argv, base, name, hints)
    argv, values = overrides.split(argv, name, hints)
    if cfg is None:
        argv = [
            _with_home(arg, name, before) for before, arg in zip(["", *argv], argv, strict=False)
        ]
        config_flags.DEFINE_config_file(name, flag_values=own_flags, sys_argv=list(argv))
    else:
        config_flags.DEFINE_config_dict(name, cfg, flag_values=own_flags, sys_argv=list(argv))
    rest = parse(argv, own_flags)
    if rest:
        raise BadInput(f"unexpected argument {rest[0]!r}: flags are written --name=value")
    parsed: Any = own_flags[name].value
    overrides.assign(parsed, values, hints)
    return parsed


def parse_with_run(
    argv: Sequence[str],
    own_flags: flags.FlagValues,
    read_config: Callable[[str], ml_collections.ConfigDict],
) -> tuple[str, RunConfig]:
    """Parses the flags of a program that reads a run, --config.key=value among them.

    Args:
      argv: the command line.
      own_flags: the program's flags, 'workdir' among them; filled in.
      read_config: returns the config of the run in a workdir.

    Returns:
      The workdir, and the run's config as the flags change it; see `config.for_evaluation`.

    Raises:
      BadInput: no workdir, a flag or key that is unknown, or a value that does not fit.
    """
    workdir = flag_value(argv, "workdir")
    if not workdir:
        raise BadInput("--workdir is missing: give the folder of a run")
    workdir = expand(workdir)
    cfg = parse_with_config(argv, own_flags, read_config(workdir))
    return workdir, from_config_dict(for_evaluation(cfg.to_dict(), changed_keys(argv)))


def _load(spec: str | None, name: str) -> ml_collections.ConfigDict:
    """Returns the config of a FILE.py or FILE.py:argument, without its overrides."""
    if not spec:
        raise BadInput(f"--{name} is missing: give a file of configs/, e.g. configs/digits.py")
    spec = _expand_file(spec)
    if not pathlib.Path(spec.partition(":")[0]).is_file():
        raise BadInput(f"--{name}: {spec.partition(':')[0]} is not a file")
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


def _expand_file(spec: str) -> str:
    """Returns a FILE.py or FILE.py:argument with the file's `~` replaced."""
    file, colon, argument = spec.partition(":")
    return expand(file) + colon + argument


def _with_home(argument: str, name: str, before: str) -> str:
    """Returns --NAME=FILE.py, or the FILE.py behind --NAME, with its `~` replaced."""
    flag, equals, spec = argument.partition("=")
    if before.lstrip("-") == name and before.startswith("-"):
        return _expand_file(argument)
    if flag.startswith("-") and flag.lstrip("-") == name and equals:
        return f"{flag}={_expand_file(spec)}"
    return argument


def changed_keys(argv: Sequence[str], name: str = "config") -> set[str]:
    """Returns the keys that --config.key=value flags set, e.g. {'depth.solver'}."""
    prefix = f"{name}."
    names = (arg.lstrip("-").partition("=")[0] for arg in argv[1:] if arg.startswith("-"))
    names = (name.removeprefix("no") if name.startswith(f"no{prefix}") else name for name in names)
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def _check_keys(
    argv: Sequence[str], cfg: ml_collections.ConfigDict, name: str, hints: Mapping[str, Any]
) -> None:
    """Refuses --config.key where the config has no such key."""
    keys = flatten(cfg.to_dict())
    groups = {key for key in hints if key in cfg}  # that may be None as a whole
    for key in changed_keys(argv, name):
        if key not in keys and key not in groups:
            raise BadInput(str(unknown("config key", key, sorted(keys))))


def _print_help(
    argv: Sequence[str], own_flags: flags.FlagValues, help_text: str, config_flag: str | None
) -> None:
    print(help_text.strip())
    print("\nFlags:")
    for flag in (own_flags[name] for name in own_flags):
        default = f" (default {flag.default})" if flag.default else ""
        print(f"  --{flag.name}\n      {flag.help}{default}")
    if config_flag is None:
        return
    print(
        f"  --{config_flag}.KEY=VALUE\n      Overrides a key of the {config_flag}: None for one "
        "that may be without a value, 8,16 for a pair."
    )
    spec = flag_value(argv, config_flag)
    if spec:
        print(f"\nThe keys of {spec}:")
        for key, value in flatten(_load(spec, config_flag).to_dict()).items():
            print(f"  {key} = {value}")
