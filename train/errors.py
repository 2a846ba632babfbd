"""What the programs report in one line: bad input (exit code 2), failures (1), warnings."""

import contextlib
import sys
from collections.abc import Iterator, Sequence


class BadInput(ValueError):
    """A flag, a config, a workdir or a data set that the program refuses; the text says why.

    Attributes:
      faults: all that is wrong, a text each.
    """

    def __init__(self, *faults: str):
        """Takes the text of each fault: of several each gets a line."""
        self.faults = faults
        lines = ("\n  " + " ".join(fault.split()) for fault in faults)
        super().__init__(
            faults[0] if len(faults) == 1 else f"{len(faults)} faults:{''.join(lines)}"
        )


@contextlib.contextmanager
def collecting(refusals: list[BadInput]) -> Iterator[None]:
    """Adds a refusal inside it to the list, rather than let it stop the program."""
    try:
        yield
    except BadInput as error:
        refusals.append(error)


def refuse(refusals: Sequence[BadInput]) -> None:
    """Raises BadInput for all that was refused: the refusal itself if it is the only one."""
    if len(refusals) == 1:
        raise refusals[0]
    if refusals:
        raise BadInput(*dict.fromkeys(fault for r in refusals for fault in r.faults))


def no_home(path: str, home: str) -> BadInput:
    """Returns the error for a path whose home folder, '~NAME', is that of no user."""
    return BadInput(
        f"{path}: {home} is nobody's home: give the whole path, or ./{path} for a name that "
        "begins with ~"
    )


class ProcessError(RuntimeError):
    """The processes of a run could not join; the text says what is missing."""


class RunError(RuntimeError):
    """A run that cannot continue, or cannot be saved; the text says why, and at which step."""


class RunDiverged(RunError):
    """A run that diverged too often; the text is the report of it."""


class Stopped(Exception):
    """A run that stopped before its end, its state saved; the text says how to resume it."""


def first_line(error: BaseException) -> str:
    """Returns 'TYPE: TEXT', in one line, for the first cause of an error."""
    # orbax wraps the error of the disk or of tensorstore several times.
    while error.__cause__ is not None:
        error = error.__cause__

    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def warn(text: str) -> None:
    """Prints 'warning: TEXT' to standard error, at once, for what does not stop the program.

    Args:
      text: a line that says what is wrong, what follows and what can be done.
    """
    # Standard error may be a file on a full disk.
    with contextlib.suppress(OSError):
        print(f"warning: {text}", file=sys.stderr, flush=True)
