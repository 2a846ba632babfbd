"""What the programs report in a line: bad input (exit code 2), failures (exit code 1), warnings."""

import contextlib
import sys


class BadInput(ValueError):
    """A flag, a config, a workdir or a data set that the program refuses; the text says why."""


class ProcessError(RuntimeError):
    """The processes of a run do not come together; the text says what is missing."""


class RunError(RuntimeError):
    """A run that cannot go on, or cannot be saved; the text says why, and where it stands."""


class Stopped(Exception):
    """A run that stopped before its end, its state saved; the text says how it is gone on with."""


def first_line(error: BaseException) -> str:
    """Returns 'TYPE: TEXT', in a line, of what an error was caused by."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def warn(text: str) -> None:
    """Prints 'warning: TEXT' to standard error, at once; of what does not stop the program.

    Args:
      text: a line that says what is wrong, what follows and what can be done.
    """
    with contextlib.suppress(OSError):  # standard error may be a file on the disk that is full
        print(f"warning: {text}", file=sys.stderr, flush=True)
