"""What the programs report as bad input (exit code 2) rather than as a failure (exit code 1)."""


class BadInput(ValueError):
    """A flag, a config, a workdir or a data set that the program refuses; the text says why."""
