"""What the trainer needs of a split of a data set."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Origin:
    """The files that a set was read from, to notice where they change.

    Attributes:
      files: number of files of each class that could be read.
      sha256: of the names, labels and contents of all files; of their sizes instead of their
        contents where the set does not fit in memory.
    """

    files: Mapping[str, int]
    sha256: str


@dataclasses.dataclass(frozen=True)
class TextOrigin:
    """The text that a language model's set was read from, to notice where it changes.

    Attributes:
      characters: of all documents.
      sha256: of all documents, split by split.
    """

    characters: int
    sha256: str


class Split(Protocol):
    """One split of a data set, as the trainer reads it."""

    def __len__(self) -> int: ...

    def gather(self, index: np.ndarray, visit: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns examples as arrays with a leading axis of n, among them 'index' int32.

        Args:
          index: [n] examples to return.
          visit: [n] numbers that tell the uses of one example apart. What is random on the host is
            a function of the seed, the index and the visit; without visits nothing is random.
        """
        ...
