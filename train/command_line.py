"""Flags, help and exit codes of the programs.

Exit codes: 0 done, 1 failed, 2 bad input (the message on standard error).
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from odeformer.errors import unknown
from train.config import flatten
from train.errors import BadInput

DONE, FAILED, BAD_INPUT = 0, 1, 2


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str], help_text: str | None) -> int:
    """Runs a program and returns its exit code; bad input is told in a line, not in a traceback."""
    if any(arg in ("--help", "-h", "--helpfull", "-help") for arg in argv[1:]):
        _print_help(argv, help_text or "")
        return DONE
    logging.set_verbosity(logging.WARNING)
    try:
        main(argv)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return FAILED
    return DONE


def flag_value(argv: Sequence[str], name: str) -> str | None:
    """Returns the value of --name=value or --name value, before the flags are parsed."""
    for i, arg in enumerate(argv[1:], 1):
        option, equals, value = arg.lstrip("-").partition("=")
        if arg.startswith("-") and option == name:
            return value if equals else (argv[i + 1] if i + 1 < len(argv) else None)
    return None


def parse_with_config(
    argv: Sequence[str], cfg: ml_collections.ConfigDict | None = None
) -> ml_collections.ConfigDict:
    """Parses the flags, --config.key=value among them, and returns the config they leave.

    Args:
      argv: the command line.
      cfg: the config whose keys the flags override; None to read it off --config=FILE.py.

    Raises:
      BadInput: a flag or key that is unknown (names the nearest), or a value that does not fit.
    """
    try:
        if cfg is None:
            config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
        else:
            config_flags.DEFINE_config_dict("config", cfg, "The run's config.", lock_config=True)
        rest = flags.FLAGS(list(argv))
    except FileNotFoundError as error:
        raise BadInput(f"--config: {error.filename or error} does not exist") from error
    except flags.UnrecognizedFlagError as error:
        raise _refusal(error.flagname, error.flagvalue, argv) from error
    except (flags.Error, TypeError, ValueError) as error:
        raise BadInput(str(error)) from error
    if len(rest) > 1:
        raise BadInput(f"unexpected argument {rest[1]!r}: flags are written --name=value")
    parsed = flags.FLAGS["config"].value
    if parsed is None:
        raise BadInput("--config is missing: give a file of configs/, e.g. configs/digits.py")
    return parsed


def _refusal(name: str, value: str | None, argv: Sequence[str]) -> BadInput:
    """Says why a flag was not recognised: no such flag, no such key, or a value of another type."""
    cfg = flags.FLAGS["config"].value
    if not name.startswith("config.") or cfg is None:
        known = [flag for flag in flags.FLAGS if flag in ("config", "workdir", "split", "solvers")]
        return BadInput(str(unknown("flag", f"--{name}", [f"--{flag}" for flag in known])))
    key, keys = name.removeprefix("config."), flatten(cfg.to_dict())
    if key not in keys:
        return BadInput(str(unknown("config key", key, sorted(keys))))
    holder: Any = cfg
    *groups, last = key.split(".")
    for group in groups:
        holder = holder[group]
    kind = holder.get_type(last)
    given = flag_value(argv, name) if value is None else value
    return BadInput(f"config.{key} takes {kind.__name__}; {given!r} was given")


def _print_help(argv: Sequence[str], help_text: str) -> None:
    print(help_text.strip())
    print("\nFlags:")
    flag_values = flags.FLAGS.flags_by_module_dict().get("__main__", [])
    for flag in flag_values:
        print(f"  --{flag.name}={flag.default_as_str or '...'}\n      {flag.help}")
    workdir, file = flag_value(argv, "workdir"), flag_value(argv, "config")
    del workdir
    if file:
        spec = config_flags.DEFINE_config_file("config", file)
        flags.FLAGS([argv[0], f"--config={file}"])
        print(f"\nConfig keys of {file} (override with --config.key=value):")
        for key, value in flatten(spec.value.to_dict()).items():
            print(f"  {key} = {value}")
