"""What is to be known of a setting, said once, at the dataclass field that holds it."""

import dataclasses
import functools
import inspect
import operator
import re
import types
import typing
from collections.abc import Callable, Collection, Container
from typing import Any

import numpy as np

from odeformer import checks
from odeformer.errors import LARGEST_FLOAT
from train.errors import BadInput
from train.files import absolute


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a setting takes, of those of its type."""

    words: str | Callable[[], str]  # a function where what is accepted can grow
    contains: Callable[[Any], bool]

    @property
    def text(self) -> str:
        """What follows 'is' in a message: 'greater than 0'."""
        return self.words if isinstance(self.words, str) else self.words()


def whole(least: int, end: int, bound: str) -> Range:
    """Returns the whole numbers from `least` on and below `end`, which a message calls `bound`."""
    low = "greater than 0" if least == 1 else f"{least} or more"
    return Range(f"{low} and less than {bound}", lambda value: least <= value < end)


def one_of(*words: str) -> Range:
    """Returns the range that consists of a few words."""
    return Range(f"one of {', '.join(words)}", words.__contains__)


def name_in(table: Collection[str]) -> Range:
    """Returns the range of the names in a table, those that are added to it later included."""
    return Range(lambda: f"one of {', '.join(table)}", table.__contains__)


def between(low: float, high: float) -> Range:
    """Returns the numbers from `low` to `high`, both included."""
    return Range(f"in [{low}, {high}]", lambda value: low <= value <= high)


ANY = Range("", lambda value: True)
POSITIVE = Range("greater than 0", lambda value: value > 0)
NOT_NEGATIVE = Range("0 or more", lambda value: value >= 0)
# The device counts in int32, and seeds are uint32.
COUNT = whole(1, 1 << 31, "2**31")
COUNT_OR_ZERO = whole(0, 1 << 31, "2**31")
SEED = whole(0, 1 << 32, "2**32")
# What float32 rounds to 1 would divide by 0.
FRACTION = Range("in [0, 1)", lambda value: value >= 0 and float(np.float32(value)) < 1)


@dataclasses.dataclass(frozen=True)
class PartOfRun:
    """A default that depends on how long the run is: train_steps / parts, and 1 at least."""

    parts: int

    def of(self, train_steps: int) -> int:
        """Returns the default for a run of that many steps."""
        return max(train_steps // self.parts, 1)

    def __str__(self) -> str:
        return f"train_steps / {self.parts}"


@dataclasses.dataclass(frozen=True)
class Setting:
    """A key of a run's config."""

    kind: Any  # its type: a class, or a union of classes
    default: Any
    help: str
    accepted: Range = ANY
    path: bool = False  # whether it is a path, which is stored from the root on
    words: Container[str] = ()  # that are no paths


def setting(
    default: Any,
    help_text: str,
    accepted: Range = ANY,
    *,
    path: bool = False,
    words: Container[str] = (),
) -> Any:
    """Declares a setting: `learning_rate: float = setting(1e-3, "Peak of the ...", POSITIVE)`.

    Args:
      default: what it is where a config leaves it out; a PartOfRun is resolved at the border, and
        leaves the dataclass's field without a default.
      help_text: a sentence for --help.
      accepted: the values it takes; None is accepted by its type alone.
      path: whether it is a path, whose `~` is replaced, and which is stored from the root on.
      words: values of it that are no paths.
    """
    metadata = {"default": default, "help": help_text, "accepted": accepted}
    metadata |= {"path": path, "words": words}
    if isinstance(default, PartOfRun):
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@functools.cache
def settings_of(cls: type) -> dict[str, Setting]:
    """Returns the settings that a dataclass's fields declare, by name.

    The library's dataclasses keep their help in their docstring, under 'Attributes:', and check
    their values themselves, so that of their ranges only the text is needed here.
    """
    kinds, attributes, settings = typing.get_type_hints(cls), _attributes(cls), {}
    ranges = {name: Range(a.text, ANY.contains) for name, a in checks.accepted_by(cls).items()}

    for field in dataclasses.fields(cls):
        name, kind = field.name, kinds[field.name]
        if "help" in field.metadata:
            settings[name] = Setting(kind, **field.metadata)
        elif field.default is not dataclasses.MISSING:
            help_text = attributes.get(name, "")
            accepted = ranges.get(name, ANY)
            settings[name] = Setting(_stored(kind), field.default, help_text, accepted)

    return settings


def _attributes(cls: type) -> dict[str, str]:
    """What the docstrings of a class and of its bases say of each attribute, in one line each."""
    found = {}

    for base in reversed(cls.__mro__):
        _, _, section = (inspect.getdoc(base) or "").partition("\nAttributes:\n")
        # An entry is indented by two spaces, what continues it by more; the section ends before.
        section = re.split(r"\n(?=\S)", section)[0]
        for name, text in re.findall(r"^  (\w+): (.*(?:\n    .*)*)", section, re.MULTILINE):
            text = " ".join(text.split())
            found[name] = text[:1].upper() + text[1:]

    return found


def _stored(kind: Any) -> Any:
    """A type of the library, without what config.json cannot hold: a solver, but not its name."""
    plain = (bool, int, float, str, tuple, types.NoneType)
    kinds = [one for one in kinds_of(kind) if (typing.get_origin(one) or one) in plain]
    return functools.reduce(operator.or_, kinds)


def kinds_of(kind: Any) -> tuple[Any, ...]:
    """Returns the types of a union, or the one type, in a tuple."""
    is_union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    return typing.get_args(kind) if is_union else (kind,)


def checked(key: str, value: Any, setting: Setting, of: str = "config") -> Any:
    """Returns a value as its setting's type.

    Args:
      key: its name.
      value: as it was given.
      setting: what is accepted.
      of: what it is a key of, for the message.

    Raises:
      BadInput: a value of another type, or out of range.
    """
    value = typed(f"{of}.{key}", value, setting)
    if value is not None and not setting.accepted.contains(value):
        or_none = " (None is accepted, too)" if type(None) in kinds_of(setting.kind) else ""
        raise BadInput(f"{of}.{key} is {setting.accepted.text}; {value} was given{or_none}")

    # From the root on, so that a run can be resumed and evaluated from another folder.
    if setting.path and value and value not in setting.words:
        try:
            value = absolute(value)
        except BadInput as error:
            raise BadInput(f"{of}.{key}={error}") from error

    return value


def typed(key: str, value: Any, setting: Setting) -> Any:
    """Returns a value as its setting's type; an int serves as a float, and a list as a tuple.

    Raises:
      BadInput: a value of another type.
    """
    origins = tuple(typing.get_origin(kind) or kind for kind in kinds_of(setting.kind))
    if isinstance(value, list) and tuple in origins:
        value = tuple(value)

    if isinstance(value, int | float) and not isinstance(value, bool) and float in origins:
        if not abs(value) <= LARGEST_FLOAT:
            raise BadInput(f"{key} is a finite number of float32; {value!r} was given")
        value = float(value)

    wrongly_bool = isinstance(value, bool) and bool not in origins
    if wrongly_bool or not isinstance(value, origins):
        names = " or ".join("None" if o is type(None) else o.__name__ for o in origins)
        is_object = not isinstance(value, str | int | float | list | tuple | dict | None)
        hint = ": config.json holds no objects; register it, and give its name" * is_object
        raise BadInput(f"{key} takes {names}; {value!r} was given{hint}")
    return value
