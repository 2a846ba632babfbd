"""What the programs report in a line: bad input (exit code 2), and failures (exit code 1)."""


class BadInput(ValueError):
    """A flag, a config, a workdir or a data set that the program refuses; the text says why."""


class ProcessError(RuntimeError):
    """The processes of a run do not come together; the text says what is missing."""
