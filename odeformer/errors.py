"""Errors for values that are not accepted: what was given, what is accepted, what to do."""

import difflib
import importlib.metadata
import numbers
import pathlib
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

LARGEST_FLOAT = float(np.finfo(np.float32).max)


def unknown(kind: str, name: object, accepted: Iterable[str]) -> ValueError:
    """Returns the error for a name outside a closed set of names.

    Args:
      kind: what the name stands for, e.g. 'solver'.
      name: the unknown name, or an object that is not a name.
      accepted: every accepted name.

    Returns:
      A ValueError to raise; its text ends with the nearest accepted name, if one is near.
    """
    names = list(accepted)
    is_name = isinstance(name, str)

    # A function or a class has the name that was meant; so has the class of another object.
    meant = name if is_name else getattr(name, "__name__", type(name).__name__).lower()
    near = difflib.get_close_matches(meant, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""

    if is_name:
        return ValueError(f"unknown {kind} {name!r}; accepted: {', '.join(names)}.{hint}")

    return ValueError(
        f"the {kind} is given by its name, a str; {name!r} was given; accepted: "
        f"{', '.join(names)}.{hint}"
    )


def check_name(kind: str, name: object, accepted: Iterable[str]) -> None:
    """Raises ValueError where the name is not among the accepted ones."""
    if not isinstance(name, str) or name not in accepted:
        raise unknown(kind, name, accepted)


def check_positive_int(**values: object) -> None:
    """Raises ValueError for a value that is not a whole number from 1 to 2**31 - 1; None passes."""
    for name, value in values.items():
        if value is None:
            continue

        # Python counts True as the number 1.
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is a whole number, 1 or more; {value!r} was given")

        # What counts with it is int32.
        if int(value) >= 1 << 31:
            raise ValueError(f"{name} is a whole number less than 2**31; {value!r} was given")


def check_count(**values: Any) -> None:
    """Raises ValueError for a value that is not a whole number from 0 to 2**31 - 1."""
    for name, value in values.items():
        is_number = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not is_number or not 0 <= int(value) < 1 << 31:
            raise ValueError(
                f"{name} is a whole number, 0 or more and less than 2**31; {value!r} was given"
            )


def check_rate(**values: Any) -> None:
    """Raises ValueError for a value that is not a number in [0, 1), also as float32."""
    for name, value in values.items():
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)

        # A number just below 1 rounds to 1 in float32, and 1 / (1 - rate) is infinite.
        rate = np.float32(value) if is_number else np.float32(np.nan)
        if not 0 <= rate < 1:
            raise ValueError(f"{name} is in [0, 1); {value!r} was given")


def check_finite(**values: Any) -> None:
    """Raises ValueError for a value that is not a finite number, also as float32."""
    for name, value in values.items():
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        size: Any = abs(value) if is_number else np.nan
        if not size <= LARGEST_FLOAT:
            raise ValueError(f"{name} is a finite number of float32; {value!r} was given")


def check_positive(**values: Any) -> None:
    """Raises ValueError for a value that is not a finite number above 0, also as float32."""
    check_finite(**values)
    for name, value in values.items():
        if not np.float32(value) > 0:
            raise ValueError(f"{name} is greater than 0, also as float32; {value!r} was given")


def check_fraction(**values: Any) -> None:
    """Raises ValueError for a value that is not a number in (0, 1], also as float32."""
    check_positive(**values)
    for name, value in values.items():
        if value > 1:
            raise ValueError(f"{name} is greater than 0, at most 1; {value!r} was given")


def check_flag(**values: object) -> None:
    """Raises ValueError for a value that is neither True nor False."""
    for name, value in values.items():
        # A text such as 'no' would count as true.
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} is True or False; {value!r} was given")


def check_kind(owner: str, value: object, *kinds: type) -> None:
    """Raises ValueError for a value that is an instance of none of the classes.

    Args:
      owner: name of what takes the value.
      value: the value.
      *kinds: the accepted classes.
    """
    if not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{owner} takes a {names}; {value!r} was given: make one first")


def warn_about_namesake() -> None:
    """Warns where another project's distribution 'odeformer' is installed, too.

    Both write the folder odeformer/, and the one that was installed last has its `__init__.py`: if
    that is not this project, this code is not reached and nothing is said.
    """
    try:
        other = importlib.metadata.distribution("odeformer").locate_file("")
    except importlib.metadata.PackageNotFoundError:
        return

    here = pathlib.Path(__file__).parent.parent
    warnings.warn(
        f"two projects provide the package odeformer, this one (odeformer-jax, in {here}) and "
        f"another (odeformer, in {other}), and each overwrites files of the other: uninstall both, "
        "then install the one that you need",
        stacklevel=3,  # the line that imports the package
    )
