"""Parts of a training split that stand in for the splits a set lacks."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

SEED = 0  # of every cut, whatever a run's seed: all runs are tested on the same examples


def cut(examples: int, test: int, validation: int) -> dict[str, np.ndarray]:
    """Returns the places of the examples of each part, in ascending order; no two share one.

    The test part depends on its own size alone, so that another validation part leaves it as it is.

    Args:
      examples: of the training split.
      test: examples to take for the test part.
      validation: examples to take for the validation part.

    Returns:
      'train', 'validation' and 'test': int64 arrays that together hold every place once.
    """
    order = np.random.default_rng(SEED).permutation(examples)
    rest = examples - test
    places = {
        "train": order[: rest - validation],
        "validation": order[rest - validation : rest],
        "test": order[rest:],
    }
    return {name: np.sort(part) for name, part in places.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Some records of a data source of tensorflow-datasets, which is read as the source is.

    Attributes:
      source: of all records.
      places: [N] int64, of the part's records in it.
    """

    source: Any
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> Any:
        return self.source[int(self.places[place])]

    def __getitems__(self, places: Sequence[int]) -> list[Any]:
        return self.source.__getitems__([int(self.places[place]) for place in places])


def record_number(source: Any, place: int) -> int:
    """Returns the number that a record has in the split as it lies prepared, for messages.

    Args:
      source: a data source or a part of one.
      place: of the record in it.
    """
    return int(source.places[place]) if isinstance(source, Part) else place
