"""What is chosen by a name: tables to which a module of your own can add.

What the names of the tables below stand for is said by their rooms.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, overload

from train.errors import BadInput

Entry = Callable[..., Any]
T = TypeVar("T", bound=Entry)


class Table(Mapping[str, Entry]):
    """Entries by name: a read-only view that grows by `register` alone.

        OPTIMIZERS = Table("optimizer", ("adamw", "sgd"))

        @OPTIMIZERS.register("mine")
        def mine(config, rate): ...

    Args:
      kind: what a name stands for, for messages.
      promised: the trainer's own names. A config may have them before `define` says what they
        stand for: the border, which checks names, is imported by what has them.
      reserved: names that stand for something else, and cannot be registered.
    """

    def __init__(self, kind: str, promised: Iterable[str] = (), reserved: Iterable[str] = ()):
        self.kind, self._reserved = kind, frozenset(reserved)
        self._entries: dict[str, Entry | None] = dict.fromkeys(promised)

    def __getitem__(self, name: str) -> Entry:
        entry = self._entries[name]
        assert entry is not None, f"nothing defines the {self.kind} {name!r}"
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def define(self, name: str) -> Callable[[T], T]:
        """Returns the decorator that says what one of the trainer's own names stands for."""
        assert self._entries[name] is None, f"the {self.kind} {name!r} is defined twice"

        def define(entry: T) -> T:
            self._entries[name] = entry
            return entry

        return define

    @overload
    def register(self, name: str) -> Callable[[T], T]: ...

    @overload
    def register(self, name: str, entry: T) -> T: ...

    def register(self, name: str, entry: Entry | None = None) -> Any:
        """Adds an entry under a name: as a decorator, or with the entry as second argument.

        Raises:
          BadInput: the name is taken, or is none; or the entry cannot be called.
        """
        if entry is None:
            return lambda entry: self.register(name, entry)

        # Flags separate names by commas, metrics are keys of files.
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
            raise BadInput(
                f"{self.kind}: a name is of letters, digits, '_', '-' and '.'; {name!r} was given"
            )
        if name in self._entries or name in self._reserved:
            raise BadInput(f"{self.kind} {name!r}: the name is taken, choose another one")
        if not callable(entry):
            raise BadInput(
                f"{self.kind} {name!r}: a function or a class is accepted; {entry!r} was given"
            )

        self._entries[name] = entry
        return entry


# In train/optimizer.py: (OptimizerConfig, schedule) -> transformation of gradients, and
# (OptimizerConfig, steps after the warm-up) -> schedule.
OPTIMIZERS = Table("optimizer", ("adamw", "sgd", "lion", "adafactor", "muon"))
SCHEDULES = Table("schedule", ("cosine", "linear", "constant", "wsd"))

# In train/data/: the group `data` of the config -> the splits 'train', 'validation' and 'test'.
# Other names are those of tensorflow-datasets.
IMAGE_SETS = Table("set of images", ("digits",), reserved=("folder",))
DOCUMENT_SETS = Table("set of documents", ("pydocs", "files"))
SENTENCE_SETS = Table("set of sentences", ("folder",))

# In train/tasks/: (RunConfig, split) -> task. Its other half, what a run of it is configured by, is
# TASKS in train/config/run.py.
TASK_CLASSES = Table("task", ("images", "language", "sentences"))

# In addition to what a task measures by itself, whose names are not free: (logits, batch) -> a
# score of each example. SIGNS: 1 where more of it is better, -1 where less is.
METRICS = Table(
    "metric",
    reserved=(
        *("loss", "accuracy", "correct", "label", "f1", "perplexity", "bits_per_byte"),
        *("nfe", "failed", "failed_solves", "index", "tokens", "bytes"),
        *("reversible_gap", "reversible_error"),
    ),
)
SIGNS: dict[str, int] = {}
