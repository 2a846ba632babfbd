"""Types of the benchmarks' command-line arguments."""

import argparse


def positive(text: str) -> int:
    """Returns a whole number from 1, or refuses the argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 is accepted; {text!r} was given")
    return int(text)
