"""Which steps can be traced."""

from train.errors import BadInput


def check_span(text: str, first: int, last: int) -> None:
    """Refuses a text that names no steps, or some that are none."""
    if not 1 <= first <= last:
        raise BadInput(
            f"--profile_steps={text}: give the first and the last step to trace, counted from 1 at "
            "this start, e.g. --profile_steps=10:15"
        )


def check_taken(first: int, last: int, start: int, train_steps: int) -> None:
    """Refuses steps that this start, of a run of which `start` steps are done, does not take."""
    if last > train_steps - start:
        raise BadInput(
            f"--profile_steps={first}:{last} goes beyond this start, which takes "
            f"{train_steps - start} steps ({start} of {train_steps} are done): give steps from "
            "1 to those, or leave the flag out"
        )
