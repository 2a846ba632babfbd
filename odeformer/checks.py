"""Declares what a config's field accepts, once: its check and `--help` follow from it.

And tables of names, from which some fields take theirs.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from odeformer.errors import (
    check_count,
    check_finite,
    check_flag,
    check_fraction,
    check_name,
    check_positive,
    check_positive_int,
    check_rate,
)


@dataclasses.dataclass(frozen=True)
class Accepted:
    """The values that a field takes.

    Attributes:
      says: follows 'is' in a sentence: 'in [0, 1)'; a function where the text may still change.
      check: raises ValueError for all others; called as check(name=value).
    """

    says: str | Callable[[], str]
    check: Callable[..., None]

    @property
    def text(self) -> str:
        """What `says` says now."""
        return self.says() if callable(self.says) else self.says


COUNT = Accepted("greater than 0 and less than 2**31", check_positive_int)
COUNT_OR_ZERO = Accepted("0 or greater and less than 2**31", check_count)
RATE = Accepted("in [0, 1)", check_rate)
FINITE = Accepted("a finite number", check_finite)
POSITIVE = Accepted("a finite number greater than 0", check_positive)
FRACTION = Accepted("greater than 0, at most 1", check_fraction)
# The type alone says it.
FLAG = Accepted("", check_flag)


def one_of(names: Collection[str], kind: str = "") -> Accepted:
    """Returns what a field accepts that is one of a few names.

    Args:
      names: the accepted ones.
      kind: what a name stands for, in messages; the field's own name by default.
    """

    def check(**values: object) -> None:
        for name, value in values.items():
            check_name(kind or name, value, names)

    return Accepted(f"one of {', '.join(names)}", check)


def setting(accepted: Accepted, default: Any = dataclasses.MISSING) -> Any:
    """Declares a dataclass's field: `share: int = setting(COUNT, 1)`.

    A subclass that only gives another default, `share: int = 2`, accepts the same values.

    Args:
      accepted: the values that it takes; None is accepted too where it is the default.
      default: without one the field has to be given.
    """
    return dataclasses.field(default=default, metadata={"accepted": accepted})


@functools.cache
def accepted_by(config: type) -> dict[str, Accepted]:
    """Returns what the fields of a dataclass accept, by name, of those that `setting` declares."""
    declared = {}
    for cls in reversed(config.__mro__):
        for name, field in getattr(cls, "__dataclass_fields__", {}).items():
            if "accepted" in field.metadata:
                declared[name] = field.metadata["accepted"]

    return declared


def check_settings(config: Any, declared: type | None = None, but: Collection[str] = ()) -> None:
    """Raises ValueError for a value that the field that holds it does not accept.

    Args:
      config: the dataclass, or a module with attributes of the same names.
      declared: the dataclass that declares the fields; None: the config's own class.
      but: names of fields that are left out.
    """
    declared = declared or type(config)
    optional = {field.name for field in dataclasses.fields(declared) if field.default is None}

    for name, accepted in accepted_by(declared).items():
        if name in but or (name in optional and getattr(config, name) is None):
            continue

        try:
            accepted.check(**{name: getattr(config, name)})
        except ValueError as error:
            if name not in optional:
                raise

            text = str(error).removesuffix(".")
            raise ValueError(f"{text} (None is accepted, too)") from None


def plain(value: Any) -> Any:
    """Returns the Python number (bool, str) that a NumPy scalar or an array of no axes holds.

    Anything else is returned unchanged, also a value that is being traced.
    """
    # jax.Array includes tracers, which have no value yet; the checks refuse them in words.
    is_array = isinstance(value, (np.ndarray, np.generic, jax.Array))
    if not is_array or isinstance(value, Tracer) or np.ndim(value) > 0:
        return value

    return value.item()


class Names(Sequence[str]):
    """The names of a table, in order: a live view, which cannot be written to."""

    def __init__(self, table: Mapping[str, Any]):
        """Makes the view of a table, whose later entries it will have too."""
        self._table = table

    def __getitem__(self, index: Any) -> Any:
        return tuple(self._table)[index]

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def __repr__(self) -> str:
        return repr(tuple(self._table))


def check_new_name(kind: str, name: object, table: Collection[str]) -> None:
    """Raises ValueError for what cannot be registered as a name: taken already, or no name."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(
            f"a {kind} is registered under a name, a word of letters, digits and underscores; "
            f"{name!r} was given: write register('name', ...), or @register('name') before it"
        )

    if name in table:
        raise ValueError(
            f"the {kind} {name!r} is there already: register yours under another name than "
            f"{', '.join(table)}"
        )
