"""Parts of a training split that stand in for the splits a set lacks."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from train.data.tfds_sets import place_of

# Fixed, and not the seed of a run: all runs are tested on the same examples.
SEED = 0


def cut(examples: int, test: int, validation: int) -> dict[str, np.ndarray]:
    """Returns the indices of the examples in each part, in ascending order.

    Args:
      examples: size of the training split.
      test: size of the test part.
      validation: size of the validation part.

    Returns:
      'train', 'validation' and 'test': int64 arrays that together hold every index once.
    """
    shuffled = np.random.default_rng(SEED).permutation(examples)
    remaining = examples - test

    # The test part is taken from the end first: it depends on its own size alone, so that runs
    # with different validation parts are tested on the same examples.
    parts = {
        "train": shuffled[: remaining - validation],
        "validation": shuffled[remaining - validation : remaining],
        "test": shuffled[remaining:],
    }

    return {name: np.sort(part) for name, part in parts.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Some records of a tensorflow-datasets data source, read through the same interface.

    Attributes:
      source: all records.
      indices: [N] int64, which of them belong to the part.
    """

    source: Any
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.source[int(self.indices[index])]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        return self.source.__getitems__([int(self.indices[index]) for index in indices])


def record_place(source: Any, index: int) -> str:
    """Returns '; it is record NUMBER of FILE', for the end of a message.

    Args:
      source: a data source, or a part of one; '' is returned for any other.
      index: the record in the source.
    """
    number = record_number(source, index)
    whole = source.source if isinstance(source, Part) else source
    info = getattr(whole, "dataset_info", None)
    return place_of(info.splits, whole.split, number) if info is not None else ""


def record_number(source: Any, index: int) -> int:
    """Returns the number of a record in the prepared split, for messages.

    Args:
      source: a data source, or a part of one.
      index: the record in the source.
    """
    return int(source.indices[index]) if isinstance(source, Part) else index
