"""What the trainer asks of a split of a data set."""

from typing import Protocol

import numpy as np


class Split(Protocol):
    """One split of a data set, as the trainer reads it."""

    def __len__(self) -> int: ...

    def gather(self, index: np.ndarray, draw: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns the examples of that index [n], each an array of a leading axis of n.

        'index' int32 is among them. What is drawn at random on the host comes from the index and
        the draw [n] alone; without draws nothing is random.
        """
        ...
