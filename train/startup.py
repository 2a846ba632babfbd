"""What a program is doing before its first result, a line each: for those who wait for it."""

import contextlib
import sys
from collections.abc import Sequence

# Whether a person started this process as a program, and whether it is the one that reports.
_is_program = _reports = False


def asks_for_help(argv: Sequence[str]) -> bool:
    """Returns whether a command line has the flag --help, in any of its forms."""
    return any(argument in ("--help", "-h", "--helpfull", "-help") for argument in argv[1:])


def announce(name: str, is_first: bool = True) -> None:
    """Reports that a program is importing what it needs, which takes seconds.

    To be called before these imports. Nothing is printed where the module is imported by another,
    where JAX is loaded already (in a notebook), and for --help.

    Args:
      name: the module's `__name__`.
      is_first: whether this process is alone, or the first of several, which alone reports.
    """
    global _is_program
    _is_program = name == "__main__" and "jax" not in sys.modules and not asks_for_help(sys.argv)

    report_as(is_first)
    note("importing JAX and the trainer")


def report_as(is_first: bool) -> None:
    """Turns the notes of a program on, or off if it is not the first of several processes."""
    global _reports
    _reports = _is_program and is_first


def note(text: str) -> None:
    """Prints 'TEXT ...' to standard error, at once; nothing where `announce` printed nothing.

    Args:
      text: what is being done, in a few words, which may take longer than a reader expects.
    """
    # Standard error may be a file on a full disk.
    if _reports:
        with contextlib.suppress(OSError):
            print(f"{text} ...", file=sys.stderr, flush=True)
