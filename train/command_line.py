"""Flags, help and exit codes of the programs.

Exit codes: 0 done, 1 failed, 2 bad input (the message on standard error), 75 stopped with the
state saved: the same command resumes it.
"""

import io
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import flags, logging

from train.config import border
from train.config.early_flags import define_modules, flag_value, import_named, import_own, load_file
from train.config.help import list_config, parse_value
from train.config.modules import warn_of_missing
from train.config.run import RunConfig
from train.config.setting import Setting
from train.config.stored import for_evaluation
from train.config.suggestions import unknown_flag
from train.errors import BadInput, ProcessError, RunError, Stopped, collecting, refuse
from train.files import expand
from train.startup import asks_for_help

DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 75  # the last is EX_TEMPFAIL of sysexits.h


def run(
    main: Callable[[Sequence[str]], None],
    argv: Sequence[str],
    own_flags: flags.FlagValues,
    help_text: str | None,
    config_flag: str | None = None,
) -> int:
    """Runs a program and returns its exit code; bad input is one line, without a traceback.

    Args:
      main: the program, given the command line.
      argv: the command line.
      own_flags: the program's flags.
      help_text: what --help prints above them.
      config_flag: the flag that names a config file, or whose keys can be overridden, if any.
    """
    logging.set_verbosity(logging.WARNING)

    # Names of files and texts of users hold what not every terminal can show. A notebook's streams
    # are of another kind, and can.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")

    try:
        import_named(argv)
        if asks_for_help(argv):
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


class _StepParser(flags.ArgumentParser):
    """Of flags that name a checkpoint: a step, or the word 'best'."""

    def parse(self, argument: str) -> int | str:
        if argument != "best" and not argument.isdecimal():
            raise ValueError("a step is a whole number, or the word 'best'")
        return argument if argument == "best" else int(argument)


def define_step(own_flags: flags.FlagValues) -> None:
    """Defines --step, None by default, of a program that reads a checkpoint."""
    text = "Step of the checkpoint, or 'best'; by default the newest sound one."
    flags.DEFINE(_StepParser(), "step", None, text, own_flags)


def parse(
    argv: Sequence[str], own_flags: flags.FlagValues, keys: Iterable[str] = (), name: str = "config"
) -> list[str]:
    """Parses the flags, and returns the arguments that are none.

    Args:
      argv: the command line.
      own_flags: the program's flags; filled in.
      keys, name: those of a config that a flag may be mistaken for, and what stands before them.

    Raises:
      BadInput: a flag that is unknown (names the nearest), or a value that does not fit.
    """
    define_modules(own_flags)
    try:
        return own_flags(list(argv))[1:]
    except flags.UnrecognizedFlagError as error:
        known = [flag for flag in (*own_flags, "help") if "." not in flag]
        raise unknown_flag(error.flagname, known, keys, name) from error
    except (flags.Error, TypeError, ValueError) as error:
        raise BadInput(str(error)) from error


def parse_config(
    argv: Sequence[str],
    own_flags: flags.FlagValues,
    name: str = "config",
    complete: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> RunConfig:
    """Parses the flags, and returns the config of --config=FILE.py as --config.key=value change it.

    Args:
      argv: the command line.
      own_flags: the program's flags; filled in.
      name: of the flag, where it is not 'config'.
      complete: returns the file's config and the changes to it, as more changes: values for keys
        that are left out; called where no flag was refused.

    Raises:
      BadInput: flags or keys that are unknown (names the nearest), or values that do not fit.
    """
    file = load_file(argv, name)
    define_file(name, own_flags)

    # Before anything is checked: the names that they register are accepted.
    modules = import_own(argv, name, file)
    settings = border.settings_for(border.task_of(file))
    changes, refusals = collect_changes(argv, own_flags, name, settings)
    changes |= modules

    # Flags that were refused are not parsed, and --workdir has no value yet.
    if complete is not None and not refusals:
        with collecting(refusals):
            changes = complete(file, changes)
    return border.from_config_dict(file, changes, refusals)


def parse_run(
    argv: Sequence[str],
    own_flags: flags.FlagValues,
    read_config: Callable[[str], RunConfig],
    arguments: list[str] | None = None,
) -> tuple[str, RunConfig]:
    """Parses the flags of a program that reads a run, --config.key=value among them.

    Args:
      argv: the command line.
      own_flags: the program's flags, 'workdir' among them; filled in.
      read_config: returns the config of the run in a workdir.
      arguments: filled with the arguments that are no flags; None to refuse them.

    Returns:
      The workdir, and the run's config as the flags change it; see `for_evaluation`.

    Raises:
      BadInput: no workdir, flags or keys that are unknown, or values that do not fit.
    """
    workdir = flag_value(argv, "workdir")
    if not workdir:
        raise BadInput("--workdir is missing: give the folder of a run")

    import_named(argv)
    config = read_config(workdir := expand(workdir))
    warn_of_missing(workdir, config.modules)
    stored = border.flatten(border.to_dict(config))
    settings = {key: s for key, s in border.settings_for(config.task).items() if key in stored}
    changes, refusals = collect_changes(argv, own_flags, "config", settings, arguments)
    return workdir, for_evaluation(config, changes, refusals)


def parse_changes(
    argv: Sequence[str], own_flags: flags.FlagValues, name: str, settings: Mapping[str, Setting]
) -> dict[str, Any]:
    """Returns the values that `collect_changes` does; raises BadInput for all that is refused."""
    changes, refusals = collect_changes(argv, own_flags, name, settings)
    refuse(refusals)
    return changes


def collect_changes(
    argv: Sequence[str],
    own_flags: flags.FlagValues,
    name: str,
    settings: Mapping[str, Setting],
    arguments: list[str] | None = None,
) -> tuple[dict[str, Any], list[BadInput]]:
    """Parses the flags, and returns the values of --config.key=value by key, and what is refused.

    Args:
      argv: the command line.
      own_flags: the program's flags; filled in.
      name: what stands before each key, e.g. 'config'.
      settings: every key that can be set.
      arguments: filled with the arguments that are no flags; None to refuse them.
    """
    refusals: list[BadInput] = []
    given = sorted({key for arg in argv[1:] if (key := _changed_key(arg, name)) is not None})
    keys = border.known_changes(dict.fromkeys(given), settings, refusals)

    for key in keys:
        # As text: a value may be one of several types.
        define = flags.DEFINE_bool if settings[key].kind is bool else flags.DEFINE_string
        define(f"{name}.{key}", None, settings[key].help, own_flags)

    with collecting(refusals):
        known = [arg for arg in argv if (key := _changed_key(arg, name)) is None or key in keys]
        rest = parse(known, own_flags, settings, name)

        # What stands by itself may be the value of a key that is not known.
        if arguments is not None:
            arguments += rest
        elif rest and not refusals:
            raise BadInput(f"unexpected argument {rest[0]!r}: flags are written --name=value")

    changes = {}
    for key in keys:
        flag = own_flags[f"{name}.{key}"]
        with collecting(refusals):
            if isinstance(flag.value, str):
                changes[key] = parse_value(flag.value, settings[key], f"{name}.{key}")
            # Where the flags were refused some may have no value.
            elif flag.present:
                changes[key] = flag.value

    return changes, refusals


def define_file(name: str, own_flags: flags.FlagValues) -> None:
    """Defines the flag that names a file with a config, which `load_file` loads."""
    flags.DEFINE_string(name, None, "FILE.py, or FILE.py:ARGUMENT.", own_flags)


def _changed_key(arg: str, name: str) -> str | None:
    """The key that an argument --config.key=value or --noconfig.key sets; None if it sets none."""
    option, prefix = arg.lstrip("-").partition("=")[0], f"{name}."
    if option.startswith(f"no{prefix}"):
        option = option.removeprefix("no")

    is_key = arg.startswith("-") and option.startswith(prefix)
    return option.removeprefix(prefix) if is_key else None


def _print_help(
    argv: Sequence[str], own_flags: flags.FlagValues, help_text: str, config_flag: str | None
) -> None:
    print(f"{help_text.strip()}\n\nFlags:")
    define_modules(own_flags)
    for flag in (own_flags[name] for name in own_flags):
        default = f" (default {flag.default})" if flag.default else ""
        text = str(flag.help).partition(";\n")[0]  # without absl's note on flags that repeat
        print(f"  --{flag.name}\n      {text}{default}")

    if config_flag is not None:
        file = load_file(argv, config_flag) if flag_value(argv, config_flag) else None
        if file is not None:
            own = file if config_flag == "config" else file.config
            import_own(argv, "config" if config_flag == "config" else "study.config", own)
        print("\n".join(list_config(config_flag, file)))
